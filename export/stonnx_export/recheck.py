"""Compares an existing bundle with its checkpoint again: ``stonnx verify``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import MANIFEST_NAME, Fidelity, ImageTower, Manifest
from stonnx._engine.engine import Engine
from stonnx._errors import ModelNotFoundError, UnsupportedError
from stonnx_export.checkpoint.repository_code import Trust
from stonnx_export.originals.load import SourceKind, load_original
from stonnx_export.recipes import RECIPES
from stonnx_export.verify.compare import compare
from stonnx_export.verify.figures import check
from stonnx_export.verify.images import ImageReference, verify_images
from stonnx_export.verify.scored_pairs import read_pairs, spearman_drop
from stonnx_export.verify.sixteen_bits import compare_as_loaded


def verify_bundle(
    bundle: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    pairs: str | os.PathLike[str] | None = None,
    source: SourceKind = "auto",
    trust_remote_code: bool = False,
) -> Fidelity:
    """Compare a bundle with a checkpoint on this machine, as the exporter did, with the tolerance of its recipe.

    Args:
        bundle: Directory of the bundle.
        against: The checkpoint that it was made from: directory or Hub id.
        pairs: A CSV file of scored pairs (text, text, number), for the drop of Spearman's correlation.
        source: The source of the original, as for ``export``.
        trust_remote_code: Whether code of the checkpoint's repository may be run, as for ``export``.

    Returns:
        The report.

    Raises:
        ToleranceError: The bundle is outside its tolerance here. ``fidelity`` of the error is the whole report.
        FidelityError: Token ids differ from the checkpoint's, so that nothing else can be compared.
        ModelNotFoundError: The bundle or the checkpoint does not exist.
        UnsupportedError: Neither this version nor the bundle has a tolerance for its recipe.
    """
    scored = read_pairs(pairs) if pairs is not None else None
    directory = Path(bundle)
    if not (directory / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(f"{directory} is not a bundle: it has no {MANIFEST_NAME}.")
    engine = Engine(open_bundle(directory))
    trust = Trust() if trust_remote_code else None
    with load_original(os.fspath(against), engine.manifest.task, source, trust) as original:
        fidelity = compare(engine, original, _tolerance(engine.manifest))
        if scored is not None:
            fidelity = dataclasses.replace(fidelity, spearman_drop=spearman_drop(engine, original, scored))
        fidelity = dataclasses.replace(fidelity, as_loaded=compare_as_loaded(engine, original))
        images, tower = original.images(), engine.manifest.image
        if images is not None and tower is not None:
            verify_images(engine, images, ImageReference.of(images), _of_images(engine.manifest, tower), original.name)
    check(fidelity)
    return fidelity


def _tolerance(manifest: Manifest) -> Mapping[str, float]:
    """The bounds of a bundle's recipe."""
    recipe = RECIPES.get(manifest.recipe)
    if recipe is not None:
        return recipe.tolerance[manifest.task]
    # If this version no longer has the recipe, its bounds are still in the bundle.
    if manifest.fidelity is not None and manifest.fidelity.tolerance:
        return manifest.fidelity.tolerance
    raise UnsupportedError(
        f"The bundle was made with the recipe {manifest.recipe!r}, and neither this version of stonnx nor the bundle "
        f"says how far from the original that may be. Known: {', '.join(RECIPES)}. Export the model again with one of "
        "them: stonnx export MODEL --dtype RECIPE"
    )


def _of_images(manifest: Manifest, tower: ImageTower) -> Mapping[str, float]:
    """The bounds of a graph of images. Bundles of before there were recipes for it have it in float32."""
    recipe = manifest.recipe if tower.precision == manifest.precision else "fp32"
    return _tolerance(dataclasses.replace(manifest, recipe=recipe))
