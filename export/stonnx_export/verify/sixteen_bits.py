"""Compares the bundle of a 16-bit checkpoint with sentence-transformers' default, which computes in 16 bits."""

from __future__ import annotations

import numpy as np

from stonnx._bundle.manifest import SixteenBits
from stonnx._engine.engine import Engine
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx_export.originals.original import Original
from stonnx_export.texts import TEXTS, sentences
from stonnx_export.verify.compare import outputs

# This many of the built-in sentences show the difference. Networks in 16 bits are slow on many CPUs.
_SENTENCES = 32


def compare_as_loaded(engine: Engine, original: Original) -> SixteenBits | None:
    """The figures of a checkpoint that the original loads in 16 bits; None for any other.

    The exporter does not refuse a bundle for them: they show the original's own loss of precision.
    """
    manifest = engine.manifest
    name = manifest.default_route
    texts: list[Text] = [*TEXTS, *sentences()[:_SENTENCES]]
    if TASKS[manifest.task].reads_pairs:
        texts = list(zip(texts, texts[7:] + texts[:7], strict=True))  # type: ignore[arg-type]
    found = original.outputs_as_loaded(name, texts)
    if found is None:
        return None
    dtype, expected = found
    actual = outputs(engine.named_routes[name], manifest.task, texts)
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(expected - actual).max()) / scale
    if TASKS[manifest.task].gives_labels:
        # As in the report: the cosine of each label's logits over all pairs.
        expected, actual = expected.T, actual.T
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(actual, axis=1)
    cosines = (expected.astype(np.float64) * actual).sum(axis=1)[norms > 0] / norms[norms > 0]
    if not cosines.size:
        cosines = np.ones(1)
    return SixteenBits(dtype, len(texts), float(cosines.mean()), float(cosines.min()), difference)
