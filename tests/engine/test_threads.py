"""Many threads, or another process, use one model: the results are those of one thread."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import LONG, expected
from fake_session import Run, Sessions

from stonnx import CrossEncoder, SentenceTransformer, SparseEncoder
from stonnx._engine import runner as runner_module
from stonnx._model.model import with_limits

# --- many threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 500, 10**9])
def test_16_threads_get_the_serial_results(bundle: Path, threshold: int) -> None:
    model = with_limits(SentenceTransformer, tokens_before_second_session=threshold)(bundle, threads=2)
    calls = [[f"bread {'rises ' * (i % 5)} {i * j}" for i in range(1 + j % 40)] for j in range(320)]
    serial = [expected(call) for call in calls]

    def work(number: int) -> None:
        for call, vectors in list(zip(calls, serial, strict=True))[number::16] * 3:
            result = model.encode(call if len(call) > 1 else call[0])
            np.testing.assert_allclose(result, vectors if len(call) > 1 else vectors[0], atol=1e-6)
            stats = model.last_stats
            assert stats is not None
            assert stats.texts == len(call)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as executor:
            list(executor.map(work, range(16)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("threshold", [0, 500, 10**9])
@pytest.mark.parametrize("task", ["sparse", "rerank"])
def test_16_threads_of_the_other_tasks_get_the_serial_results(
    task: str, sparse_bundle: Path, pair_bundle: Path, threshold: int
) -> None:
    calls: list[list[Any]] = [[f"bread {'rises ' * (i % 5)} {i * j}" for i in range(1 + j % 40)] for j in range(64)]
    work: Callable[[list[Any]], np.ndarray]
    if task == "sparse":
        kind = with_limits(SparseEncoder, tokens_before_second_session=threshold)
        sparse = [kind(sparse_bundle, threads=threads) for threads in (1, 2)]
        serial, work = (
            (lambda texts, model=model: model.encode(texts, max_active_dims=3).toarray()) for model in sparse
        )
    else:
        calls = [[("what rises ?", text) for text in texts] for texts in calls]
        pairs = with_limits(CrossEncoder, tokens_before_second_session=threshold)
        serial, work = (pairs(pair_bundle, threads=threads).predict for threads in (1, 2))
    expected_rows = [serial(call) for call in calls]

    def check(number: int) -> None:
        for call, rows in list(zip(calls, expected_rows, strict=True))[number::16] * 3:
            np.testing.assert_allclose(work(call), rows, atol=1e-6)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as executor:
            list(executor.map(check, range(16)))
    finally:
        sys.setswitchinterval(interval)


def test_no_more_runs_at_a_time_than_threads(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    model.warmup()
    lock, now, most = threading.Lock(), 0, 0

    def repeat(run: Run) -> list[np.ndarray]:
        nonlocal now, most
        with lock:
            now += run.threads
            most = max(most, now)
        try:
            # Long enough that others come.
            for _ in range(20):
                result = run.go()
            return result
        finally:
            with lock:
                now -= run.threads

    Sessions(monkeypatch, model, answer=repeat)
    texts = [f"bread {index}" for index in range(150)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda i: model.encode(texts if i % 2 else texts[i]), range(40)))
    assert most == 2


def test_last_stats_are_those_of_the_thread(model: SentenceTransformer) -> None:
    assert model.last_stats is None
    model.encode(["bread", "river"])
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(model.last_stats))
    thread.start()
    thread.join()
    assert seen == [None]
    assert model.last_stats is not None
    assert "2 texts (2 different, 0 truncated), 6 tokens (0% padding), 1 batches" in str(model.last_stats)


def test_waiting_for_threads_is_no_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SentenceTransformer(bundle, threads=1)
    running, waits = threading.Event(), threading.Event()
    now, reads = 0.0, 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        # The first call reads it before and after it takes the thread, and then runs; the next one is about to wait.
        if reads == 3:
            waits.set()
        return now

    def wait_once(run: Run) -> list[np.ndarray]:
        nonlocal now
        if not running.is_set():
            running.set()
            assert waits.wait(60)
            now = 0.5
        return run.go()

    Sessions(monkeypatch, model, answer=wait_once)
    monkeypatch.setattr(runner_module, "time", types.SimpleNamespace(perf_counter=clock))
    seen: list[Any] = []

    def call() -> None:
        model.encode("bread")
        seen.append(model.last_stats)

    first = threading.Thread(target=call)
    first.start()
    running.wait()
    call()
    first.join()
    slow, waiting = sorted(seen, key=lambda stats: stats.queue_seconds)
    assert (slow.queue_seconds, slow.run_seconds) == (0, 0.5)
    assert (waiting.queue_seconds, waiting.run_seconds) == (0.5, 0)
    assert "waiting 0.500 s" in str(waiting)


# --- another process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["embedding", "sparse", "rerank"])
def test_a_model_in_a_spawned_process(task: str, bundle: Path, sparse_bundle: Path, pair_bundle: Path) -> None:
    """A process of the caller's own, as a data loader or a task queue has it: it gets the model by pickle."""
    texts: list[Any] = [f"bread {index}" for index in range(200)] + [LONG]
    compute: Callable[[list[Any]], Any]
    if task == "embedding":
        dense = SentenceTransformer(bundle, threads=1, truncate_dim=5, max_batch_tokens=100)
        dense.max_seq_length = 12
        compute = dense.encode
    elif task == "sparse":
        compute = SparseEncoder(sparse_bundle, threads=1, max_active_dims=3).encode
    else:
        compute = CrossEncoder(pair_bundle, threads=1).predict
        texts = [("what rises ?", text) for text in texts]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        results = [executor.submit(compute, texts).result(timeout=120), compute(texts)]
    there, here = (result.toarray() if task == "sparse" else result for result in results)
    assert here.shape[0] == 201
    np.testing.assert_array_equal(there, here)
