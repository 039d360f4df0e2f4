"""What do native kernels gain? Bundles of one model with and without them, in turns in one process, on one thread.

    python -m benchmarks.questions.kernels --int8 DIR --fp32 DIR --bf16 DIR
    python -m benchmarks.questions.kernels --int8 DIR --cpu-time     # on a machine that others use too

The shapes are texts x tokens of one run. A bundle without kernels is the stock form of the same file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.in_turns import in_turns, ratio
from stonnx._bundle.bundle import open_bundle
from stonnx._device.cpus import cpu_name
from stonnx._device.device_options import DeviceOptions
from stonnx._device.kernels import Unusable, find
from stonnx._engine.engine import Engine

SHAPES = ((36, 14), (8, 75), (2, 256), (1, 512), (1, 14))
# Enough runs to make a turn take some ten milliseconds.
_TOKENS_OF_A_TURN = 2000


def runs_of(engine: Engine, texts: int, tokens: int) -> Callable[[], None]:
    """A function that runs so many random texts several times."""
    route = engine.route()
    ids = np.random.default_rng(0).integers(1000, 20_000, (texts, tokens))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    output = [route.spec.outputs[0].name]
    times = max(1, _TOKENS_OF_A_TURN // ids.size)

    def work() -> None:
        for _ in range(times):
            route.session.run(output, feeds)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for dtype in ("int8", "fp32", "bf16"):
        parser.add_argument(f"--{dtype}", type=Path, help=f"a {dtype} bundle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead of wall time")
    arguments = parser.parse_args()
    library = find()
    if isinstance(library, Unusable):
        parser.error(f"there are no native kernels: {library.reason}")
    engines: dict[str, Engine] = {}
    for dtype in ("fp32", "int8", "bf16"):
        directory = getattr(arguments, dtype)
        if directory is None:
            continue
        bundle = open_bundle(directory)
        if dtype != "bf16":
            engines[dtype] = Engine(bundle, device="cpu", threads=1, kernels=False)
        if dtype != "fp32":
            engines[f"{dtype}, kernels"] = Engine(bundle, device="cpu", threads=1)
        elif library.bfloat16:
            options = DeviceOptions(bfloat16=True)
            engines["fp32 as bfloat16, kernels"] = Engine(bundle, device="cpu", threads=1, device_options=options)
    if not engines:
        parser.error("name a bundle at least: --int8 DIR")
    base = next(name for name in ("int8", "fp32", "bf16, kernels") if name in engines)
    kind = "CPU time" if arguments.cpu_time else "wall time"
    print(f"{cpu_name()}, stonnx-kernels {library.version} with {library.variant}, one thread, {kind}")
    print(f"| texts x tokens | {' | '.join(engines)} |")
    print("|---|" + "---|" * len(engines))
    for texts, tokens in SHAPES:
        works = {name: runs_of(engine, texts, tokens) for name, engine in engines.items()}
        times = max(1, _TOKENS_OF_A_TURN // (texts * tokens))
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        found = in_turns(works, arguments.rounds, clock)
        cells = [f"{min(found[name]) / times * 1e3:.2f} ms, {ratio(found, base, name)}" for name in engines]
        print(f"| {texts} x {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
