"""Checks of arguments that several commands share: numbers that are counts, and paths that should be bundles."""

from __future__ import annotations

import argparse
from pathlib import Path

from stonnx._bundle.manifest import MANIFEST_NAME
from stonnx._bundle.replaced import is_bundle, nearest_bundle
from stonnx._errors import ModelNotFoundError
from stonnx._hub.download import CHECKPOINT_FILES


def positive_integer(text: str) -> int:
    """A count on the command line, for ``type=`` of argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def require_bundle(typed: str | Path, command: str) -> None:
    """Raise an error that says what a path is, and what to type, unless it is the directory of a bundle.

    Args:
        typed: The path that the user typed.
        command: The command that needs a bundle, with its own options, for the advice.

    Raises:
        ModelNotFoundError: It is not a bundle.
    """
    path = Path(typed)
    if is_bundle(path):
        return
    advice = "Make one with: stonnx export MODEL -o DIRECTORY"
    if path.is_file():
        inside = path.name == MANIFEST_NAME or (path.parent / MANIFEST_NAME).is_file()
        said = f"{path} is a file{' of a bundle' * inside}, and {command} takes the directory of a bundle"
        raise ModelNotFoundError(f"{said}: stonnx {command} {path.parent}" if inside else f"{said}. {advice}")
    if not path.exists():
        name = str(typed)
        if name.count("/") <= 1 and not name.startswith((".", "/", "~")):
            advice = f"If that is a model on the Hub, make one with: stonnx export {name} -o DIRECTORY"
        raise ModelNotFoundError(
            f"{typed} does not exist.{nearest_bundle(str(typed))} "
            f"stonnx {command} takes the directory of a bundle. {advice}"
        )
    if any((path / name).is_file() for name in CHECKPOINT_FILES):
        raise ModelNotFoundError(
            f"{path} is not a bundle: it has no {MANIFEST_NAME}. It is a checkpoint. Make a bundle of it with: "
            f"stonnx export {path} -o DIRECTORY"
        )
    inner = sorted(file.parent.name for file in path.glob(f"*/{MANIFEST_NAME}"))
    holds = f" It contains bundles: {', '.join(inner[:5])}{', ...' * (len(inner) > 5)}." if inner else f" {advice}"
    raise ModelNotFoundError(f"{path} is not a bundle: it has no {MANIFEST_NAME}.{holds}")
