"""``stonnx info``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import (
    MANIFEST_NAME,
    Fidelity,
    ImageTower,
    Kernels,
    Manifest,
    Source,
    TokenizerSpec,
    read_manifest,
)
from stonnx._tasks import TASKS
from stonnx.cli._arguments import require_bundle
from stonnx.cli._commands import Commands


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx info``."""
    parser = commands.add_parser("info", help="show what a bundle is")
    parser.add_argument("bundle", help="bundle directory")
    parser.add_argument("--json", action="store_true", help="print the manifest as it is")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the manifest, for a person or as it is."""
    # A path loses a leading "./", which tells a path from a model's name.
    require_bundle(arguments.bundle, "info")
    directory = Path(arguments.bundle)
    manifest = read_manifest(directory)
    check_files(directory, manifest)
    if arguments.json:
        print((directory / MANIFEST_NAME).read_text(encoding="utf-8"), end="")
        return
    for key, value in describe(manifest):
        print(f"{key:<16}{value}")


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """A manifest in lines that a person can read: (what, value)."""
    size = sum(entry.size for entry in manifest.files.values())
    lines = [
        ("model", _named(manifest.source)),
        *([("adapted model", _named(manifest.source.base))] if manifest.source.base else []),
        ("task", manifest.task),
        ("architecture", manifest.architecture),
        ("modules", " > ".join(_module(module.type, module.settings) for module in manifest.modules)),
        ("precision", f"{manifest.precision} (recipe {manifest.recipe})"),
    ]
    if manifest.embedding_dimension is not None:
        unit = ", vectors of length 1" if manifest.normalized else ""
        lines.append(("dimensions", f"{manifest.embedding_dimension}{unit}"))
    default = TASKS[manifest.task].similarity
    if default is not None:
        lines.append(("similarity", manifest.similarity_fn_name or f"{default} (not set by the model)"))
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
            *_of_tasks(route.tokenizer),
        ]
    lines += _kernels(manifest.kernels)
    if manifest.fidelity is not None:
        lines.append(("fidelity", _fidelity(manifest, manifest.fidelity)))
        lines.append(("  compared with", f"{manifest.fidelity.compared_with}, {manifest.fidelity.texts} texts"))
        half = manifest.fidelity.as_loaded
        if half is not None:
            figures = f"cosine mean {half.cosine_mean:.6f}, lowest {half.cosine_min:.6f}"
            lines.append((f"  beside {half.dtype}", f"{figures}, as sentence-transformers loads the checkpoint"))
    if manifest.image is not None:
        lines += _of_images(manifest, manifest.image)
    lines.append(("files", f"{len(manifest.files)}, {size / 1e6:.1f} MB, hashes verified"))
    lines.append(("exported with", ", ".join(f"{name} {version}" for name, version in manifest.exporter.items())))
    return lines


def _of_tasks(tokenizer: TokenizerSpec) -> list[tuple[str, str]]:
    """What is different for texts that are called queries and documents."""
    lines = []
    for name, limit in (("query", tokenizer.query_length), ("document", tokenizer.document_length)):
        if limit is not None:
            lines.append((f"  {name}", f"up to {limit} tokens"))
    if tokenizer.expansion is not None:
        attended = "which other tokens attend to" if tokenizer.expansion.attend else "which no other token attends to"
        lines.append(("  expansion", f"queries are filled up to {tokenizer.expansion.length} tokens, {attended}"))
    return lines


def _named(source: Source) -> str:
    return source.name + (f" at {source.revision}" if source.revision else "")


def _of_images(manifest: Manifest, tower: ImageTower) -> list[tuple[str, str]]:
    """The graph that reads images."""
    height, width = tower.inputs[0].shape[2:]
    graphs = {name: manifest.files[name].size / 1e6 for name in manifest.graphs}
    lines = [
        ("graph (images)", f"{tower.graph}, opset {tower.opset}, {tower.precision}"),
        ("  images", f"{height} x {width} pixels, the work of a text of {tower.tokens} tokens"),
        ("  outputs", ", ".join(f"{spec.name} {list(spec.shape)}".replace("'", "") for spec in tower.outputs)),
        ("  sizes", ", ".join(f"{name} {size:.1f} MB" for name, size in graphs.items())),
        *_kernels(tower.kernels),
    ]
    if tower.fidelity is not None:
        lines.append(("fidelity", f"{_fidelity(manifest, tower.fidelity)}, {tower.fidelity.texts} images"))
    return lines


def _fidelity(manifest: Manifest, fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "not verified"
    original = "PyTorch" if "PyTorch" in fidelity.compared_with else "the original"
    figures = (
        f"cosine to {original} mean {fidelity.cosine_mean:.7f}, lowest {fidelity.cosine_min:.7f}, "
        f"largest difference {fidelity.max_abs_difference:.1e}"
    )
    if TASKS[manifest.task].kind == "rows" and fidelity.rank_correlation is not None:
        figures += f", rank correlation of MaxSim {fidelity.rank_correlation:.5f}"
    return figures


def _kernels(kernels: Kernels | None) -> list[tuple[str, str]]:
    """The blocks of the graphs that native kernels can run, and why they cannot run the others."""
    if kernels is None:
        return []
    blocks = ", ".join(f"{count} {name}" for name, count in kernels.blocks.items()) or "none of its blocks"
    floats = any(name.endswith("Float") for name in kernels.blocks)
    only = ", those of float32 in bfloat16: DeviceOptions(bfloat16=True)" if floats else ""
    return [
        ("native kernels", f"can run {blocks} (operators of version {kernels.operators}){only}"),
        *(("  stock", f"{count} of its blocks: {reason}") for reason, count in kernels.stock.items()),
    ]


def _module(name: str, settings: Any) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    return f"{name}({shown})" if shown else name
