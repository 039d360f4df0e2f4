"""``stonnx export`` and ``stonnx verify``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from stonnx._arguments import check_choice
from stonnx._bundle.manifest import MANIFEST_NAME, Manifest, read_manifest
from stonnx._errors import InvalidArgumentError
from stonnx._exporter import exporter_needed
from stonnx._tasks import DTYPES, TASKS
from stonnx.cli._commands import Commands
from stonnx.cli.info import _fidelity


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx export``."""
    parser = commands.add_parser("export", help="turn a checkpoint into a bundle")
    parser.add_argument("model", help="checkpoint directory or Hub id")
    parser.add_argument("-o", "--output", type=Path, help="directory of the bundle (default: MODEL-DTYPE)")
    parser.add_argument(
        "--dtype",
        default="fp32",
        help=f"recipe of the bundle: {', '.join(DTYPES[:-1])} or {DTYPES[-1]} (default: fp32)",
    )
    parser.add_argument(
        "--task",
        choices=tuple(TASKS),
        help="the task of the bundle, which decides its class (default: what the checkpoint says)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="calibrate int8 with these texts, one a line (default: none needed)",
    )
    parser.add_argument(
        "--pairs", type=Path, metavar="CSV", help="report the loss on scored pairs: text, text, number in each line"
    )
    parser.add_argument(
        "--source",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="take the network from PyTorch weights or from an ONNX file of the checkpoint, which does not need "
        "PyTorch (default: auto, PyTorch weights if possible)",
    )
    parser.add_argument("--name", help="how the bundle names its source (default: MODEL)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code in the checkpoint's repository; read it first (the bundle never needs it)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    parser.add_argument("--quiet", action="store_true", help="do not print the stages")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Export the model, and print how close it is."""
    check_choice("dtype", arguments.dtype, DTYPES)
    _refuse_bundle(Path(arguments.model))
    with exporter_needed():
        from stonnx_export import export
    path = export(
        arguments.model,
        arguments.output,
        task=arguments.task,
        dtype=arguments.dtype,
        calibrate=arguments.calibrate,
        pairs=arguments.pairs,
        source=arguments.source,
        overwrite=arguments.overwrite,
        name=arguments.name,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        show_progress=not arguments.quiet,
    )
    print(f"{path}: {_summary(read_manifest(path))}")


def _refuse_bundle(model: Path) -> None:
    """Raise an error that says what to type if the model is an exported bundle already."""
    if (model / MANIFEST_NAME).is_file():
        manifest = read_manifest(model)
        raise InvalidArgumentError(
            f"{model} is a bundle already, of {manifest.source.name} in {manifest.recipe}. Look at it with: "
            f"stonnx info {model}. Another precision is made from the checkpoint: "
            f"stonnx export {manifest.source.name} --dtype DTYPE (one of {', '.join(DTYPES)})"
        )


def add_verify_parser(commands: Commands) -> None:
    """The arguments of ``stonnx verify``."""
    parser = commands.add_parser("verify", help="compare a bundle with its checkpoint again, on this machine")
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--against", required=True, metavar="CHECKPOINT", help="checkpoint directory or Hub id")
    parser.add_argument(
        "--pairs", type=Path, metavar="CSV", help="report the loss on scored pairs: text, text, number in each line"
    )
    parser.add_argument(
        "--source", choices=("auto", "torch", "onnx"), default="auto", help="what computes the original (default: auto)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code in the checkpoint's repository")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(command=run_verify)


def run_verify(arguments: argparse.Namespace) -> None:
    """Measure the bundle again, and print the report."""
    with exporter_needed():
        from stonnx_export.recheck import verify_bundle
        from stonnx_export.verify.figures import ToleranceError
    problem = None
    try:
        fidelity = verify_bundle(
            arguments.bundle,
            arguments.against,
            pairs=arguments.pairs,
            source=arguments.source,
            trust_remote_code=arguments.trust_remote_code,
        )
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


def _summary(manifest: Manifest) -> str:
    size = sum(entry.size for entry in manifest.files.values())
    return f"{manifest.task}, {manifest.precision}, {size / 1e6:.1f} MB; {_fidelity(manifest, manifest.fidelity)}"
