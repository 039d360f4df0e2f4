"""The wait of a server that is asked for more than it can do, in a simulation with a clock of its own."""

from __future__ import annotations

import pytest

from stonnx.serve.backlog import Backlog


def simulate(arrivals_per_second: float, capacity_per_second: float, seconds: float) -> tuple[list[float], list[float]]:
    """Requests come and end at constant rates, in their order. Returns the waits, and what the refused were told."""
    backlog, now, step = Backlog(), 0.0, 0.001
    in_line: list[float] = []
    waits, told = [], []
    come = end = 0.0
    while now < seconds:
        now += step
        come += arrivals_per_second * step
        end += capacity_per_second * step
        while come >= 1:
            come -= 1
            wait = backlog.wait(now)
            if wait is None:
                backlog.begin(now)
                in_line.append(now)
            else:
                told.append(wait)
        while end >= 1:
            end -= 1
            if in_line:
                waits.append(now - in_line.pop(0))
                backlog.end(now)
    return waits, told


@pytest.mark.parametrize("factor", [1.5, 3.0, 10.0])
def test_under_overload_the_wait_has_a_bound(factor: float) -> None:
    """Pain 2: at several times the capacity, the accepted requests wait for about ten seconds at most."""
    waits, told = simulate(100 * factor, 100, 60)
    assert max(waits) < 11 + 2 * factor
    assert len(waits) > 0.95 * 100 * 60
    assert told
    assert all(0 < seconds <= 30 for seconds in told)


def test_a_burst_that_is_done_in_time_is_accepted() -> None:
    backlog = Backlog()
    for _ in range(900):
        assert backlog.wait(0.0) is None
        backlog.begin(0.0)
    for number in range(900):
        backlog.end(number / 100)
        assert backlog.wait(number / 100) is None
    assert backlog.in_progress == 0


def test_below_the_capacity_nothing_is_refused() -> None:
    waits, told = simulate(90, 100, 30)
    assert not told
    assert max(waits) < 0.1


def test_a_server_that_ends_nothing_refuses() -> None:
    backlog = Backlog()
    for _ in range(300):
        backlog.begin(0.0)
    assert backlog.wait(1.9) is None
    assert backlog.wait(2.1) == 30
