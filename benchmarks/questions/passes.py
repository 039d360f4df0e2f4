"""What does each pass of the exporter gain? A bundle without it and the whole one, in turns on one thread.

    python -m benchmarks.questions.passes --checkpoint DIR --dtype int8
    python -m benchmarks.questions.passes --checkpoint DIR --dtype int8 --passes fuse_rms_norm,static_scales

A pass that others need cannot be left out; its row says why.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.in_turns import in_turns, ratio
from benchmarks.texts import texts
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._engine.engine import Engine
from stonnx_export import RECIPES, export
from stonnx_export.int8 import scales
from stonnx_export.recipes import Pass

_STATIC_SCALES = "static_scales"
# A batch of this size is one run on one thread.
_BATCH_SIZE = 32
_INPUTS = {"22 x 14": texts(22, 12), "4 x 75": texts(4, 73), "1 x 256": texts(1, 254)}


def names_of_passes(dtype: str) -> list[str]:
    """The passes of a recipe that can be left out, by the name of their file, in their order."""
    recipe = RECIPES[dtype]
    passes = [_name(run) for run in (*recipe.network_passes, *recipe.passes)]
    if issubclass(recipe.precision_of_weights or object, scales.Quantization):
        passes.append(_STATIC_SCALES)
    return list(dict.fromkeys(passes))


def _name(run: Pass) -> str:
    return run.__module__.rpartition(".")[2]


@contextmanager
def without(name: str, dtype: str) -> Iterator[None]:
    """Remove a pass from the recipe within the block."""
    if name == _STATIC_SCALES:
        # With this limit, static scales may not cost a product anything.
        with mock.patch.object(scales, "_STATIC_NOISE", 0.0):
            yield
        return
    recipe = RECIPES[dtype]
    network_passes, passes = (
        tuple(run for run in runs if _name(run) != name) for runs in (recipe.network_passes, recipe.passes)
    )
    with mock.patch.dict(RECIPES, {dtype: replace(recipe, network_passes=network_passes, passes=passes)}):
        yield


def encoder(bundle: Path) -> Callable[[Sequence[str]], None]:
    """A function that runs texts through a bundle of any task, on one thread."""
    route = Engine(open_bundle(bundle), device="cpu", threads=1).route()
    output = route.spec.outputs[0].name

    def encode(data: Sequence[str]) -> None:
        for _ in route.stream(data, [output], batch_size=_BATCH_SIZE):
            pass

    return encode


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dtype", choices=[*RECIPES], default="int8")
    parser.add_argument("--passes", help="names, with commas between them; default: all of the recipe")
    parser.add_argument("--rounds", type=int, default=60)
    chosen = parser.parse_args(arguments)
    allowed = names_of_passes(chosen.dtype)
    names = chosen.passes.split(",") if chosen.passes else allowed
    if unknown := sorted(set(names) - set(allowed)):
        parser.error(f"no such pass: {', '.join(unknown)}. Allowed: {', '.join(allowed)}")
    with tempfile.TemporaryDirectory() as directory:
        whole = export(chosen.checkpoint, Path(directory) / "whole", dtype=chosen.dtype)
        manifest = read_manifest(whole)
        print(f"times as fast with the pass as without it; whole: cosine {cosines(manifest)}", flush=True)
        print(f"{'':<20}{'fired':>6}" + "".join(f"{shape:>20}" for shape in _INPUTS) + f"{'cosine without':>20}")
        for name in names:
            # Some passes count their rewrites under another name.
            fired = manifest.rewrites.get(name, "")
            if fired == 0:
                print(f"{name:<20}{fired:>6}", flush=True)
                continue
            try:
                with without(name, chosen.dtype):
                    other = export(chosen.checkpoint, Path(directory) / "other", dtype=chosen.dtype, overwrite=True)
            except Exception as error:  # from the exporter, or from a later pass that needs this one
                print(f"{name:<20}{fired:>6}  needed: without it, {str(error).splitlines()[0]}", flush=True)
                continue
            row = compare(encoder(whole), encoder(other), chosen.rounds)
            print(f"{name:<20}{fired:>6}{row}{cosines(read_manifest(other)):>20}", flush=True)


def compare(whole: Callable[[Sequence[str]], None], other: Callable[[Sequence[str]], None], rounds: int) -> str:
    """How many times as fast the first is, on each of the inputs."""
    row = ""
    for data in _INPUTS.values():
        found = in_turns({"other": partial(other, data), "whole": partial(whole, data)}, rounds)
        row += f"{ratio(found, 'other', 'whole'):>20}"
    return row


def cosines(manifest: Manifest) -> str:
    """The mean and the lowest cosine to the original."""
    assert manifest.fidelity is not None
    return f"{manifest.fidelity.cosine_mean:.5f} / {manifest.fidelity.cosine_min:.4f}"


if __name__ == "__main__":
    main()
