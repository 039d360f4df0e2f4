"""The finished bundle, opened by its public class and called as its users will call it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stonnx
from stonnx._bundle.manifest import DEFAULT_ROUTE, Manifest
from stonnx._errors import FidelityError, StonnxError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx_export.originals.original import Original
from stonnx_export.texts import CALLED_TEXTS

# Results go through more steps than the vectors that were verified: an activation, a similarity.
_SLACK = 10


def try_bundle(directory: Path, manifest: Manifest, original: Original, tolerance: Mapping[str, float]) -> None:
    """Open a bundle, and compare the results that callers get with those of the original.

    This compares settings of the model as a whole (prompts, truncated vectors, active dimensions, activations). The
    exporter has verified before how close the vectors are.

    Args:
        directory: The bundle.
        manifest: Its manifest.
        original: The original that it was made from.
        tolerance: Bounds of the bundle's recipe. Values are compared if it bounds their difference.

    Raises:
        FidelityError: The bundle does not load, cannot be called, or gives other results.
    """
    name = TASKS[manifest.task].class_name
    try:
        model: Any = getattr(stonnx, name)(directory, device="cpu")
        results = {method: _call(model, method, manifest) for method in _methods(manifest)}
        facts = {fact: getattr(model, fact) for fact in original.facts()}
    except StonnxError as error:
        raise FidelityError(
            f"The finished bundle cannot be used: stonnx.{name} raised {type(error).__name__}: {error}"
        ) from error
    for fact, expected in original.facts().items():
        if facts[fact] != expected:
            raise FidelityError(f"The finished bundle has {fact}={facts[fact]!r}, and the original {expected!r}.")
    for method, result in results.items():
        # A vector that is as near to two clusters can fall into either.
        bound = None if manifest.token_poolings else tolerance.get("max_abs_difference")
        _compare(method, result, original.results(method, _texts(manifest)), bound)


def _methods(manifest: Manifest) -> list[str]:
    if manifest.task == "rerank":
        return ["predict"]
    methods = [] if manifest.needs_task else ["encode"]
    routes = manifest.routes.keys()
    return [*methods, *(f"encode_{task}" for task in ("query", "document") if {task, DEFAULT_ROUTE} & routes)]


def _texts(manifest: Manifest) -> list[Text]:
    texts = list(CALLED_TEXTS)
    return list(zip(texts, texts[1:] + texts[:1], strict=True)) if manifest.task == "rerank" else [*texts]


def _call(model: Any, method: str, manifest: Manifest) -> npt.NDArray[np.float32]:
    """The results of a method for some texts, as rows [texts, features], or the rows of all texts."""
    options = {"convert_to_sparse_tensor": False} if manifest.task == "sparse" else {}
    result = getattr(model, method)(_texts(manifest), show_progress_bar=False, **options)
    if TASKS[manifest.task].row_mask is not None:
        return np.concatenate(result)
    return np.asarray(result, dtype=np.float32).reshape(len(CALLED_TEXTS), -1)


def _compare(
    method: str, result: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], bound: float | None
) -> None:
    if result.shape != expected.shape:
        raise FidelityError(
            f"{method} of the finished bundle gives the shape {result.shape}, and the original's {expected.shape}."
        )
    if not np.isfinite(result).all():
        raise FidelityError(f"{method} of the finished bundle gives values that are not finite.")
    if bound is None or not expected.size:
        return
    difference = float(np.abs(result - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not difference <= bound * _SLACK:
        raise FidelityError(
            f"{method} of the finished bundle differs from the original's by {difference:.3g}, though its vectors do "
            "not. A setting of the checkpoint was read in another way."
        )
