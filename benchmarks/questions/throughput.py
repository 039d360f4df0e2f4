"""A quick look, for the demo: stonnx and PyTorch in turns in one process. The whole benchmark is ``make bench``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.texts import texts


@dataclass(frozen=True)
class Workload:
    """Texts of one length. ``words`` and the two special tokens make the tokens of a text."""

    name: str
    words: int
    count: int


@dataclass(frozen=True)
class Row:
    """The result of one workload. Rates are in texts a second, medians over the rounds."""

    workload: str
    tokens: int
    peer: float
    stonnx: float
    ratio: float
    lowest_cosine: float


def measure(
    workload: Workload,
    peer: Callable[[Sequence[str]], np.ndarray],
    ours: Callable[[Sequence[str]], np.ndarray],
    rounds: int,
) -> Row:
    """Time both on the same texts, in turns, and compare their results."""
    data = texts(workload.count, workload.words)
    expected, result = peer(data), ours(data)
    cosines = (expected * result).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(result, axis=1)
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(rounds):
        for name, encode in (("peer", peer), ("ours", ours)):
            start = time.perf_counter()
            encode(data)
            times[name].append(time.perf_counter() - start)
    # The median of the ratios of neighbouring times: anything that slows the machine down slows both of a pair.
    ratio = statistics.median(a / b for a, b in zip(times["peer"], times["ours"], strict=True))
    return Row(
        workload=workload.name,
        tokens=workload.words + 2,
        peer=workload.count / statistics.median(times["peer"]),
        stonnx=workload.count / statistics.median(times["ours"]),
        ratio=ratio,
        lowest_cosine=float(cosines.min()),
    )


def compare(checkpoint: Path, bundle: Path, rounds: int, workloads: Sequence[Workload]) -> list[Row]:
    """Compare the speed of a bundle with that of the checkpoint that it was made from."""
    import torch
    from sentence_transformers import SentenceTransformer as Original

    import stonnx

    ours = stonnx.SentenceTransformer(bundle)
    torch.set_num_threads(ours.info.threads)
    original = Original(str(checkpoint), device="cpu")
    return [
        measure(
            workload,
            lambda data: original.encode(list(data), show_progress_bar=False),
            lambda data: ours.encode(list(data)),
            rounds,
        )
        for workload in workloads
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'workload':<20}{'tokens':>8}{'PyTorch':>12}{'stonnx':>12}{'ratio':>8}{'lowest cosine':>16}"]
    lines += [
        f"{row.workload:<20}{row.tokens:>8}{row.peer:>10.1f}/s{row.stonnx:>10.1f}/s{row.ratio:>7.2f}x{row.lowest_cosine:>16.7f}"
        for row in rows
    ]
    return "\n".join(lines)
