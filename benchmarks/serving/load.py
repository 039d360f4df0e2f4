"""Sends requests in the shapes of real traffic: a number of clients in turn, or a fixed rate whatever the answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving.client import Client, Reply
from benchmarks.serving.texts import Bulk, Known

# Vectors of runs of other shapes differ in the last bits only.
TOLERANCE = 1e-6
# Requests in flight at most. With more of them, the client would be the bottleneck.
_MOST_IN_FLIGHT = 8_000


@dataclass
class Tally:
    """Counts of the outcomes of requests."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    largest_difference: float = 0.0
    wrong: int = 0
    checked: int = 0
    without_retry_after: int = 0
    not_sent: int = 0
    seconds: float = 0.0

    def add(self, reply: Reply, latency: float, difference: Callable[[Reply], float]) -> None:
        self.statuses[reply.status] += 1
        if reply.status == 429 and "retry-after" not in reply.headers:
            self.without_retry_after += 1
        if reply.status != 200:
            return
        self.latencies.append(latency)
        found = difference(reply)
        self.checked += 1
        self.largest_difference = max(self.largest_difference, found)
        # This is not written "found > TOLERANCE", because a NaN is wrong too.
        self.wrong += not found <= TOLERANCE

    def figures(self) -> dict[str, Any]:
        """The tally as numbers for the report; latencies in milliseconds."""
        spread = np.percentile(self.latencies, (50, 90, 99)) * 1000 if self.latencies else (np.nan,) * 3
        return {
            "answered": self.statuses[200],
            "per_second": self.statuses[200] / self.seconds if self.seconds else 0.0,
            "p50": float(spread[0]),
            "p90": float(spread[1]),
            "p99": float(spread[2]),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "checked": self.checked,
            "wrong": self.wrong,
            "largest_difference": self.largest_difference,
            "without_retry_after": self.without_retry_after,
            "not_sent": self.not_sent,
        }


class Load:
    """Sends requests to one server."""

    def __init__(self, client: Client, path: str) -> None:
        self.client, self.path = client, path

    async def one(self, known: Known, index: int, tally: Tally, due: float | None = None) -> None:
        """Send one text. Its latency counts from when it was due, so that a late client does not flatter the server."""
        clock = asyncio.get_running_loop().time
        begin = clock() if due is None else due
        reply = await self.client.post(self.path, known.bodies[index])
        tally.add(reply, clock() - begin, lambda reply: known.difference(reply, index))

    async def bulk(self, bulk: Bulk, tally: Tally) -> None:
        clock = asyncio.get_running_loop().time
        begin = clock()
        reply = await self.client.post(self.path, bulk.body)
        # Answers of megabytes are parsed outside of the event loop, which has other requests to time.
        latency = clock() - begin
        found = await asyncio.to_thread(bulk.difference, reply) if reply.status == 200 else 0.0
        tally.add(reply, latency, lambda _: found)

    async def closed(self, known: Known, clients: int, seconds: float) -> Tally:
        """Send texts from a number of clients, each of which sends its next text after it has its answer."""
        tally, clock = Tally(), asyncio.get_running_loop().time
        begin = clock()

        async def work(number: int) -> None:
            index = number
            while clock() < begin + seconds:
                await self.one(known, index % len(known), tally)
                index += clients

        await asyncio.gather(*(work(number) for number in range(clients)))
        tally.seconds = clock() - begin
        return tally

    async def open(
        self, known: Known, rate: float, seconds: float, tally: Tally | None = None, *, seed: int = 0
    ) -> Tally:
        """Send a number of texts a second at random times, whether or not earlier ones have been answered."""
        tally = tally or Tally()
        clock = asyncio.get_running_loop().time
        generator, due = random.Random(seed), clock()
        begin, tasks = due, set[asyncio.Task[None]]()
        while (due := due + generator.expovariate(rate)) < begin + seconds:
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            if len(tasks) >= _MOST_IN_FLIGHT:
                tally.not_sent += 1
                continue
            task = asyncio.create_task(self.one(known, generator.randrange(len(known)), tally, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        tally.seconds = clock() - begin
        return tally

    async def until(self, stop: Awaitable[Any], work: Callable[[], Awaitable[None]]) -> None:
        """Repeat work, one call after the other, until something else is done."""
        ended = asyncio.ensure_future(stop)
        while not ended.done():
            await work()
        await ended
