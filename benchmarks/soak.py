"""Hours in minutes: random texts from many threads, models of all three tasks, and nothing may drift.

    python -m benchmarks.soak --embedding DIR [--sparse DIR] [--rerank DIR] [--minutes 20] [-o docs/soak.md]

Every thread calls a random model with random texts: fuzzed Unicode, lengths from 0 to 100,000 characters. A fixed set
of inputs comes back every so often, and its results have to equal those of the first time; resident memory has to stay
on a plateau. Prints a report, and exits with 1 where anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import stonnx
from benchmarks.memory import resident

# Ranges of characters to draw from: most of what tokenizers treat in their own way.
_ALPHABETS = (
    (0x20, 0x7F), (0x61, 0x7B), (0xA0, 0x250), (0x300, 0x370), (0x400, 0x500), (0x590, 0x6FF), (0x900, 0x980),
    (0x1100, 0x1200), (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xE100),
    (0x1F300, 0x1F700), (0x0, 0x20),
)  # fmt: skip
# Calls between two returns of the fixed inputs.
_EVERY = 1000
# The second half of the run may take this much more than the first did above the loaded models.
_GROWTH = 0.25
# Vectors of the same text from runs of other shapes, in the last bits.
_TOLERANCE = 1e-4


def random_text(generator: np.random.Generator) -> str:
    """Mostly short, now and then up to 100,000 characters, sometimes empty."""
    length = int(np.exp(generator.uniform(0, np.log(400)))) - 1
    if generator.random() < 0.005:
        length = int(generator.integers(1_000, 100_001))
    low, high = _ALPHABETS[generator.integers(len(_ALPHABETS))]
    points = generator.integers(low, high, length)
    points[generator.random(length) < 0.15] = 0x20
    return "".join(map(chr, points))


class Soak:
    """The models, and what the threads found."""

    def __init__(self, models: Sequence[tuple[str, Callable[[list[Any]], Any]]], seconds: float) -> None:
        self.models = models
        self.stop = time.monotonic() + seconds
        self.fixed = [self._inputs(name, np.random.default_rng(1), 12) for name, _ in models]
        self.first = [self._dense(run(inputs)) for (_, run), inputs in zip(models, self.fixed, strict=True)]
        self.calls = self.texts = self.returns = 0
        self.largest_difference = 0.0
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def work(self, number: int) -> None:
        """One thread: until the time is up, or anything fails."""
        generator = np.random.default_rng([2, number])
        while time.monotonic() < self.stop and not self.errors:
            which = int(generator.integers(len(self.models)))
            name, run = self.models[which]
            try:
                inputs = self._inputs(name, generator, int(generator.integers(1, 17)))
                result = self._dense(run(inputs))
                if len(result) != len(inputs) or not np.isfinite(result).all():
                    raise ValueError(f"{len(result)} rows for {len(inputs)} inputs, or numbers that are not finite")
                with self._lock:
                    self.calls += 1
                    self.texts += len(inputs)
                    again = self.calls % _EVERY == 0
                if again:
                    self._come_back()
            except Exception as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")

    def _come_back(self) -> None:
        for (name, run), inputs, first in zip(self.models, self.fixed, self.first, strict=True):
            difference = float(np.abs(self._dense(run(inputs)) - first).max())
            with self._lock:
                self.returns += 1
                self.largest_difference = max(self.largest_difference, difference)
            if not difference <= _TOLERANCE:
                raise ValueError(f"{name} gives other results than at first: {difference:.2g}")

    @staticmethod
    def _inputs(name: str, generator: np.random.Generator, count: int) -> list[Any]:
        texts = [random_text(generator) for _ in range(count)]
        return list(zip(texts, texts[1:] + texts[:1], strict=True)) if name == "rerank" else texts

    @staticmethod
    def _dense(result: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        dense: np.ndarray[Any, np.dtype[np.float32]] = result.toarray() if hasattr(result, "toarray") else result
        return dense


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedding", type=Path, required=True, help="bundle directory")
    parser.add_argument("--sparse", type=Path, help="bundle directory")
    parser.add_argument("--rerank", type=Path, help="bundle directory")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    runs: list[tuple[str, Callable[[list[Any]], Any]]] = [
        ("embedding", stonnx.SentenceTransformer(arguments.embedding).encode)
    ]
    if arguments.sparse:
        runs.append(("sparse", stonnx.SparseEncoder(arguments.sparse).encode))
    if arguments.rerank:
        runs.append(("rerank", stonnx.CrossEncoder(arguments.rerank).predict))
    soak = Soak(runs, arguments.minutes * 60)
    loaded, steps = resident(), []
    threads = [threading.Thread(target=soak.work, args=(number,)) for number in range(arguments.threads)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5.0, arguments.minutes * 2))
        steps.append(resident())
    half = max(1, len(steps) // 2)
    early, late = max(steps[:half]), max(steps[half:] or steps)
    plateau = late - loaded <= (early - loaded) * (1 + _GROWTH)
    passed = plateau and not soak.errors and soak.returns > 0
    lines = [
        "# Soak",
        "",
        f"`python -m benchmarks.soak` for {arguments.minutes:g} minutes, {arguments.threads} threads, "
        f"{datetime.date.today()}: **{'passed' if passed else 'FAILED'}**. Random texts of fuzzed Unicode, 0 to "
        f"100,000 characters; stonnx {stonnx.__version__}, onnxruntime {onnxruntime.__version__}, Python "
        f"{platform.python_version()}.",
        "",
        "| | |",
        "|---|---|",
        f"| models | {', '.join(f'{name}: {getattr(arguments, name).name}' for name, _ in runs)} |",
        f"| calls | {soak.calls:,} |",
        f"| texts and pairs | {soak.texts:,} |",
        f"| errors | {len(soak.errors)} |",
        f"| returns of the fixed inputs | {soak.returns:,}, largest difference {soak.largest_difference:.1e} |",
        f"| resident memory when loaded | {loaded:.0f} MB |",
        f"| most in the first half, in the second | {early:.0f} MB, {late:.0f} MB |",
        "",
        *(f"- {error}" for error in soak.errors),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
