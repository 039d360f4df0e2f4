"""The command ``stonnx``: export, encode, info, doctor, build, models."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stonnx
from stonnx._batching import tokens_per_batch_unit
from stonnx._bundle import MANIFEST_NAME, Manifest, read_manifest, verify_files
from stonnx._errors import MissingDependencyError, ModelNotFoundError, StonnxError
from stonnx._providers import PROVIDERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 done, 1 failed with a message, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the output any more, as of `head`.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.command
    try:
        status = command(arguments) or 0
        print(end="", flush=True)  # here, where a broken pipe is no traceback
        return status
    except BrokenPipeError:
        # Python flushes once more at its end: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (StonnxError, OSError) as error:
        print(f"stonnx {arguments.command_name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stonnx {arguments.command_name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stonnx", description="sentence-transformers inference without PyTorch")
    parser.add_argument("--version", action="version", version=f"stonnx {stonnx.__version__}")
    commands = parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="turn a checkpoint into a bundle")
    export.add_argument("model", help="checkpoint directory or Hub id")
    export.add_argument("-o", "--output", type=Path, help="directory of the bundle (default: MODEL-DTYPE)")
    export.add_argument("--dtype", default="fp32", help="recipe of the bundle: fp32, fp16 or int8 (default: fp32)")
    export.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="calibrate int8 with these texts, one a line (default: none needed)",
    )
    export.add_argument(
        "--pairs", type=Path, metavar="CSV", help="report the loss on scored pairs: text, text, number in each line"
    )
    export.add_argument(
        "--source",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="take the network from PyTorch weights or from an ONNX file of the checkpoint, which needs no PyTorch "
        "(default: auto, PyTorch weights where that is possible)",
    )
    export.add_argument("--name", help="how the bundle names its source (default: MODEL)")
    export.add_argument("--revision", help="branch, tag or commit on the Hub")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    export.add_argument("--quiet", action="store_true", help="do not print the stages")
    export.set_defaults(command=_export)

    verify = commands.add_parser("verify", help="compare a bundle with its checkpoint again, on this machine")
    verify.add_argument("bundle", type=Path, help="bundle directory")
    verify.add_argument("--against", required=True, metavar="CHECKPOINT", help="checkpoint directory or Hub id")
    verify.add_argument(
        "--pairs", type=Path, metavar="CSV", help="report the loss on scored pairs: text, text, number in each line"
    )
    verify.add_argument(
        "--source", choices=("auto", "torch", "onnx"), default="auto", help="what computes the original (default: auto)"
    )
    verify.add_argument("--json", action="store_true", help="print the report as JSON")
    verify.set_defaults(command=_verify)

    encode = commands.add_parser(
        "encode",
        help="encode the lines of a file",
        description="Encode every line of a file. An interrupted run is continued by running the same command again.",
    )
    encode.add_argument("model", help="directory of a bundle or checkpoint, or Hub id")
    encode.add_argument("input", help="text lines or JSONL; - for standard input")
    encode.add_argument("-o", "--output", type=Path, required=True, help="file ending in .npy, .jsonl or .safetensors")
    encode.add_argument("--input-format", choices=("lines", "jsonl"), help="default: by the ending of the input")
    encode.add_argument("--output-format", choices=("npy", "jsonl", "safetensors"), help="default: by the ending")
    encode.add_argument("--field", default="text", help="the field of a JSONL record that is encoded (default: text)")
    prompt = encode.add_mutually_exclusive_group()
    prompt.add_argument("--query", action="store_true", help="encode as queries")
    prompt.add_argument("--document", action="store_true", help="encode as documents")
    prompt.add_argument("--prompt-name", help="a prompt of the model to put in front of each text")
    prompt.add_argument("--prompt", help="a text to put in front of each text")
    encode.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    encode.add_argument("--truncate-dim", type=int, help="cut vectors to this many dimensions")
    encode.add_argument(
        "--precision",
        choices=("float32", "binary", "ubinary"),
        default="float32",
        help="of the values (default: float32); int8 and uint8 are not offered: their range has to be known before the "
        "first row is written",
    )
    unit, unit_of_gpu = tokens_per_batch_unit("cpu"), tokens_per_batch_unit("cuda")
    encode.add_argument(
        "--batch-size",
        type=int,
        default=32,
        help=f"in units of {unit} tokens, {unit_of_gpu} on a GPU (default: %(default)s)",
    )
    devices = ", ".join(row.device + (f", {row.device}:1" if row.indexed else "") for row in PROVIDERS)
    encode.add_argument("--device", help=f"{devices} (default: the best of cpu and cuda that works)")
    encode.add_argument("--threads", type=int, help="threads on the CPU (default: as many as the process may use CPUs)")
    encode.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    encode.add_argument("--quiet", action="store_true", help="no progress bar")
    encode.set_defaults(command=_encode)

    info = commands.add_parser("info", help="show what a bundle is")
    info.add_argument("bundle", type=Path, help="bundle directory")
    info.add_argument("--json", action="store_true", help="print the manifest as it is")
    info.set_defaults(command=_info)

    doctor = commands.add_parser(
        "doctor",
        help="see what works on this machine",
        description="Show versions, CPU, devices, caches and a self-test, and what to do about what does not work. The "
        "exit status is 1 where something has to be done.",
    )
    doctor.add_argument("bundle", type=Path, nargs="?", help="also load this bundle and run its probe")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)

    build = commands.add_parser(
        "build",
        help="build a TensorRT engine ahead of serving",
        description="Build the TensorRT engines of a bundle for this GPU. That takes minutes, so loading a model does "
        "not do it.",
    )
    build.add_argument("bundle", type=Path, help="bundle directory")
    build.add_argument("--device", default="tensorrt", help="tensorrt or tensorrt:1 ... (default: tensorrt)")
    build.add_argument(
        "--memory-limit",
        type=int,
        metavar="BYTES",
        help="what the models that use it have as DeviceOptions.memory_limit (default: none)",
    )
    build.set_defaults(command=_build)

    models = commands.add_parser(
        "models",
        help="list published models, and recommend one",
        description="List the published models of the guide, or rank those that fit and say which to take.",
    )
    models.add_argument("--task", help="embedding, sparse or rerank")
    models.add_argument("--for", dest="use", metavar="USE", help="general, search, multilingual, rerank, ...")
    models.add_argument(
        "--language", action="append", default=[], metavar="CODE", help="a language it must know; may be repeated"
    )
    models.add_argument("--max-dim", type=int, metavar="N", help="vectors of at most N dimensions")
    preference = models.add_mutually_exclusive_group()
    preference.add_argument("--fast", dest="prefer", action="store_const", const="fast", help="rank by speed")
    preference.add_argument("--best", dest="prefer", action="store_const", const="best", help="rank by quality")
    models.add_argument("--json", action="store_true", help="print everything that is known, as JSON")
    models.set_defaults(command=_models)
    return parser


def _export(arguments: argparse.Namespace) -> None:
    with _exporter_needed():
        from stonnx_export import export
    path = export(
        arguments.model,
        arguments.output,
        dtype=arguments.dtype,
        calibrate=arguments.calibrate,
        pairs=arguments.pairs,
        source=arguments.source,
        overwrite=arguments.overwrite,
        name=arguments.name,
        revision=arguments.revision,
        show_progress=not arguments.quiet,
    )
    print(f"{path}: {_summary(read_manifest(path))}")


@contextmanager
def _exporter_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"The exporter needs {error.name or error}, which is not installed. "
            'Install it with: pip install "stonnx[cpu,export]"'
        ) from error


def _verify(arguments: argparse.Namespace) -> None:
    with _exporter_needed():
        from stonnx_export.recheck import verify_bundle
        from stonnx_export.verify import ToleranceError
    problem = None
    try:
        fidelity = verify_bundle(arguments.bundle, arguments.against, pairs=arguments.pairs, source=arguments.source)
    except ToleranceError as error:
        if error.fidelity is None:
            raise
        fidelity, problem = error.fidelity, error
    figures = dataclasses.asdict(fidelity)
    if arguments.json:
        # JSON has no NaN.
        figures = {name: None if value != value else value for name, value in figures.items()}
        print(json.dumps({"within_tolerance": problem is None, **figures}, indent=2))
    else:
        place = "within" if problem is None else "OUTSIDE"
        print(f"{arguments.bundle} is {place} its tolerance of {fidelity.compared_with}, on {fidelity.texts} texts:")
        for name, value in figures.items():
            if isinstance(value, float):
                bound = fidelity.tolerance.get(name)
                print(f"{name:<22}{value:<14.7g}{'' if bound is None else f'tolerance {bound:g}'}")
    if problem is not None:
        sys.stdout.flush()
        raise problem


def _encode(arguments: argparse.Namespace) -> None:
    from stonnx._encode_file import encode_file
    from stonnx._progress import progress_bar

    model = stonnx.SentenceTransformer(arguments.model, device=arguments.device, threads=arguments.threads)
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


def _info(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.bundle
    if not (directory / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(f"{directory} is no bundle: it has no {MANIFEST_NAME}.")
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    if arguments.json:
        print((directory / MANIFEST_NAME).read_text(encoding="utf-8"), end="")
        return
    for key, value in describe(manifest):
        print(f"{key:<16}{value}")


def _doctor(arguments: argparse.Namespace) -> int:
    from stonnx._doctor import as_data, as_text, diagnose

    findings = diagnose(arguments.bundle)
    print(json.dumps(as_data(findings), indent=2) if arguments.json else as_text(findings))
    return int(any(finding.problem for finding in findings))


def _build(arguments: argparse.Namespace) -> None:
    from stonnx._build import build

    def begin(route: str) -> None:
        print(
            f"Building the engine of the graph {route!r} of {arguments.bundle} for {arguments.device}. This can take "
            "minutes, without a sign of life.",
            file=sys.stderr,
            flush=True,
        )

    start = time.perf_counter()
    built = build(arguments.bundle, arguments.device, memory_limit=arguments.memory_limit, begin=begin)
    for route, directory, seconds in built:
        print(f"{route}: {directory}, {seconds:.1f} s", flush=True)
    print(f"Done after {time.perf_counter() - start:.1f} s.", file=sys.stderr)


def _models(arguments: argparse.Namespace) -> None:
    from stonnx._guide import Query, read_guide, recommend
    from stonnx._guide_table import as_json, table

    languages = tuple(arguments.language)
    query = Query(arguments.task, arguments.use, languages, arguments.prefer, arguments.max_dim)
    guide = read_guide()
    answer = recommend(guide, query) if query else None
    print((as_json if arguments.json else table)(guide, answer))


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """A manifest in lines that a person can read: (what, value)."""
    size = sum(entry.size for entry in manifest.files.values())
    lines = [
        ("model", manifest.source.name + (f" at {manifest.source.revision}" if manifest.source.revision else "")),
        ("task", manifest.task),
        ("architecture", manifest.architecture),
        ("modules", " > ".join(_module(module.type, module.settings) for module in manifest.modules)),
        ("precision", f"{manifest.precision} (recipe {manifest.recipe})"),
    ]
    if manifest.embedding_dimension is not None:
        unit = ", vectors of length 1" if manifest.normalized else ""
        lines.append(("dimensions", f"{manifest.embedding_dimension}{unit}"))
    if manifest.task != "rerank":
        lines.append(("similarity", manifest.similarity_fn_name or "cosine (not set by the model)"))
    for name, prompt in manifest.prompts.items():
        default = " (used by default)" if name == manifest.default_prompt_name else ""
        lines.append((f"prompt {name}", repr(prompt) + default))
    for name, route in manifest.routes.items():
        where = "" if len(manifest.routes) == 1 else f" ({name})"
        inputs = ", ".join(spec.name + ("?" if spec.optional else "") for spec in route.inputs)
        outputs = ", ".join(f"{spec.name} {list(spec.shape)}".replace("'", "") for spec in route.outputs)
        lines += [
            (f"graph{where}", f"{route.graph}, opset {route.opset}"),
            ("  inputs", inputs),
            ("  outputs", outputs),
            ("  longest text", f"{route.tokenizer.max_seq_length} tokens"),
        ]
    if manifest.fidelity is not None:
        lines.append(("fidelity", _fidelity(manifest)))
        lines.append(("  compared with", f"{manifest.fidelity.compared_with}, {manifest.fidelity.texts} texts"))
    lines.append(("files", f"{len(manifest.files)}, {size / 1e6:.1f} MB, hashes verified"))
    lines.append(("exported with", ", ".join(f"{name} {version}" for name, version in manifest.exporter.items())))
    return lines


def _summary(manifest: Manifest) -> str:
    size = sum(entry.size for entry in manifest.files.values())
    return f"{manifest.task}, {manifest.precision}, {size / 1e6:.1f} MB; {_fidelity(manifest)}"


def _fidelity(manifest: Manifest) -> str:
    fidelity = manifest.fidelity
    if fidelity is None:
        return "not verified"
    original = "PyTorch" if "PyTorch" in fidelity.compared_with else "the original"
    return (
        f"cosine to {original} mean {fidelity.cosine_mean:.7f}, lowest {fidelity.cosine_min:.7f}, "
        f"largest difference {fidelity.max_abs_difference:.1e}"
    )


def _module(name: str, settings: Any) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    return f"{name}({shown})" if shown else name
