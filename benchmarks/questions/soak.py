"""Hours in minutes: random texts from many threads, models of all three tasks, and nothing may drift.

    python -m benchmarks.questions.soak --embedding DIR --sparse DIR --rerank DIR [--minutes 20] [-o docs/soak.md]

Every thread calls a random model with random texts: fuzzed Unicode, lengths from 0 to 100,000 characters. Every
thousandth call is followed by one of each model with fixed inputs, whose results have to equal those of the first
time. No call may take two minutes. Resident memory has to stay on a plateau. In the first half of the run, the arenas
of onnxruntime meet the largest shapes. After that, the median of the last quarter may be at most 2% above that of the
third, so that slow and steady growth fails. The memory also has to come back: after `trim()`, resident memory may be
10% above that of the loaded models. The script prints a report, and exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import platform
import statistics
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import stonnx
from benchmarks.questions.memory import resident
from stonnx._device.cpus import available_cpus, cpu_name
from stonnx._device.wheels import import_onnxruntime

# Ranges of characters to draw from: most of those that tokenizers treat specially.
_ALPHABETS = (
    (0x20, 0x7F), (0x61, 0x7B), (0xA0, 0x250), (0x300, 0x370), (0x400, 0x500), (0x590, 0x6FF), (0x900, 0x980),
    (0x1100, 0x1200), (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xE100),
    (0x1F300, 0x1F700), (0x0, 0x20),
)  # fmt: skip
# Shares by which memory may grow: the last quarter over the third one, and the rest after trim() over loaded models.
_GROWTH, _LEFT = 0.02, 0.1
# Seconds after which a call that has not returned never will.
_STUCK = 120.0
# Vectors of the same text from runs of other shapes differ in the last bits.
_TOLERANCE = 1e-4
# Seconds between two looks at the memory and the threads.
_STEP = 5.0
# Errors that the report quotes.
_QUOTED = 10


def random_text(generator: np.random.Generator) -> str:
    """A random text: mostly short, now and then up to 100,000 characters, sometimes empty."""
    length = int(np.exp(generator.uniform(0, np.log(400)))) - 1
    if generator.random() < 0.005:
        length = int(generator.integers(1_000, 100_001))
    low, high = _ALPHABETS[generator.integers(len(_ALPHABETS))]
    points = generator.integers(low, high, length)
    points[generator.random(length) < 0.15] = 0x20
    return "".join(map(chr, points))


class Soak:
    """The models, and the findings of the threads.

    Args:
        models: The name of each task, and its model as a function of inputs.
        seconds: How long the run takes.
        threads: How many threads call :meth:`work`.
        every: Number of calls between two checks with the fixed inputs.
    """

    def __init__(
        self, models: Sequence[tuple[str, Callable[[list[Any]], Any]]], seconds: float, threads: int, every: int
    ) -> None:
        self.models, self.every = models, every
        self.fixed = [self._inputs(name, np.random.default_rng(1), 12) for name, _ in models]
        self.first = [self._dense(run(inputs)) for (_, run), inputs in zip(models, self.fixed, strict=True)]
        self.calls = self.texts = self.returns = 0
        self.largest_difference = 0.0
        self.errors: list[str] = []
        self.stop = time.monotonic() + seconds
        # When each thread began its current call.
        self.since = [time.monotonic()] * threads
        self._lock = threading.Lock()

    def work(self, number: int) -> None:
        """The work of one thread, until the time is up or anything fails."""
        generator = np.random.default_rng([2, number])
        while time.monotonic() < self.stop and not self.errors:
            self.since[number] = time.monotonic()
            name, run = self.models[int(generator.integers(len(self.models)))]
            try:
                inputs = self._inputs(name, generator, int(generator.integers(1, 17)))
                result = self._dense(run(inputs))
                if len(result) != len(inputs) or not np.isfinite(result).all():
                    raise ValueError(f"{len(result)} rows for {len(inputs)} inputs, or numbers that are not finite")
                with self._lock:
                    self.calls += 1
                    self.texts += len(inputs)
                    again = self.calls % self.every == 0
                if again:
                    self._come_back(number)
            except Exception as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")

    def _come_back(self, number: int) -> None:
        for (name, run), inputs, first in zip(self.models, self.fixed, self.first, strict=True):
            self.since[number] = time.monotonic()
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


def watch(
    soak: Soak, threads: Sequence[threading.Thread], *, step: float = _STEP, stuck: float = _STUCK
) -> list[float]:
    """Resident memory in MB at every step, until the threads are done or one is stuck, which is an error of the run."""
    steps: list[float] = []
    while any(thread.is_alive() for thread in threads):
        # This is for a call that stops all other threads, this one among them.
        faulthandler.dump_traceback_later(2 * stuck, exit=True)
        for thread in threads:
            thread.join(step / len(threads))
        steps.append(resident())
        alive = [number for number, thread in enumerate(threads) if thread.is_alive()]
        waiting = max((time.monotonic() - soak.since[number] for number in alive), default=0.0)
        if waiting > stuck:
            faulthandler.dump_traceback(all_threads=True)
            soak.errors.append(f"a call has not returned for {waiting:.0f} s; the stacks of all threads are on stderr")
            break
    faulthandler.cancel_dump_traceback_later()
    return steps


@dataclass(frozen=True)
class Plateau:
    """Resident memory in MB over a run: (lowest, median, highest) of each of its quarters."""

    quarters: tuple[tuple[float, float, float], ...]
    # Memory after the models were loaded, and after trim() at the end.
    loaded: float
    trimmed: float

    @classmethod
    def of(cls, steps: Sequence[float], loaded: float, trimmed: float) -> Plateau:
        """Compute the plateau from the resident memory at every step."""
        parts = np.array_split(np.array(steps), 4) if len(steps) >= 4 else [np.array(steps)] * 4
        quarters = tuple((float(part.min()), statistics.median(part.tolist()), float(part.max())) for part in parts)
        return cls(quarters, loaded, trimmed)

    @property
    def growth(self) -> float:
        """The share by which the median of the last quarter is above that of the third."""
        return self.quarters[3][1] / self.quarters[2][1] - 1

    @property
    def left(self) -> float:
        """The share by which the memory after trim() is above that of the loaded models."""
        return self.trimmed / self.loaded - 1

    @property
    def is_one(self) -> bool:
        """Whether memory grew by at most its limit, and came back."""
        return self.growth <= _GROWTH and self.left <= _LEFT


def passed(soak: Soak, plateau: Plateau) -> bool:
    """Whether nothing failed and everything was checked."""
    return plateau.is_one and not soak.errors and soak.returns > 0


def report(soak: Soak, plateau: Plateau, minutes: float, threads: int, models: Sequence[str]) -> str:
    """The run in Markdown, without any path of this machine."""
    quarter = minutes / 4
    lines = [
        "# Soak",
        "",
        textwrap.fill(
            f"`python -m benchmarks.questions.soak` on {datetime.date.today()}, for {minutes:g} minutes with {threads} "
            f"threads: **{'passed' if passed(soak, plateau) else 'FAILED'}**. Random texts of fuzzed Unicode, 0 to "
            "100,000 characters.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| | |",
        "|---|---|",
        f"| machine | {cpu_name()}, {available_cpus()} CPUs, {platform.system()} {platform.machine()} |",
        f"| versions | stonnx {stonnx.__version__}, onnxruntime {import_onnxruntime().__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()} |",
        f"| models | {'; '.join(models)} |",
        f"| calls | {soak.calls:,} |",
        f"| texts and pairs | {soak.texts:,} |",
        f"| errors | {len(soak.errors)} |",
        f"| returns of the fixed inputs | {soak.returns:,}: each model after every {soak.every:,}th call |",
        f"| largest difference to their first results | {soak.largest_difference:.1e}, allowed {_TOLERANCE:.0e} |",
        f"| memory, last quarter to third | {plateau.growth:+.1%}, allowed {_GROWTH:+.0%} |",
        f"| memory after `trim()`, to that of the loaded models | {plateau.left:+.1%}, allowed {_LEFT:+.0%} |",
        "",
        f"Resident memory, {plateau.loaded:.0f} MB when the models were loaded and {plateau.trimmed:.0f} MB after "
        "`trim()` at the end:",
        "",
        "| minutes | lowest, MB | median, MB | highest, MB |",
        "|---|---|---|---|",
        *(
            f"| {index * quarter:.3g} to {(index + 1) * quarter:.3g} | {low:.0f} | {median:.0f} | {high:.0f} |"
            for index, (low, median, high) in enumerate(plateau.quarters)
        ),
        "",
        *(f"- {error}" for error in soak.errors[:_QUOTED]),
        *(["- The fixed inputs never came back: more minutes are needed."] if not soak.returns else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for task in ("embedding", "sparse", "rerank"):
        parser.add_argument(f"--{task}", type=Path, required=True, help="bundle directory")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument(
        "--every", type=int, default=1000, help="calls between two returns of the fixed inputs (default: 1000)"
    )
    parser.add_argument("-o", "--output", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    embedding = stonnx.SentenceTransformer(arguments.embedding)
    sparse = stonnx.SparseEncoder(arguments.sparse)
    rerank = stonnx.CrossEncoder(arguments.rerank)
    for model in (embedding, sparse, rerank):
        model.warmup()  # the second session of each, which large calls would load some minutes later
    runs: list[tuple[str, Callable[[list[Any]], Any]]] = [
        ("embedding", embedding.encode),
        ("sparse", sparse.encode),
        ("rerank", rerank.predict),
    ]
    soak = Soak(runs, arguments.minutes * 60, arguments.threads, arguments.every)
    loaded = resident()
    # A thread that is stuck must not keep the process.
    threads = [threading.Thread(target=soak.work, args=(index,), daemon=True) for index in range(arguments.threads)]
    for thread in threads:
        thread.start()
    steps = watch(soak, threads, step=min(_STEP, arguments.minutes * 2))
    models = [
        f"{model.info.task}: {Path(model.info.source).name}, {model.info.precision}"
        for model in (embedding, sparse, rerank)
    ]
    if not any(thread.is_alive() for thread in threads):
        for model in (embedding, sparse, rerank):
            model.trim()
    plateau = Plateau.of(steps, loaded, resident())
    text = report(soak, plateau, arguments.minutes, arguments.threads, models)
    print(text, flush=True)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    if any(thread.is_alive() for thread in threads):
        os._exit(1)  # a stuck call may hold a lock that the end of Python waits for
    return int(not passed(soak, plateau))


if __name__ == "__main__":
    sys.exit(main())
