"""Figures of closeness between two sets of vectors, and the tolerances that they must meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import Fidelity
from stonnx._errors import FidelityError


class ToleranceError(FidelityError):
    """A figure is outside its tolerance. A more precise bundle may be inside. ``fidelity`` is the whole report."""

    def __init__(self, message: str, fidelity: Fidelity | None = None) -> None:
        super().__init__(message)
        self.fidelity = fidelity


# The figures of a report, bounded from below or from above, and their names in messages.
_AT_LEAST = {
    "cosine_mean": "mean cosine",
    "cosine_p1": "1st percentile of the cosine",
    "cosine_min": "lowest cosine",
    "invariance_cosine": "lowest cosine of a text alone and in a batch or with padding",
    "neighbours_overlap": "overlap of the ten nearest neighbours",
    "active_overlap": "overlap of active dimensions",
    "rank_correlation": "rank correlation of the scores",
}

_AT_MOST = {
    "max_abs_difference": "max_abs_difference",
    "batch_invariance": "batch_invariance",
    "spearman_drop": "drop of Spearman's correlation x 100",
}

# What it means if batch_invariance is outside its tolerance. Only recipes that stay in float32 have one.
_READS_PADDING = (
    "The batch_invariance is the difference that other texts in a batch make to a text. The network reads the padding "
    "that longer texts bring, so the original gives several vectors for one text, too. MobileBERT does so if its "
    "embedding table has a row for the padding token that is not zero. Set that row to zero, which is what a text "
    "without padding sees: with torch.no_grad(): model.get_input_embeddings().weight[model.config.pad_token_id] = 0. "
    "Then save the checkpoint, and export it. Other networks that read padding cannot become bundles."
)


def neighbours_overlap(expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32], count: int = 10) -> float:
    """The share of each text's nearest neighbours by cosine that two sets of vectors [texts, dim] agree on."""
    found = []
    for vectors in (expected, actual):
        wide = vectors.astype(np.float64)
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
        similarity = wide @ wide.T
        np.fill_diagonal(similarity, -np.inf)
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(*map(np.ndarray.tolist, found), strict=True)]))


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two series; 1 if neither varies."""
    ranks: list[npt.NDArray[np.float64]] = []
    for series in map(np.asarray, (a, b)):
        _, places, counts = np.unique(series, return_inverse=True, return_counts=True)
        average: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
        ranks.append(average[places])
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float(np.ptp(ranks[0]) == np.ptp(ranks[1]))
    correlations: npt.NDArray[np.float64] = np.corrcoef(np.stack(ranks))
    return float(correlations[0, 1])


def _worst(reports: list[Fidelity]) -> Fidelity:
    """One report for all routes: the worst of each figure. numpy's minimum, unlike Python's, keeps a NaN."""
    worst: dict[str, float | None] = {}
    for name in (*_AT_LEAST, *_AT_MOST):
        found = [value for report in reports if (value := getattr(report, name)) is not None]
        worst[name] = None if not found else float((np.min if name in _AT_LEAST else np.max)(found))
    return dataclasses.replace(reports[0], texts=sum(report.texts for report in reports), **worst)  # type: ignore[arg-type]


def measure(
    expected: npt.NDArray[np.float32],
    batched: npt.NDArray[np.float32],
    alone: npt.NDArray[np.float32],
    padded: npt.NDArray[np.float32],
    tolerance: Mapping[str, float],
    compared_with: str,
) -> Fidelity:
    """The fidelity report of vectors [texts, dim]. Differences are relative to the largest value if it is over 1.

    ``padded`` [paddings, some texts, dim] are vectors that must not depend on the padding. The first have no padding.
    """
    scale = max(1.0, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):  # infinities become NaN, which check() refuses
        cosines = np.concatenate([_cosines(expected, batched), _cosines(expected, alone)])
        differences = np.abs([expected - batched, expected - alone, batched - alone]).max(axis=(1, 2)) / scale
        invariance = np.concatenate([_cosines(batched, alone), *(_cosines(padded[0], more) for more in padded[1:])])
        by_padding = float(np.abs(padded - padded[0]).max()) / scale
    return Fidelity(
        compared_with=compared_with,
        texts=len(expected),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        max_abs_difference=float(differences[:2].max()),
        # numpy's maximum, unlike Python's, keeps a NaN.
        batch_invariance=float(np.maximum(differences[2], by_padding)),
        tolerance=tolerance,
        cosine_p1=float(np.percentile(cosines, 1)),
        invariance_cosine=float(invariance.min()),
    )


def reaches(fidelity: Fidelity, aim: Mapping[str, float]) -> bool:
    """Whether a report is as good as an aim, which has lowest values of some figures."""
    return all(getattr(fidelity, name) >= value for name, value in aim.items())


def check(fidelity: Fidelity) -> None:
    """Raise ToleranceError if a report is outside its tolerance."""
    problems, reads_padding = [], False
    for name, limit in fidelity.tolerance.items():
        value = getattr(fidelity, name)
        if value is None:  # the comparison did not give this figure
            continue
        if name in _AT_LEAST and not value >= limit:  # a NaN is a problem too
            problems.append(f"{_AT_LEAST[name]} {value:.7f}, allowed is at least {limit}")
        elif name in _AT_MOST and not value <= limit:
            problems.append(f"{_AT_MOST[name]} {value:.3g}, allowed is at most {limit:.3g}")
            reads_padding |= name == "batch_invariance"
    if problems:
        found = f"The bundle differs from {fidelity.compared_with}: {'; '.join(problems)}."
        raise ToleranceError(f"{found} {_READS_PADDING}" if reads_padding else found, fidelity)


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    # Two zero vectors are equal. A zero vector and another one have the cosine 0.
    both_zero = (norms == 0) & ~wide.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, (wide * other).sum(axis=1) / np.maximum(norms, 1e-30))
    return cosines
