"""How many tokens should a run have? Throughput on the workloads of the benchmark, for several sizes of a run.

    python -m benchmarks.questions.run_tokens --bundle DIR

Runs go side by side, one thread each, as they do after a model has worked for some seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stonnx
from benchmarks.in_turns import in_turns, ratio
from benchmarks.peers.systems import WORKLOADS
from stonnx._text import batching

_SIZES = (120, 190, 260, 320, 380, 510, 770)
# A run has this many tokens for each unit of `batch_size`.
_UNIT = batching.tokens_on_one_thread(batching.tokens_per_batch_unit("cpu"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, help=f"multiples of {_UNIT}")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args(arguments)
    base = max(chosen.sizes)
    model = stonnx.SentenceTransformer(chosen.bundle, device="cpu")
    model.warmup()
    print(f"{chosen.bundle.name}, {model.info.threads} threads: times as fast as with {base} tokens a run")
    print(f"{'':<10}" + "".join(f"{size:>20}" for size in chosen.sizes if size != base))
    for workload in WORKLOADS:
        if workload.task != "embedding" or workload.alone:
            continue
        data = list(workload.inputs())
        works: dict[str, Callable[[], object]] = {
            str(size): partial(model.encode, data, batch_size=size // _UNIT) for size in chosen.sizes
        }
        found = in_turns(works, chosen.rounds)
        row = "".join(f"{ratio(found, str(base), str(size)):>20}" for size in chosen.sizes if size != base)
        print(f"{workload.name:<10}{row}", flush=True)


if __name__ == "__main__":
    main()
