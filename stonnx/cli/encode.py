"""``stonnx encode``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stonnx._errors import InvalidArgumentError
from stonnx._files import inputs
from stonnx._files.encode_file import encode_file, encode_to_stream
from stonnx._progress import progress_bar
from stonnx._text.batching import tokens_per_batch_unit
from stonnx.cli._arguments import positive_integer
from stonnx.cli._commands import Commands
from stonnx.cli._passages import add_device_arguments, add_reading_arguments
from stonnx.sentence_transformer import SentenceTransformer


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx encode``."""
    parser = commands.add_parser(
        "encode",
        help="encode the lines of a file",
        description="Encode every line of a file. An interrupted run is continued by running the same command again.",
        epilog="example: stonnx encode all-MiniLM-L6-v2-fp32 passages.txt -o passages.npy --document",
    )
    parser.add_argument("model", help="directory of a bundle or checkpoint, or Hub id")
    parser.add_argument("input", help="text lines, JSONL, CSV or TSV, also .gz; - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="file ending in .npy, .jsonl or .safetensors; - for JSONL on standard output",
    )
    parser.add_argument("--output-format", choices=("npy", "jsonl", "safetensors"), help="default: by the ending")
    add_reading_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--query", action="store_true", help="encode as queries")
    prompt.add_argument("--document", action="store_true", help="encode as documents")
    prompt.add_argument("--prompt-name", help="a prompt of the model to put in front of each text")
    prompt.add_argument("--prompt", help="a text to put in front of each text")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--truncate-dim", type=positive_integer, help="cut vectors to this many dimensions")
    parser.add_argument(
        "--precision",
        choices=("float32", "binary", "ubinary"),
        default="float32",
        help="of the values (default: float32); int8 and uint8 are not offered: their range has to be known before the "
        "first row is written",
    )
    unit, unit_of_gpu = tokens_per_batch_unit("cpu"), tokens_per_batch_unit("cuda")
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=32,
        help=f"in units of {unit} tokens, {unit_of_gpu} on a GPU (default: %(default)s)",
    )
    add_device_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Encode the file."""
    source = None if arguments.input == "-" else Path(arguments.input)
    to_stdout = str(arguments.output) == "-"
    if to_stdout and arguments.output_format not in (None, "jsonl"):
        raise InvalidArgumentError(
            f"{arguments.output_format} begins with the number of rows, which standard input and output do not know. "
            "Standard output gets --output-format jsonl; name a file for the others: -o FILE.npy"
        )
    inputs.input_format(source, arguments.input_format)  # refused before the model is loaded
    model = SentenceTransformer(arguments.model, device=arguments.device, threads=arguments.threads)
    method = model.encode_query if arguments.query else model.encode_document if arguments.document else model.encode
    options: dict[str, Any] = {
        "prompt_name": arguments.prompt_name,
        "prompt": arguments.prompt,
        "normalize_embeddings": arguments.normalize,
        "truncate_dim": arguments.truncate_dim,
        "precision": arguments.precision,
    }
    # Refuse wrong options before the input is read.
    sample = method(["a"], **options)
    identity = options | {
        "task": "query" if arguments.query else "document" if arguments.document else None,
        "files": {name: entry.sha256 for name, entry in model.manifest.files.items()},
    }
    with ExitStack() as bars:
        bar = _LateBar(bars, source, not arguments.quiet)

        def encode(texts: list[str]) -> Any:
            bar.start()
            return method(texts, batch_size=arguments.batch_size, **options)

        common: dict[str, Any] = {"input_format": arguments.input_format, "text_field": arguments.field}
        if to_stdout:
            encode_to_stream(encode, source, sys.stdout.buffer, progress=bar.advance, **common)
            return
        report = encode_file(
            encode,
            source,
            arguments.output,
            identity=identity,
            output_format=arguments.output_format,
            overwrite=arguments.overwrite,
            dimension=sample.shape[1],
            dtype=sample.dtype.name,
            progress=bar.advance,
            **common,
        )
    if report.restarted:
        print(f"An earlier run was not continued: {report.restarted}", file=sys.stderr)
    continued = f", {report.resumed_rows:,} of them from an earlier run" if report.resumed_rows else ""
    print(f"{report.output}: {report.rows:,} x {report.dimension}{continued}, {report.seconds:.1f} s")


class _LateBar:
    """A progress bar that appears with the first work: an error that needs none has no bar above it."""

    def __init__(self, bars: ExitStack, source: Path | None, show: bool) -> None:
        known = source is not None and source.is_file() and not inputs.is_compressed(source)
        self._bars, self._show = bars, show
        self._total = source.stat().st_size if known and source is not None else None
        self._advance: Callable[[int], None] | None = None
        self._done = 0

    def start(self) -> None:
        if self._advance is None:
            unit = "text" if self._total is None else "B"
            self._advance = self._bars.enter_context(progress_bar(self._total, self._show, unit))

    def advance(self, now: int, _: int | None) -> None:
        assert self._advance is not None  # what advances it was encoded
        self._advance(now - self._done)
        self._done = now
