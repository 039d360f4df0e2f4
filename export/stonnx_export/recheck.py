"""A bundle that exists already, compared with its checkpoint again: ``stonnx verify``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from stonnx._bundle import MANIFEST_NAME, Fidelity
from stonnx._engine import Engine
from stonnx._errors import ModelNotFoundError
from stonnx_export.pipeline import SourceKind, load_original
from stonnx_export.recipes import RECIPES
from stonnx_export.scored_pairs import read_pairs, spearman_drop
from stonnx_export.verify import check, verify


def verify_bundle(
    bundle: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    pairs: str | os.PathLike[str] | None = None,
    source: SourceKind = "auto",
) -> Fidelity:
    """Compare a bundle with a checkpoint on this machine, as the exporter did, with the tolerance of its recipe.

    Args:
        bundle: Directory of the bundle.
        against: The checkpoint that it was made from: directory or Hub id.
        pairs: A CSV file of scored pairs (text, text, number), for the drop of Spearman's correlation.
        source: What the original is made from, as for ``export``.

    Returns:
        The report.

    Raises:
        FidelityError: The bundle is outside its tolerance here.
        ModelNotFoundError: There is no bundle, or no checkpoint.
    """
    scored = read_pairs(pairs) if pairs is not None else None
    directory = Path(bundle)
    if not (directory / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(f"{directory} is no bundle: it has no {MANIFEST_NAME}.")
    engine = Engine(directory)
    original = load_original(os.fspath(against), engine.manifest.task, source)
    recipe = RECIPES.get(engine.manifest.recipe)
    stored = engine.manifest.fidelity
    # A recipe that a later version no longer has left its bounds in the bundle.
    tolerance = recipe.tolerance[engine.manifest.task] if recipe else stored.tolerance if stored else {}
    fidelity = verify(engine, original, tolerance, broad=recipe.lossy if recipe else True)
    if scored is not None:
        fidelity = dataclasses.replace(fidelity, spearman_drop=spearman_drop(engine, original, scored))
        check(fidelity)
    return fidelity
