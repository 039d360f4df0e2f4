"""How long does it take to import, to the first vector, and how much memory and disk does it need?

    python -m benchmarks.startup --checkpoint DIR --bundle DIR

Each figure is the median of several fresh processes, stonnx and sentence-transformers in turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Prints the peak resident memory in MB. It is not asked of the parent's children, whose peak is the largest of all.
_REPORT = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
_ENCODE = "SentenceTransformer({path!r}, device='cpu').encode('The weather is lovely today.')"

PROGRAMS = {
    "nothing: starting Python": "pass",
    "import onnxruntime": "import onnxruntime",
    "import stonnx": "import stonnx, onnxruntime",
    "import sentence_transformers": "import sentence_transformers",
    "first vector, stonnx": "from stonnx import SentenceTransformer; " + _ENCODE,
    "first vector, sentence-transformers": "from sentence_transformers import SentenceTransformer; " + _ENCODE,
}


def run(program: str) -> tuple[float, float]:
    """Seconds from start to end of a process, and its peak memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", f"{program}\n{_REPORT}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - start, float(output.split()[-1])


def measure(programs: Sequence[str], rounds: int) -> list[tuple[float, float]]:
    """Median seconds and MB of each program; the programs take turns."""
    results: list[list[tuple[float, float]]] = [[] for _ in programs]
    for turn in range(rounds + 1):
        for result, program in zip(results, programs, strict=True):
            figures = run(program)
            if turn:  # the first turn fills the disk cache
                result.append(figures)
    return [
        (statistics.median(seconds for seconds, _ in result), statistics.median(memory for _, memory in result))
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="the PyTorch checkpoint (default: the embedded model)")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle made from it")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from examples.semantic_search import embedded_checkpoint

    checkpoint = arguments.checkpoint or embedded_checkpoint()
    paths = {"first vector, stonnx": arguments.bundle, "first vector, sentence-transformers": checkpoint}
    programs = [program.format(path=str(paths.get(name, ""))) for name, program in PROGRAMS.items()]
    print(f"{'':<38}{'seconds':>9}{'peak MB':>9}")
    for name, (seconds, memory) in zip(PROGRAMS, measure(programs, arguments.rounds), strict=True):
        print(f"{name:<38}{seconds:>9.2f}{memory:>9.0f}")


if __name__ == "__main__":
    main()
