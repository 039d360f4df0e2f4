"""``stonnx encode``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._errors import InvalidArgumentError
from stonnx._files import inputs
from stonnx._files.encode_file import EncodeFileReport, encode_file, encode_to_stream
from stonnx._files.formats import OutputFormat
from stonnx._files.shards import FileResult, Shard, encode_files
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
        help="encode the lines of files",
        description="Encode every line of a file. An interrupted run is continued by running the same command again. "
        "With several files, or --shard, the output is a directory with a file for each, and what is there already is "
        "not done again.",
        epilog="examples: stonnx encode all-MiniLM-L6-v2-fp32 passages.txt -o passages.npy --document; "
        "stonnx encode all-MiniLM-L6-v2-fp32 parts/*.jsonl -o vectors/ --shard 2/8",
    )
    parser.add_argument("model", help="directory of a bundle or checkpoint, or Hub id")
    parser.add_argument("input", nargs="+", help="text lines, JSONL, CSV or TSV, also .gz; - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="file ending in .npy, .jsonl or .safetensors; - for JSONL on standard output; with several inputs, or "
        "--shard, a directory",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N equal shares of the files: start N processes with the same files and directory",
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


def run(arguments: argparse.Namespace) -> int:
    """Encode the file, or this shard of the files."""
    if len(arguments.input) > 1 or arguments.shard is not None:
        return _encode_files(arguments)
    source = None if arguments.input[0] == "-" else Path(arguments.input[0])
    to_stdout = str(arguments.output) == "-"
    if to_stdout and arguments.output_format not in (None, "jsonl"):
        raise InvalidArgumentError(
            f"{arguments.output_format} begins with the number of rows, which standard input and output do not know. "
            "Standard output gets --output-format jsonl; name a file for the others: -o FILE.npy"
        )
    inputs.input_format(source, arguments.input_format)  # refused before the model is loaded
    job = _Job.of(arguments)
    if to_stdout:
        with job.encoder(source) as (encode, progress):
            encode_to_stream(encode, source, sys.stdout.buffer, progress=progress, **job.reading)
        return 0
    report = job.encode_file(source, arguments.output, arguments.output_format, overwrite=arguments.overwrite)
    if report.restarted:
        print(f"An earlier run was not continued: {report.restarted}", file=sys.stderr)
    continued = f", {report.resumed_rows:,} of them from an earlier run" if report.resumed_rows else ""
    print(f"{report.output}: {report.rows:,} x {report.dimension}{continued}, {report.seconds:.1f} s")
    return 0


def _encode_files(arguments: argparse.Namespace) -> int:
    """Encode the files of a shard. The status is 1 if one of them has no output."""
    shard = Shard.parse(arguments.shard or "1/1")
    if "-" in (*arguments.input, str(arguments.output)):
        raise InvalidArgumentError(
            "Several inputs, or --shard, need files as inputs and a directory as output: -o DIRECTORY"
        )
    if arguments.overwrite:
        raise InvalidArgumentError(
            "--overwrite has no meaning with a directory: the name of an output says what is in it. Delete what you "
            "want to be made again."
        )
    output_format: OutputFormat = arguments.output_format or "npy"
    job = _Job.of(arguments)
    report = encode_files(
        lambda source, output: job.encode_file(source, output, output_format, overwrite=False),
        [Path(name) for name in arguments.input],
        arguments.output,
        suffix=f".{output_format}",
        identity=job.identity | job.reading,
        shard=shard,
        told=_tell,
    )
    if report.failed:
        print(
            f"{len(report.failed)} of {len(report.results)} files of shard {shard} have no output. Run the same "
            "command again when they are corrected: it does these only.",
            file=sys.stderr,
        )
    print(f"{report.manifest}: {len(report.results) - len(report.failed)} of {len(report.results)} files are done")
    return int(bool(report.failed))


def _tell(result: FileResult) -> None:
    if result.error is not None:
        print(f"{result.input}: {result.error}", file=sys.stderr, flush=True)
    else:
        size = "" if result.rows is None else f", {result.rows:,} x {result.dimension}"
        print(f"{result.input}: {result.output}{size}", flush=True)


@dataclass(frozen=True)
class _Job:
    """A model with the options of the command. It turns a file into a file."""

    method: Callable[..., Any]
    options: dict[str, Any]
    identity: dict[str, Any]
    reading: dict[str, Any]
    batch_size: int
    show: bool
    dimension: int
    dtype: str

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> _Job:
        """Load the model, and refuse wrong options before an input is read."""
        model = SentenceTransformer(arguments.model, device=arguments.device, threads=arguments.threads)
        as_query, as_document = arguments.query, arguments.document
        method = model.encode_query if as_query else model.encode_document if as_document else model.encode
        options: dict[str, Any] = {
            "prompt_name": arguments.prompt_name,
            "prompt": arguments.prompt,
            "normalize_embeddings": arguments.normalize,
            "truncate_dim": arguments.truncate_dim,
            "precision": arguments.precision,
        }
        sample = method(["a"], **options)
        identity = options | {
            "task": "query" if as_query else "document" if as_document else None,
            "files": {name: entry.sha256 for name, entry in model.manifest.files.items()},
        }
        reading = {"input_format": arguments.input_format, "text_field": arguments.field}
        show, dtype = not arguments.quiet, sample.dtype.name
        return cls(method, options, identity, reading, arguments.batch_size, show, sample.shape[1], dtype)

    @contextmanager
    def encoder(self, source: Path | None) -> Iterator[tuple[Callable[[list[str]], Any], Callable[..., None]]]:
        """The function that encodes texts, and the function that hears of the progress through ``source``."""
        with ExitStack() as bars:
            bar = _LateBar(bars, source, self.show)

            def encode(texts: list[str]) -> Any:
                bar.start()
                return self.method(texts, batch_size=self.batch_size, **self.options)

            yield encode, bar.advance

    def encode_file(
        self, source: Path | None, output: Path, output_format: OutputFormat | None, *, overwrite: bool
    ) -> EncodeFileReport:
        """Make the complete output of an input, or none."""
        with self.encoder(source) as (encode, progress):
            return encode_file(
                encode,
                source,
                output,
                identity=self.identity,
                output_format=output_format,
                overwrite=overwrite,
                dimension=self.dimension,
                dtype=self.dtype,
                progress=progress,
                **self.reading,
            )


class _LateBar:
    """A progress bar that appears with the first work. So an early error has no bar above it."""

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
        assert self._advance is not None  # the rows so far were encoded, which made the bar
        self._advance(now - self._done)
        self._done = now
