"""Does resident memory stay on a plateau, whatever the shapes of the runs, and what does trim() give back?

    python -m benchmarks.questions.memory --bundle DIR [--calls 10000] [--threads 8]

Python threads share one session. Every run has another shape, of at most --tokens tokens.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

import numpy as np

from stonnx._bundle.manifest import read_manifest
from stonnx._device.opening import open_session

# The share by which later calls may exceed the first half: the runs of all threads are seldom large at the same time.
_GROWTH = 0.25


def resident() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def shape(generator: np.random.Generator, tokens: int, longest: int) -> tuple[int, int]:
    """Batch and sequence of a run: short and long alike, and batches that fill a part of the budget."""
    sequence = int(np.exp(generator.uniform(np.log(4), np.log(longest))))
    return max(1, int(tokens / sequence * generator.uniform(0.2, 1))), sequence


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8, help="Python threads that call at once (default: 8)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of the largest run (default: 1024)")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.bundle)
    route = manifest.routes[manifest.default_route]
    output = route.outputs[0].name
    session = open_session(
        arguments.bundle / route.graph, device="cpu", threads=1, saturation_safe=route.saturation_safe
    )
    longest = route.tokenizer.max_seq_length or 512
    weights = sum(file.stat().st_size for file in arguments.bundle.glob(f"{route.graph}*")) / 1e6
    start = resident()
    print(f"{arguments.bundle.name}: weights {weights:.0f} MB, resident when loaded {start:.0f} MB")
    steps: list[float] = []
    report = max(1, arguments.calls // arguments.threads // 10)

    def work(number: int) -> None:
        generator = np.random.default_rng(number)
        for call in range(arguments.calls // arguments.threads):
            batch, sequence = shape(generator, arguments.tokens, longest)
            ids = generator.integers(0, 1000, (batch, sequence))
            session.run([output], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            if number == 0 and (call + 1) % report == 0:
                steps.append(resident())
                print(f"  {(call + 1) * arguments.threads:>7,} calls  {steps[-1]:7.0f} MB", flush=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.trim()
    print(f"  after trim()   {resident():7.0f} MB")
    first, last = max(steps[: len(steps) // 2]) - start, max(steps) - start
    plateau = last <= first * (1 + _GROWTH)
    print(f"above the loaded model: {first:.0f} MB in the first half, {last:.0f} MB in all: ", end="")
    print("pass" if plateau else "FAIL")
    return int(not plateau)


if __name__ == "__main__":
    sys.exit(main())
