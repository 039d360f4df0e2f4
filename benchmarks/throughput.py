"""How many texts a second, beside sentence-transformers with PyTorch? Same weights, texts, threads and process.

    python -m benchmarks.throughput --checkpoint DIR --bundle DIR

Both take turns, several rounds; the table has the medians. Ratios hold on a noisy machine, absolute figures do not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    """What one workload gave. Rates in texts a second, latencies in milliseconds, both medians over the rounds."""

    workload: str
    tokens: int
    peer: float
    stonnx: float
    ratio: float
    lowest_cosine: float


WORKLOADS = (
    Workload("short sentences", 12, 512),
    Workload("passages", 73, 128),
    Workload("long texts", 254, 32),
    Workload("one text at a time", 12, 40),
)


def measure(
    workload: Workload,
    peer: Callable[[Sequence[str]], np.ndarray],
    ours: Callable[[Sequence[str]], np.ndarray],
    rounds: int,
) -> Row:
    """Time both on the same texts, in turns, and compare what they return."""
    data = texts(workload.count, workload.words)
    pieces = [[text] for text in data] if workload.name.startswith("one text") else [data]
    expected = np.concatenate([peer(piece) for piece in pieces])
    result = np.concatenate([ours(piece) for piece in pieces])
    cosines = (expected * result).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(result, axis=1)
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(rounds):
        for name, encode in (("peer", peer), ("ours", ours)):
            start = time.perf_counter()
            for piece in pieces:
                encode(piece)
            times[name].append(time.perf_counter() - start)
    # The ratio of each pair of neighbours, then the median: what slows the machine down slows both of a pair.
    ratio = statistics.median(a / b for a, b in zip(times["peer"], times["ours"], strict=True))
    return Row(
        workload=workload.name,
        tokens=workload.words + 2,
        peer=workload.count / statistics.median(times["peer"]),
        stonnx=workload.count / statistics.median(times["ours"]),
        ratio=ratio,
        lowest_cosine=float(cosines.min()),
    )


def compare(checkpoint: Path, bundle: Path, rounds: int, workloads: Sequence[Workload] = WORKLOADS) -> list[Row]:
    """Measure a bundle beside the checkpoint that it was made from."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="the PyTorch checkpoint (default: the embedded model)")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle made from it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    from examples.semantic_search import embedded_checkpoint

    rows = compare(arguments.checkpoint or embedded_checkpoint(), arguments.bundle, arguments.rounds)
    print(f"{platform.machine()}, Python {platform.python_version()}, {arguments.rounds} rounds")
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
