"""``stonnx encode``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from stonnx._device.providers import PROVIDERS
from stonnx._text.batching import tokens_per_batch_unit
from stonnx.cli._commands import Commands
from stonnx.sentence_transformer import SentenceTransformer


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx encode``."""
    parser = commands.add_parser(
        "encode",
        help="encode the lines of a file",
        description="Encode every line of a file. An interrupted run is continued by running the same command again.",
    )
    parser.add_argument("model", help="directory of a bundle or checkpoint, or Hub id")
    parser.add_argument("input", help="text lines or JSONL; - for standard input")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file ending in .npy, .jsonl or .safetensors")
    parser.add_argument("--input-format", choices=("lines", "jsonl"), help="default: by the ending of the input")
    parser.add_argument("--output-format", choices=("npy", "jsonl", "safetensors"), help="default: by the ending")
    parser.add_argument("--field", default="text", help="the field of a JSONL record that is encoded (default: text)")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--query", action="store_true", help="encode as queries")
    prompt.add_argument("--document", action="store_true", help="encode as documents")
    prompt.add_argument("--prompt-name", help="a prompt of the model to put in front of each text")
    prompt.add_argument("--prompt", help="a text to put in front of each text")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--truncate-dim", type=int, help="cut vectors to this many dimensions")
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
        type=int,
        default=32,
        help=f"in units of {unit} tokens, {unit_of_gpu} on a GPU (default: %(default)s)",
    )
    devices = ", ".join(row.device + (f", {row.device}:1" if row.indexed else "") for row in PROVIDERS)
    parser.add_argument("--device", help=f"{devices} (default: the best of cpu and cuda that works)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: as many as the process may use CPUs)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Encode the file."""
    from stonnx._files.encode_file import encode_file
    from stonnx._progress import progress_bar

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
    manifest = model._engine.manifest
    identity = options | {
        "task": "query" if arguments.query else "document" if arguments.document else None,
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
    }
    source = None if arguments.input == "-" else Path(arguments.input)
    total = source.stat().st_size if source is not None and source.is_file() else None
    with progress_bar(total, not arguments.quiet, "B" if total else "text") as advance:
        done = 0

        def progress(now: int, _: int | None) -> None:
            nonlocal done
            advance(now - done)
            done = now

        report = encode_file(
            lambda texts: method(texts, batch_size=arguments.batch_size, **options),
            source,
            arguments.output,
            identity=identity,
            input_format=arguments.input_format,
            output_format=arguments.output_format,
            text_field=arguments.field,
            overwrite=arguments.overwrite,
            dimension=sample.shape[1],
            dtype=sample.dtype.name,
            progress=progress,
        )
    if report.restarted:
        print(f"An earlier run was not continued: {report.restarted}", file=sys.stderr)
    continued = f", {report.resumed_rows:,} of them from an earlier run" if report.resumed_rows else ""
    print(f"{report.output}: {report.rows:,} x {report.dimension}{continued}, {report.seconds:.1f} s")
