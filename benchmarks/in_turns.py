"""Runs works in turns in one process, in a new order each round: their ratios hold on a shared machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """The seconds of each work in each round, after one round that is not counted.

    ``clock=time.process_time`` counts only the CPU time of this process, for a CPU that other processes use too.

    Example:
        >>> found = in_turns({"one": lambda: sum(range(10)), "two": lambda: sum(range(20))}, rounds=3)
        >>> {name: len(seconds) for name, seconds in found.items()}
        {'one': 3, 'two': 3}
    """
    found: Seconds = {name: [] for name in works}
    for counted in [False, *[True] * rounds]:
        for name in random.sample(list(works), len(works)):
            start = clock()
            works[name]()
            if counted:
                found[name].append(clock() - start)
    return found


def ratio(found: Seconds, base: str, other: str) -> str:
    """How many times as fast ``other`` is as ``base``: the median over the rounds, and the quartiles.

    Example:
        >>> ratio({"one": [2.0, 2.0], "two": [1.0, 1.0]}, "one", "two")
        '2.00x (2.00-2.00)'
    """
    ratios = [a / b for a, b in zip(found[base], found[other], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")  # within what was seen
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"
