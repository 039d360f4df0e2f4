"""The measurements of a server under load, one function each. Each returns figures for the report."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import stonnx
from benchmarks.serving.client import Client, embedding_body, metric
from benchmarks.serving.load import Load, Tally
from benchmarks.serving.servers import Server
from benchmarks.serving.texts import Texts

Figures = dict[str, Any]
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
# Queries a second beside bulk work and long texts. They are few, so that they do not wait for each other.
_QUERIES = 10.0
_CANCELS = 1000


@dataclass
class Trial:
    """A server, the texts to send, and how long. The first shape sets ``capacity``: one-text requests a second."""

    server: Server
    texts: Texts
    seconds: float
    overload_seconds: float
    soak_minutes: float
    encoder: stonnx.SentenceTransformer
    capacity: float = 0.0

    def __post_init__(self) -> None:
        self.client = Client("127.0.0.1", self.server.port)
        self.load = Load(self.client, self.server.spec.path)

    async def metrics(self) -> str:
        return (await self.client.get("/metrics")).body.decode()


async def clients(trial: Trial) -> Figures:
    """One short text a request, from more and more clients that each wait for their answer."""
    rows = []
    for number in CLIENTS:
        before = trial.server.cpu_seconds()
        tally = await trial.load.closed(trial.texts.short, number, trial.seconds / 2)
        cpu = 1000 * (trial.server.cpu_seconds() - before) / max(1, tally.statuses[200])
        rows.append({"clients": number, **tally.figures(), "cpu_ms": cpu, "resident_mb": trial.server.resident_mb()})
    trial.capacity = max(row["per_second"] for row in rows)
    return {"rows": rows, "capacity": trial.capacity}


async def rates(trial: Trial) -> Figures:
    """One short text a request at shares of the capacity, whether or not earlier ones have been answered."""
    rows = []
    for share in SHARES:
        tally = await trial.load.open(trial.texts.short, share * trial.capacity, trial.seconds)
        rows.append({"share": share, **tally.figures()})
    return {"rows": rows}


async def mix(trial: Trial) -> Figures:
    """Texts of log-normal lengths from 32 clients, and how much padding their runs have."""
    before = await trial.metrics()
    tally = await trial.load.closed(trial.texts.mix, 32, trial.seconds)
    after = await trial.metrics()
    padded, real = (_gain(before, after, f"stonnx_{name}_total") for name in ("padded_tokens", "tokens"))
    return {**tally.figures(), "padding": padded / real}


async def bulk(trial: Trial) -> Figures:
    """Requests of 2,048 texts one after the other, and single queries beside them."""
    alone = await trial.load.open(trial.texts.short, _QUERIES, trial.seconds)
    before = await trial.metrics()
    queries, jobs = Tally(), Tally()
    run = trial.load.open(trial.texts.short, _QUERIES, trial.seconds * 3, queries)
    begin = time.perf_counter()
    await trial.load.until(run, lambda: trial.load.bulk(trial.texts.bulk, jobs))
    jobs.seconds = time.perf_counter() - begin
    after = await trial.metrics()
    count, total = (_gain(before, after, f"stonnx_run_seconds_{part}") for part in ("count", "sum"))
    return {
        "alone": alone.figures(),
        "queries": queries.figures(),
        "jobs": jobs.figures(),
        "run_ms": 1000 * total / max(count, 1),
        "run_p99_ms": 1000 * _quantile(before, after, "stonnx_run_seconds", 0.99),
    }


async def against_encode(trial: Trial) -> Figures:
    """A request of 2,048 texts, compared with ``encode`` on the same texts in a process of its own, in turns."""
    texts = list(trial.texts.bulk.texts)
    served, encoded, served_cpu, encoded_cpu, tally = [], [], 0.0, 0.0, Tally()
    for _ in range(3):
        begin, cpu = time.perf_counter(), trial.server.cpu_seconds()
        await trial.load.bulk(trial.texts.bulk, tally)
        served.append(tally.latencies[-1] if tally.latencies else time.perf_counter() - begin)
        served_cpu += trial.server.cpu_seconds() - cpu
        begin, cpu = time.perf_counter(), time.process_time()
        await asyncio.to_thread(trial.encoder.encode, texts)
        encoded.append(time.perf_counter() - begin)
        encoded_cpu += time.process_time() - cpu
    ratios = [ours / theirs for theirs, ours in zip(served, encoded, strict=True)]
    return {
        **tally.figures(),
        "served_s": statistics.median(served),
        "encode_s": statistics.median(encoded),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": encoded_cpu / max(served_cpu, 1e-9),
    }


async def long(trial: Trial) -> Figures:
    """Short texts, with and without a text of 8,000 characters twice a second."""
    alone = await trial.load.open(trial.texts.short, _QUERIES, trial.seconds)
    beside, long_ones = Tally(), Tally()
    longer = trial.load.open(trial.texts.long, 2.0, trial.seconds, long_ones)
    await asyncio.gather(trial.load.open(trial.texts.short, _QUERIES, trial.seconds, beside), longer)
    return {"alone": alone.figures(), "beside": beside.figures(), "long": long_ones.figures()}


async def overload(trial: Trial) -> Figures:
    """Three times the capacity of the server."""
    memory, highest = trial.server.resident_mb(), 0.0
    watch = asyncio.create_task(_highest_memory(trial))
    tally = await trial.load.open(trial.texts.waiting, 3 * trial.capacity, trial.overload_seconds)
    watch.cancel()
    highest = await watch
    after = Tally()
    await trial.load.one(trial.texts.short, 0, after)
    return {**tally.figures(), "before_mb": memory, "highest_mb": highest, "after": after.figures()}


async def cancels(trial: Trial) -> Figures:
    """1,000 requests whose clients give up at random moments, at twice the capacity; then one that does not."""
    before = await trial.metrics()
    generator, tally, tasks = random.Random(7), Tally(), []
    body = embedding_body(list(trial.texts.mix.texts[:8]), trial.server.spec.model)

    async def give_up() -> None:
        task = asyncio.create_task(trial.client.post(trial.server.spec.path, body))
        await asyncio.sleep(generator.uniform(0, 0.2))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(_CANCELS):
        tasks.append(asyncio.create_task(give_up()))
        await asyncio.sleep(0.5 / trial.capacity)
    await asyncio.gather(*tasks)
    last_cancel = time.perf_counter()
    await trial.load.one(trial.texts.short, 0, tally)
    next_ms = 1000 * (time.perf_counter() - last_cancel)
    await asyncio.sleep(1.0)
    rest = await trial.metrics()
    await asyncio.sleep(1.0)
    after = await trial.metrics()
    return {
        **tally.figures(),
        "next_ms": next_ms,
        "cancelled_texts": _gain(before, after, "stonnx_texts_cancelled_total"),
        "queued_tokens": metric(after, "stonnx_queued_tokens"),
        "tokens_after": _gain(rest, after, "stonnx_tokens_total"),
    }


async def soak(trial: Trial) -> Figures:
    """About half the capacity for long: all lengths, bulk requests, clients that give up, requests that are refused."""
    seconds, memory, tally, jobs, refused = trial.soak_minutes * 60, list[float](), Tally(), Tally(), Tally()

    async def watch() -> None:
        while True:
            memory.append(trial.server.resident_mb())
            await asyncio.sleep(max(0.5, seconds / 240))

    async def disturb() -> None:
        generator = random.Random(5)
        while True:
            await asyncio.sleep(seconds / 40)
            await trial.load.bulk(trial.texts.bulk, jobs)
            await trial.load.one(trial.texts.long, 0, tally)
            reply = await trial.client.post(trial.server.spec.path, b'{"model": "model", "input": [')
            refused.statuses[reply.status] += 1
            task = asyncio.create_task(trial.client.post(trial.server.spec.path, trial.texts.bulk.body))
            await asyncio.sleep(generator.uniform(0.05, 0.5))
            task.cancel()

    others = [asyncio.create_task(watch()), asyncio.create_task(disturb())]
    # A text of the mix takes about three times as long as a short one.
    await trial.load.open(trial.texts.mix, 0.15 * trial.capacity, seconds, tally)
    for other in others:
        other.cancel()
    quarter = max(1, len(memory) // 4)
    third, last = memory[-2 * quarter : -quarter], memory[-quarter:]
    return {
        "minutes": trial.soak_minutes,
        "texts": tally.figures(),
        "jobs": jobs.figures(),
        "malformed": {str(status): count for status, count in refused.statuses.items()},
        "memory": memory,
        "growth": statistics.median(last) / statistics.median(third) - 1 if third else 0.0,
    }


async def stop(trial: Trial) -> Figures:
    """SIGTERM while requests at half the capacity come and a bulk job runs. It is the last shape: it ends the server.

    Requests go on coming for most of ``drain_delay``, as they do until a load balancer notices.
    """
    tally, jobs, clock = Tally(), Tally(), time.perf_counter
    run = asyncio.create_task(trial.load.open(trial.texts.short, 0.5 * trial.capacity, 2.4, tally))
    await asyncio.sleep(1.5)
    job = asyncio.create_task(trial.load.bulk(trial.texts.bulk, jobs))
    await asyncio.sleep(0.2)
    begin = clock()
    trial.server.terminate()
    # Within drain_delay, the server still answers, and says that no more requests should come.
    await asyncio.sleep(0.3)
    ready = await trial.client.get("/health/ready")
    code = await asyncio.to_thread(trial.server.process.wait, 60)
    seconds = clock() - begin
    await asyncio.gather(run, job)
    return {
        **tally.figures(),
        "jobs": jobs.figures(),
        "ready_after_signal": ready.status,
        "exit_code": code,
        "stop_seconds": seconds,
    }


SHAPES: dict[str, Callable[[Trial], Awaitable[Figures]]] = {
    shape.__name__: shape for shape in (clients, rates, mix, bulk, against_encode, long, overload, cancels, soak, stop)
}


async def _highest_memory(trial: Trial) -> float:
    highest = 0.0
    try:
        while True:
            highest = max(highest, trial.server.resident_mb())
            await asyncio.sleep(0.25)
    except asyncio.CancelledError:
        return highest


def _gain(before: str, after: str, name: str) -> float:
    return metric(after, name) - metric(before, name)


def _quantile(before: str, after: str, name: str, share: float) -> float:
    """A quantile of the observations between two readings, within its bucket as Prometheus computes it."""
    edges = {line.split('le="')[1].split('"')[0] for line in after.splitlines() if line.startswith(f"{name}_bucket")}
    counts = {
        float(edge): metric(after, f"{name}_bucket", le=edge) - metric(before, f"{name}_bucket", le=edge)
        for edge in edges
    }
    wanted = share * counts.get(float("inf"), 0.0)
    lower, below = 0.0, 0.0
    for edge in sorted(counts):
        if wanted and counts[edge] >= wanted:
            return lower if math.isinf(edge) else lower + (edge - lower) * (wanted - below) / (counts[edge] - below)
        lower, below = edge, counts[edge]
    return math.nan
