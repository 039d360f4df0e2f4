"""The common part of ``rank`` and ``search``: a file of passages, and the hits as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest
from stonnx._device.providers import PROVIDERS
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._files import inputs
from stonnx._files.formats import INPUT_FORMATS, read_windows
from stonnx._files.rows import Row
from stonnx.cli._arguments import positive_integer

_WINDOW = 4096
_NARROWEST_TEXT = 20


def add_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """The arguments that both commands have."""
    parser.add_argument("model", help=model)
    parser.add_argument("query", help="the text to compare with")
    parser.add_argument(
        "file", help="passages: text lines, JSONL, CSV or TSV, also .gz, or Parquet; - for standard input"
    )
    parser.add_argument("-k", "--top-k", type=positive_integer, default=10, help="how many to print (default: 10)")
    parser.add_argument("--json", action="store_true", help="print a JSON list of corpus_id, score, text (and record)")
    add_reading_arguments(parser)
    add_device_arguments(parser)


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """How a file of texts is read."""
    parser.add_argument("--input-format", choices=INPUT_FORMATS, help="default: by the ending of the input")
    parser.add_argument(
        "--field",
        "--column",
        default="text",
        help="the field of a JSONL record, or the column of a table, that holds the text (default: text)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    devices = ", ".join(row.device + (f", {row.device}:1" if row.indexed else "") for row in PROVIDERS)
    parser.add_argument("--device", help=f"{devices} (default: the best of cpu and cuda that works)")
    parser.add_argument(
        "--threads",
        type=positive_integer,
        help="threads on the CPU (default: as many as the process may use CPUs)",
    )


def read_passages(arguments: argparse.Namespace) -> list[Row]:
    """All rows of the file.

    Raises:
        InvalidArgumentError: The file comes before the query.
        InvalidInputError: The file does not have rows, or one of them cannot be read.
        UnsupportedError, OSError: The file does not hold texts, or cannot be read.
    """
    if arguments.file != "-" and not os.path.exists(arguments.file) and os.path.isfile(arguments.query):
        right = shlex.join(["stonnx", arguments.command_name, arguments.model, arguments.file, arguments.query])
        raise InvalidArgumentError(f"{arguments.file!r} is not a file. The query comes before the file: {right}")
    source = None if arguments.file == "-" else Path(arguments.file)
    read_as = inputs.input_format(source, arguments.input_format)
    name = str(source or "standard input")
    with inputs.open_source(source) as stream:
        windows = read_windows(stream, read_as, name=name, text_field=arguments.field, window=_WINDOW)
        rows = [row for window in windows for row in window.rows]
    if not rows:
        raise InvalidInputError(f"{name} has no passages. It needs one in each line, or a record with a text.")
    return rows


def check_task(model: str, wanted: Sequence[str], remedy: str) -> None:
    """Raise InvalidArgumentError if a model is a local bundle whose task is not one of the wanted ones."""
    directory = Path(model)
    if (directory / MANIFEST_NAME).is_file() and (task := read_manifest(directory).task) not in wanted:
        raise InvalidArgumentError(f"{model} is a bundle for the task {task!r}. {remedy}")


def print_hits(hits: Iterable[Mapping[str, Any]], rows: Sequence[Row], as_json: bool) -> None:
    """Print hits, best first. Each has the position of its row as ``"corpus_id"``, and its ``"score"``."""
    found = [(int(hit["corpus_id"]), float(hit["score"])) for hit in hits]
    if as_json:
        print(json.dumps([_as_data(index, score, rows[index]) for index, score in found], ensure_ascii=False, indent=1))
        return
    width = max(len(str(len(rows))), len("row"))
    print(f"{'':>4}  {'score':>8}  {'row':>{width}}  text")
    room = max(_NARROWEST_TEXT, shutil.get_terminal_size().columns - width - 18) if sys.stdout.isatty() else None
    for place, (index, score) in enumerate(found, start=1):
        text = " ".join(str(rows[index].text).split())
        if room is not None and len(text) > room:
            text = text[: room - 1] + "…"
        print(f"{place:>4}  {score:>8.4f}  {index + 1:>{width}}  {text}")


def _as_data(index: int, score: float, row: Row) -> dict[str, Any]:
    data: dict[str, Any] = {"corpus_id": index, "score": score, "text": row.text}
    if row.record is not None:
        data["record"] = json.loads(row.record)
    return data
