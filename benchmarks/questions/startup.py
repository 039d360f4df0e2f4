"""What do native kernels cost until the first vector? New processes with and without them, in turns.

    python -m benchmarks.questions.startup --bundle DIR
    python -m benchmarks.questions.startup --bundle DIR --cpu-time     # on a machine that others use too

A process imports stonnx, loads the bundle and encodes one text. The bundle's probe has run before. What the first
lines say is loading and that text alone, by the process's own clock; the ratio is of the whole process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.in_turns import in_turns, ratio
from stonnx._device.cpus import cpu_name
from stonnx._device.kernels import Unusable, find

_PROCESS = """
import sys, time
import stonnx
start, cpu = time.perf_counter(), time.process_time()
model = stonnx.SentenceTransformer(sys.argv[1], device="cpu")
loaded = time.perf_counter()
model.encode("The tides follow the moon.")
print(model.info.kernels or "none", loaded - start, time.perf_counter() - loaded, time.process_time() - cpu)
"""


def process(bundle: Path, kernels: str | None, own: list[list[float]]) -> Callable[[], None]:
    """A function that runs such a process, with STONNX_KERNELS set or not, and keeps what it measured itself."""
    environment = {name: value for name, value in os.environ.items() if name != "STONNX_KERNELS"}
    if kernels is not None:
        environment["STONNX_KERNELS"] = kernels

    def work() -> None:
        command = [sys.executable, "-c", _PROCESS, str(bundle)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        used, *seconds = done.stdout.split()
        if (used == "none") != (kernels == "0"):
            raise SystemExit(f"It ran with kernels: {used}. {done.stderr}")
        own.append([float(each) for each in seconds])

    return work


def children_cpu_seconds() -> float:
    """The CPU time of the processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead of wall time")
    arguments = parser.parse_args()
    library = find()
    if isinstance(library, Unusable):
        parser.error(f"there are no native kernels: {library.reason}")
    own: dict[str, list[list[float]]] = {"without kernels": [], "with kernels": []}
    works = {
        "without kernels": process(arguments.bundle, "0", own["without kernels"]),
        "with kernels": process(arguments.bundle, None, own["with kernels"]),
    }
    clock = children_cpu_seconds if arguments.cpu_time else time.perf_counter
    found = in_turns(works, arguments.rounds, clock)
    print(f"{cpu_name()}, stonnx-kernels {library.version} with {library.variant}")
    for name, runs in own.items():
        load, text, cpu = (statistics.median(column) * 1e3 for column in zip(*runs[1:], strict=True))
        whole = statistics.median(found[name]) * 1e3
        print(
            f"{name}: process {whole:.0f} ms; loading {load:.0f} ms, first text {text:.1f} ms, both {cpu:.0f} ms of CPU"
        )
    kind = "CPU time" if arguments.cpu_time else "wall time"
    print(f"speed with kernels, {kind} of the process: {ratio(found, 'without kernels', 'with kernels')}")


if __name__ == "__main__":
    main()
