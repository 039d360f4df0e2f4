"""How close results are to those of fp32 PyTorch, and whether they depend on the other texts of a batch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from benchmarks.peers.systems import Inputs, Task
from benchmarks.texts import ODD_TEXTS, mixed_texts, sentences, texts

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sample:
    """Inputs to measure accuracy on, and for embeddings pairs of them with the similarity that people gave."""

    inputs: Inputs
    pairs: Sequence[tuple[int, int]] = ()
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class Accuracy:
    """Figures of one system for one task. A figure that does not apply to the task is None.

    Attributes:
        cosine_mean, cosine_min: The cosine of vectors to those of fp32 PyTorch.
        overlap: Share of the ten nearest neighbours, or for SPLADE of the active words, that are the same.
        spearman_drop: Points (of 100) lost on the scored pairs; for a reranker, 100 minus the rank correlation of its
            scores with those of fp32 PyTorch.
        difference: Largest difference of a reranker's scores.
        invariance: Lowest cosine of a vector computed alone to the same vector computed in a batch; for a reranker, 1
            minus the largest difference of a score.
    """

    cosine_mean: float | None = None
    cosine_min: float | None = None
    overlap: float | None = None
    spearman_drop: float | None = None
    difference: float | None = None
    invariance: float | None = None


def sample(task: Task, stsb: Path | None) -> Sample:
    """The texts of a CSV of sentence, sentence, score; without a CSV, built-in sentences without scores."""
    if task == "rerank":
        return Sample([(sentences(1, seed=1)[0], text) for text in [*sentences(150, seed=2), *texts(50, 60)]])
    if task == "sparse":
        return Sample([*sentences(60, seed=2), *mixed_texts(20)])
    if stsb is None:
        return Sample(sentences(1000, seed=2))
    with stsb.open(encoding="utf-8", newline="") as file:
        rows = [(first, second, float(score)) for first, second, score in csv.reader(file)]
    index: dict[str, int] = {}
    pairs = [(index.setdefault(a, len(index)), index.setdefault(b, len(index))) for a, b, _ in rows]
    return Sample(list(index), pairs, [score for _, _, score in rows])


def invariance_inputs(task: Task) -> tuple[Inputs, list[list[int]], list[list[list[int]]]]:
    """Inputs of all lengths and kinds, first each in a batch of its own, then in two ways to share batches."""
    kinds = [*sentences(16, seed=3), *ODD_TEXTS, *mixed_texts(12, seed=1), *texts(4, 254, seed=2)]
    inputs: Inputs = [(kinds[0], text) for text in kinds] if task == "rerank" else kinds
    everyone = list(range(len(inputs)))
    # Each of these batches takes every fifth input, so that it mixes short and long ones, in other company than before.
    return inputs, [[index] for index in everyone], [[everyone], [everyone[start::5] for start in range(5)]]


def compare(task: Task, data: Sample, reference: Array, rows: Array) -> Accuracy:
    """Compare rows [n, d] or scores [n] with those of the reference."""
    if task == "rerank":
        drop = 100 * (1 - float(spearmanr(reference, rows).statistic))
        return Accuracy(spearman_drop=drop, difference=float(np.abs(reference - rows).max()))
    close = cosines(reference, rows)
    if task == "sparse":
        both, either = ((reference > 0) & (rows > 0)).sum(1), ((reference > 0) | (rows > 0)).sum(1)
        overlap = float((both / np.maximum(1, either)).mean())
    else:
        overlap = neighbour_overlap(reference, rows)
    lost = 100 * (_spearman(data, reference) - _spearman(data, rows)) if data.scores else None
    return Accuracy(float(close.mean()), float(close.min()), overlap, lost)


def agreement(task: Task, alone: Array, together: Array) -> float:
    """``Accuracy.invariance`` for one way to share batches."""
    if task == "rerank":
        return 1 - float(np.abs(alone - together).max())
    return float(cosines(alone, together).min())


def cosines(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """The cosine of each row of one array to the same row of the other; 1 for two rows of zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    empty = ~a.any(1) & ~b.any(1)
    result: npt.NDArray[np.float64] = np.where(empty, 1.0, (a * b).sum(1) / np.where(norms > 0, norms, 1.0))
    return result


def neighbour_overlap(reference: Array, rows: Array, count: int = 10) -> float:
    """The mean share of each row's nearest rows, itself excluded, that are the same in both arrays."""

    def nearest(vectors: Array) -> npt.NDArray[np.intp]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argpartition(-similarity, count, axis=1)[:, :count]

    shared = [len(set(a) & set(b)) for a, b in zip(nearest(reference), nearest(rows), strict=True)]
    return float(np.mean(shared)) / count


def _spearman(data: Sample, rows: Array) -> float:
    first, second = np.array(data.pairs).T
    return float(spearmanr(cosines(rows[first], rows[second]), data.scores).statistic)
