"""Files of a checkpoint, with errors that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stonnx._errors import ExportError, StonnxError


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise ExportError if a file has an unexpected shape: each library has errors of its own for that."""
    try:
        yield
    except StonnxError:
        raise
    except Exception as error:
        raise ExportError(
            f"{path} is damaged: {type(error).__name__}: {error}. Download the checkpoint again."
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file of the checkpoint."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"The checkpoint lacks {path}.") from None
    except ValueError as error:
        raise ExportError(f"{path} is not readable JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the checkpoint that holds an object, as settings do."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object.")
    return value


def optional_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; an empty one if there is no such file."""
    return read_object(path) if path.is_file() else {}
