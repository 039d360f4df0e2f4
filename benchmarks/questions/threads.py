"""How long should idle threads wait for work? Latency, CPU time when idle, and two models in turns, for several times.

    python -m benchmarks.questions.threads --bundle DIR

The settings take turns in one process, so that ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import stonnx
from benchmarks.texts import texts
from stonnx._limits import Limits
from stonnx._model.model import with_limits

# Microseconds; the first is onnxruntime's own.
_SETTINGS = (16_000, 1_000, 200, Limits.spin_microseconds, 50, 1)


def load(bundle: Path, microseconds: int) -> stonnx.SentenceTransformer:
    """A model whose idle threads wait for this long."""
    return with_limits(stonnx.SentenceTransformer, spin_microseconds=microseconds)(bundle, device="cpu")


def seconds(work: Callable[[], object], calls: int) -> list[float]:
    """The time of each of several successive calls, after one that is not counted."""
    work()
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    short, passages = texts(1, 12), texts(8, 73)
    pairs = {setting: (load(arguments.bundle, setting), load(arguments.bundle, setting)) for setting in _SETTINGS}
    latencies: dict[int, list[float]] = {setting: [] for setting in _SETTINGS}
    idle: dict[int, list[float]] = {setting: [] for setting in _SETTINGS}
    ratios: dict[int, list[float]] = {setting: [] for setting in _SETTINGS}
    for _ in range(arguments.rounds):
        for setting, (first, second) in pairs.items():
            one = seconds(lambda model=first: model.encode(short), 8)  # type: ignore[misc]
            before = time.process_time()
            time.sleep(0.05)
            idle[setting].append(time.process_time() - before)
            other = seconds(lambda model=second: model.encode(passages), 4)  # type: ignore[misc]
            time.sleep(0.05)
            both = seconds(lambda a=first, b=second: (a.encode(short), b.encode(passages)), 4)  # type: ignore[misc]
            time.sleep(0.05)
            latencies[setting] += one
            ratios[setting].append(statistics.mean(both) / (statistics.mean(one) + statistics.mean(other)))
    print(f"{arguments.bundle.name}, {first.info.threads} threads")
    print("waiting, us   one text, ms: p10     p50   CPU after a call, ms   two in turns / alone")
    for setting in _SETTINGS:
        times = np.array(latencies[setting]) * 1e3
        print(
            f"{setting:>11}{np.percentile(times, 10):>20.2f}{np.median(times):>8.2f}"
            f"{statistics.median(idle[setting]) * 1e3:>23.2f}{statistics.median(ratios[setting]):>23.2f}"
        )


if __name__ == "__main__":
    main()
