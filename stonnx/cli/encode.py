"""``stonnx encode``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._errors import InvalidArgumentError, UnsupportedError
from stonnx._files import inputs
from stonnx._files.encode_file import EncodeFileReport, encode_file, encode_to_stream
from stonnx._files.results import KINDS, Kind, OutputFormat
from stonnx._files.shards import FileResult, Shard, encode_files
from stonnx._files.writers import OUTPUT_SUFFIXES, WRITERS
from stonnx._load import load_model
from stonnx._model.model import Model
from stonnx._progress import progress_bar
from stonnx._tasks import TASKS, ResultKind
from stonnx._text.batching import tokens_per_batch_unit
from stonnx.cli._arguments import positive_integer
from stonnx.cli._commands import Commands
from stonnx.cli._passages import add_device_arguments, add_reading_arguments

# The options that models of one kind alone have: their arguments of encode, and the values that mean "not given".
_OPTIONS: dict[ResultKind, dict[str, tuple[str, Any]]] = {
    "dense": {
        "normalize": ("normalize_embeddings", False),
        "truncate_dim": ("truncate_dim", None),
        "precision": ("precision", "float32"),
        "query": ("", False),
        "document": ("", False),
    },
    "sparse": {"max_active_dims": ("max_active_dims", None), "query": ("", False), "document": ("", False)},
    "scores": {"query_field": ("", None)},
}
_QUERY_FIELD = "query"


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx encode``."""
    parser = commands.add_parser(
        "encode",
        help="encode the lines of files, or score their pairs",
        description="Encode every line of a file: to vectors, to sparse vectors, or, with a reranker, to the scores of "
        "its pairs of a query and a text. An interrupted run is continued by running the same command again. "
        "With several files, --shard, or a / at its end, the output is a directory with a file for each, and what is "
        "there already is not done again.",
        epilog="examples: stonnx encode all-MiniLM-L6-v2-fp32 passages.txt -o passages.npy --document; "
        "stonnx encode all-MiniLM-L6-v2-fp32 parts/*.parquet -o vectors/ --output-format parquet --shard 2/8",
    )
    parser.add_argument("model", help="directory of a bundle or checkpoint, or Hub id")
    parser.add_argument(
        "input", nargs="+", help="text lines, JSONL, CSV or TSV, also .gz, or Parquet; - for standard input"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        help="file ending in .npy, .jsonl, .parquet or .safetensors, for sparse vectors in .npz, .jsonl or .parquet; "
        "- for JSONL on standard output; with several inputs, or --shard, or a / at its end, a directory",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N equal shares of the files: start N processes with the same files and directory",
    )
    parser.add_argument(
        "--output-format",
        choices=tuple(WRITERS),
        help="default: by the ending; for a directory npy, and npz for sparse vectors",
    )
    parser.add_argument(
        "--task", choices=tuple(TASKS), help="what the model does, if a checkpoint or a Hub name does not say it"
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--query-field",
        "--query-column",
        help=f"for a reranker: the field or column that holds the query (default: {_QUERY_FIELD})",
    )
    parser.add_argument(
        "--error-field",
        "--error-column",
        metavar="NAME",
        help="go on after a row without a text that can be encoded: it gets null, and this field of the output says "
        "why; for .jsonl and .parquet (default: such a row ends the work on its file)",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--query", action="store_true", help="encode as queries")
    prompt.add_argument("--document", action="store_true", help="encode as documents")
    prompt.add_argument("--prompt-name", help="a prompt of the model to put before each text")
    prompt.add_argument("--prompt", help="a text to put before each text")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--truncate-dim", type=positive_integer, help="cut vectors to this many dimensions")
    parser.add_argument(
        "--max-active-dims", type=positive_integer, help="keep this many values of a sparse vector, the strongest"
    )
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
    # A pattern can match one file, so the output may say that it is a directory.
    is_directory = arguments.output.endswith(("/", os.sep))
    arguments.output = Path(arguments.output)
    if len(arguments.input) == 1 and Path(arguments.input[0]).is_dir():
        raise InvalidArgumentError(
            f"{arguments.input[0]} is a directory. Name the files in it: stonnx encode {arguments.model} "
            f"{Path(arguments.input[0])}/* -o {arguments.output}/"
        )
    if len(arguments.input) > 1 or arguments.shard is not None or is_directory:
        return _encode_files(arguments)
    source = None if arguments.input[0] == "-" else Path(arguments.input[0])
    to_stdout = str(arguments.output) == "-"
    if to_stdout and arguments.output_format not in (None, "jsonl"):
        raise InvalidArgumentError(
            f"{arguments.output_format} begins or ends with the number of rows, which standard input and output do not "
            "know. Standard output gets --output-format jsonl; name a file for the others: -o FILE.npy"
        )
    inputs.input_format(source, arguments.input_format)  # refused before the model is loaded
    job = _Job.of(arguments)
    if to_stdout:
        with job.encoder(source) as (encode, progress):
            encode_to_stream(encode, source, sys.stdout.buffer, kind=job.kind, progress=progress, **job.reading)
        return 0
    report = job.encode_file(source, arguments.output, arguments.output_format, overwrite=arguments.overwrite)
    if report.restarted:
        print(f"An earlier run was not continued: {report.restarted}", file=sys.stderr)
    continued = f", {report.resumed_rows:,} of them from an earlier run" if report.resumed_rows else ""
    failed = _without_result(report.failed_rows)
    print(f"{report.output}: {_size(report.rows, report.dimension)}{failed}{continued}, {report.seconds:.1f} s")
    return 0


def _encode_files(arguments: argparse.Namespace) -> int:
    """Encode the files of a shard. The status is 1 if one of them has no output."""
    shard = Shard.parse(arguments.shard or "1/1")
    if "-" in (*arguments.input, str(arguments.output)):
        raise InvalidArgumentError(
            "A directory as output, which several inputs and --shard need, takes files as inputs: -o DIRECTORY/"
        )
    named = OUTPUT_SUFFIXES.get(arguments.output.suffix)
    if named is not None and not arguments.output.is_dir():
        raise InvalidArgumentError(
            f"Several inputs, or --shard, need a directory as output, and {arguments.output} is the name of a file: "
            f"-o {arguments.output.with_suffix('')}/ --output-format {named}"
        )
    if arguments.overwrite:
        raise InvalidArgumentError(
            "--overwrite has no meaning with a directory: the name of an output says what is in it. Delete what you "
            "want to be made again."
        )
    job = _Job.of(arguments)
    output_format: OutputFormat = arguments.output_format or job.kind.formats[0]
    WRITERS[output_format].check()  # once, and not as the error of every file
    report = encode_files(
        lambda source, output: job.encode_file(source, output, output_format, overwrite=False),
        [Path(name) for name in arguments.input],
        arguments.output,
        suffix=f".{output_format}",
        identity=job.identity | job.reading,
        shard=shard,
        shape=lambda output: WRITERS[output_format].shape(job.kind, output),
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
        size = "" if result.rows is None else f", {_size(result.rows, result.dimension)}"
        print(f"{result.input}: {result.output}{size}{_without_result(result.failed_rows)}", flush=True)


def _without_result(rows: int | None) -> str:
    return f", {rows:,} of them without a result" if rows else ""


def _size(rows: int, dimension: int | None) -> str:
    return f"{rows:,} x {dimension}" if dimension else f"{rows:,} scores"


@dataclass(frozen=True)
class _Job:
    """A model with the options of the command. It turns a file into a file."""

    method: Callable[..., Any]
    options: dict[str, Any]
    identity: dict[str, Any]
    reading: dict[str, Any]
    batch_size: int
    show: bool
    kind: Kind
    dimension: int
    dtype: str

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> _Job:
        """Load the model, and refuse wrong options before an input is read."""
        model: Any = load_model(arguments.model, arguments.task, device=arguments.device, threads=arguments.threads)
        row = TASKS[model.manifest.task]
        if row.kind not in KINDS:
            raise UnsupportedError(
                f"{arguments.model} {row.does}, and a file here holds one result for each text. Encode with "
                f"stonnx.{row.class_name} in Python, and store the vectors in a database for them: "
                "examples/late_interaction.py."
            )
        method = _method(model, arguments)
        options: dict[str, Any] = {"prompt_name": arguments.prompt_name, "prompt": arguments.prompt}
        for kind, names in _OPTIONS.items():
            for name, (argument, default) in names.items():
                if kind == row.kind and argument:
                    options[argument] = getattr(arguments, name)
                elif name not in _OPTIONS[row.kind] and getattr(arguments, name) != default:
                    raise InvalidArgumentError(
                        f"--{name.replace('_', '-')} has no meaning for {arguments.model}, which {row.does}."
                    )
        query_field = (arguments.query_field or _QUERY_FIELD) if row.reads_pairs else None
        sample = method([("a", "a") if row.reads_pairs else "a"], **options)
        identity = options | {
            "task": "query" if arguments.query else "document" if arguments.document else None,
            # The instructions change the last bits only; with and without kernels, int8 rounds in other places.
            "native_kernels": bool(model.info.kernels),
            "files": {name: entry.sha256 for name, entry in model.manifest.files.items()},
        }
        reading = {
            "input_format": arguments.input_format,
            "text_field": arguments.field,
            "query_field": query_field,
            "error_field": arguments.error_field,
        }
        dimension = sample.shape[1] if len(sample.shape) > 1 else 0
        show, dtype = not arguments.quiet, sample.dtype.name
        return cls(method, options, identity, reading, arguments.batch_size, show, KINDS[row.kind], dimension, dtype)

    @contextmanager
    def encoder(self, source: Path | None) -> Iterator[tuple[Callable[[list[Any]], Any], Callable[..., None]]]:
        """The function that encodes texts, and the function that hears of the progress through ``source``."""
        with ExitStack() as bars:
            bar = _LateBar(bars, source, self.show)

            def encode(texts: list[Any]) -> Any:
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
                kind=self.kind,
                output_format=output_format,
                overwrite=overwrite,
                dimension=self.dimension,
                dtype=self.dtype,
                progress=progress,
                **self.reading,
            )


def _method(model: Model, arguments: argparse.Namespace) -> Callable[..., Any]:
    """The method of the model that turns texts into results."""
    if TASKS[model.manifest.task].reads_pairs:
        name = "predict"
    else:
        name = "encode_query" if arguments.query else "encode_document" if arguments.document else "encode"
    method: Callable[..., Any] = getattr(model, name)
    return method


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
