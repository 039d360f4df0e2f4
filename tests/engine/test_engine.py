"""What is done to run texts fast changes no result: order, duplicates, batches, sessions, threads."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundles import (
    MAX_SEQ_LENGTH,
    dense_bundle,
    pair_graph,
    toy_table,
    toy_tokenizer,
    wide_sparse_graph,
    write_bundle,
)

from stonnx import (
    CrossEncoder,
    DeviceOptions,
    InvalidArgumentError,
    RunError,
    SentenceTransformer,
    SparseEncoder,
    TextTooLongError,
)
from stonnx._device.session import RunControl, Session
from stonnx._engine import call as call_module
from stonnx._engine import runner as runner_module
from stonnx._model.model import with_limits
from stonnx._text.tokenizer import Tokenizer

WIDTH = 8
words = st.lists(st.sampled_from(["bread", "rises", "river", "the", "xyz", "?"]), max_size=30).map(" ".join)
many_texts = st.lists(words | st.sampled_from(["bread", "the river"]), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_bundle(tmp_path_factory.mktemp("toy") / "dense", width=WIDTH)


# The single-thread session is there from the first text on.
SideBySide = with_limits(SentenceTransformer, tokens_before_second_session=0)


@pytest.fixture
def model(bundle: Path) -> SentenceTransformer:
    return SideBySide(bundle, threads=2)


@pytest.fixture(scope="module")
def model_of_small_windows(bundle: Path) -> SentenceTransformer:
    return with_limits(SideBySide, first_window=3, window=7, window_characters=200)(bundle, threads=2)


def expected(texts: list[str], limit: int = MAX_SEQ_LENGTH) -> np.ndarray:
    """The vectors of the toy network, computed here."""
    tokenizer, table = toy_tokenizer(), toy_table(WIDTH, 5)
    tokenizer.enable_truncation(limit)
    return np.stack([table[tokenizer.encode(text).ids].mean(axis=0) for text in texts])


class Spy:
    """Shapes, sessions and threads of all runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.threads: list[int] = []
        self.freeing: list[bool] = []
        self.loaded: list[int] = []
        run, load = Session.run, Session.__init__

        def spying_run(session: Session, outputs: Any, feeds: Any, *arguments: Any, **options: Any) -> Any:
            self.shapes.append(feeds["input_ids"].shape)
            self.threads.append(session.threads)
            self.freeing.append(options["free_memory"])
            before()
            return run(session, outputs, feeds, *arguments, **options)

        def spying_load(session: Session, *arguments: Any, **options: Any) -> None:
            load(session, *arguments, **options)
            self.loaded.append(session.threads)

        monkeypatch.setattr(Session, "run", spying_run)
        monkeypatch.setattr(Session, "__init__", spying_load)


# --- results ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=many_texts, batch_size=st.integers(1, 40), windows=st.booleans())
def test_every_text_gets_its_own_vector(
    model: SentenceTransformer,
    model_of_small_windows: SentenceTransformer,
    texts: list[str],
    batch_size: int,
    windows: bool,
) -> None:
    model = model_of_small_windows if windows else model
    vectors = model.encode(texts, batch_size=batch_size)
    np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
    stats = model.last_stats
    assert stats is not None
    assert (stats.texts, stats.unique_texts) == (len(texts), len(set(texts)))
    counts = model.count_tokens(texts)
    assert stats.tokens_per_text.tolist() == np.minimum(counts, MAX_SEQ_LENGTH).tolist()
    assert stats.truncated.tolist() == np.flatnonzero(counts > MAX_SEQ_LENGTH).tolist()
    assert stats.tokens == np.minimum(model.count_tokens(list(set(texts))), MAX_SEQ_LENGTH).sum()
    assert stats.tokens <= stats.padded_tokens
    assert stats.padding_ratio == pytest.approx(1 - stats.tokens / stats.padded_tokens)


def test_all_windows_and_sessions_agree(bundle: Path) -> None:
    texts = [f"bread {'rises ' * (index % 13)} river {index}" for index in range(3000)]
    all_threads = SentenceTransformer(bundle, threads=1).encode(texts)
    single_thread = SideBySide(bundle, threads=3).encode(texts)
    np.testing.assert_array_equal(all_threads, single_thread)
    np.testing.assert_allclose(all_threads, expected(texts), atol=1e-6)


def test_features_of_duplicates(model: SentenceTransformer) -> None:
    texts = ["bread rises"] * 3 + ["the river"] + ["bread rises"] * 70
    items = model.encode(texts, output_value=None)
    np.testing.assert_allclose(np.stack([item["sentence_embedding"] for item in items]), expected(texts), atol=1e-6)
    assert items[0]["input_ids"].tolist() == items[73]["input_ids"].tolist() == toy_tokenizer().encode(texts[0]).ids
    assert [item["token_embeddings"].shape for item in items] == [(4, WIDTH)] * 74


# --- what is run -----------------------------------------------------------------------------------------------------


def test_equal_texts_run_once(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    model.encode(["bread"] * 500 + ["the river", "bread"] * 200)
    assert sum(batch for batch, _ in spy.shapes) == 2


def test_no_run_is_over_the_budget(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    model.encode([f"{'bread ' * (index % 20)}{index}" for index in range(2000)], batch_size=3)
    assert max(batch * sequence for batch, sequence in spy.shapes) <= 3 * 16
    assert min(batch for batch, _ in spy.shapes) >= 1


@pytest.mark.parametrize(
    ("threads", "tokens_before_second_session", "tokens"),
    [(1, 10**9, 320), (2, 10**9, 512), (2, 0, 320)],
    ids=["one thread", "all threads", "threads side by side"],
)
@pytest.mark.parametrize("count", [100, 3000], ids=["one window", "several"])
def test_a_run_on_one_thread_is_smaller(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    tokens_before_second_session: int,
    tokens: int,
    count: int,
) -> None:
    kind = with_limits(SentenceTransformer, tokens_before_second_session=tokens_before_second_session)
    model = kind(bundle, threads=threads)
    spy = Spy(monkeypatch)
    model.encode([f"{'bread ' * 20} {index}" for index in range(count)])
    largest = max(batch * sequence for batch, sequence in spy.shapes)
    assert tokens - max(sequence for _, sequence in spy.shapes) < largest <= tokens


def test_max_batch_tokens_wins(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SentenceTransformer(bundle, threads=2, max_batch_tokens=20)
    spy = Spy(monkeypatch)
    texts = [f"{'bread ' * (index % 20)}{index}" for index in range(300)]
    vectors = model.encode(texts, batch_size=64)
    assert max(batch * sequence for batch, sequence in spy.shapes) <= 20
    np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
    # A single text is never split.
    SentenceTransformer(bundle, max_batch_tokens=4).encode(["bread " * 50])
    assert spy.shapes[-1] == (1, MAX_SEQ_LENGTH)


def test_no_run_returns_more_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {"default": wide_sparse_graph(30522, 3)}
    model = SparseEncoder(write_bundle(tmp_path / "wide", graphs, task="sparse", embedding_dimension=30522))
    spy = Spy(monkeypatch)
    model.encode([f"bread {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 2 + [str(i) for i in range(300)])
    model.warmup()
    # 8 MB, where the budget of tokens would allow 128 texts of four.
    assert max(batch for batch, _ in spy.shapes) == 68


@pytest.mark.parametrize("value", [0, -1, 1.5, "512", True])
def test_max_batch_tokens_that_are_no_number(bundle: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="max_batch_tokens must be a positive integer or None, got"):
        SentenceTransformer(bundle, max_batch_tokens=value)


def test_one_text_needs_no_thread(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> Any:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(runner_module, "ThreadPoolExecutor", forbidden)
    monkeypatch.setattr(call_module, "in_background", forbidden)
    spy = Spy(monkeypatch)
    model.encode("bread rises")
    model.encode(["bread rises"] * 3)
    # All threads for the one run.
    assert spy.threads == [2, 2]
    with pytest.raises(AssertionError, match="a thread was started"):
        model.encode([f"bread {index}" for index in range(200)])


# --- which session ---------------------------------------------------------------------------------------------------


def test_the_single_thread_session_comes_with_the_work(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    model = with_limits(SentenceTransformer, tokens_before_second_session=1000)(bundle, threads=2)
    texts = [f"bread {index}" for index in range(100)]
    while len(spy.loaded) == 1:
        assert set(spy.threads) <= {2}
        model.encode(texts)
        assert len(spy.shapes) < 10
    assert spy.loaded == [2, 1]
    spy.threads.clear()
    model.encode(texts)
    assert set(spy.threads) == {1}
    model.trim()
    spy.threads.clear()
    model.encode(texts[:50])
    assert set(spy.threads) == {2}


@pytest.mark.parametrize("reason", ["one thread", "large weights", "short texts one by one"])
def test_no_second_session(bundle: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    kind = with_limits(SideBySide, second_copy_bytes=10) if reason == "large weights" else SideBySide
    spy = Spy(monkeypatch)
    model = kind(bundle, threads=1 if reason == "one thread" else 2)
    texts = [f"bread {index}" for index in range(300)]
    if reason == "short texts one by one":
        for text in texts:
            model.encode(text)
    else:
        np.testing.assert_allclose(model.encode(texts), expected(texts), atol=1e-6)
    assert len(spy.loaded) == 1


def test_warmup_loads_all_there_is_to_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    model = SentenceTransformer(bundle, threads=2)
    model.warmup()
    assert spy.loaded == [2, 1]
    # The shortest, the longest, and a full batch of the longest, in both.
    assert spy.shapes == [(1, 1), (1, 1), (1, 16), (1, 16), (32, 16), (32, 16)]
    assert not any(spy.freeing)
    model.encode([f"bread {index}" for index in range(3000)])
    assert spy.loaded == [2, 1]


@pytest.mark.parametrize(
    ("max_batch_tokens", "shapes", "freeing"),
    [
        (100, [(1, 1), (1, 16), (6, 16)], [False] * 3),
        # A single text is not split, and what it took beyond the budget is given back.
        (8, [(1, 1), (1, 16)], [False, True]),
    ],
)
def test_warmup_keeps_to_max_batch_tokens(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_batch_tokens: int,
    shapes: list[tuple[int, int]],
    freeing: list[bool],
) -> None:
    spy = Spy(monkeypatch)
    SentenceTransformer(bundle, threads=1, max_batch_tokens=max_batch_tokens).warmup()
    assert (spy.shapes, spy.freeing) == (shapes, freeing)


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


@pytest.fixture(scope="module")
def sparse_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs = {"default": wide_sparse_graph(500, 3)}
    return write_bundle(tmp_path_factory.mktemp("toy") / "sparse", graphs, task="sparse", embedding_dimension=500)


@pytest.fixture(scope="module")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs = {"default": pair_graph(toy_table(1, 1), np.float32([0.5]), "Sigmoid")}
    fields = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    return write_bundle(tmp_path_factory.mktemp("toy") / "pairs", graphs, **fields)


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
    original = Session.run

    def run(session: Session, *arguments: Any, **options: Any) -> Any:
        nonlocal now, most
        with lock:
            now += session.threads
            most = max(most, now)
        try:
            # Long enough that others come.
            for _ in range(20):
                result = original(session, *arguments, **options)
            return result
        finally:
            with lock:
                now -= session.threads

    monkeypatch.setattr(Session, "run", run)
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
    original, running = Session.run, threading.Event()

    def run(session: Session, *arguments: Any, **options: Any) -> Any:
        if not running.is_set():
            running.set()
            time.sleep(0.5)
        return original(session, *arguments, **options)

    monkeypatch.setattr(Session, "run", run)
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
    assert slow.run_seconds > 0.4 > slow.queue_seconds
    # It comes a moment after the other has begun.
    assert waiting.queue_seconds > 0.25 > waiting.run_seconds
    assert f"waiting {waiting.queue_seconds:.3f} s" in str(waiting)


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


# --- an error in the middle ------------------------------------------------------------------------------------------


def test_an_error_in_a_run_reaches_the_caller_and_the_model_stays_usable(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"bread {index}" for index in range(2000)]
    with monkeypatch.context() as patch:
        runs = iter(range(10**9))

        def fail() -> None:
            if next(runs) == 5:
                raise MemoryError("no memory for this run")

        spy = Spy(patch, fail)
        with pytest.raises(MemoryError, match="no memory for this run"):
            model.encode(texts)
        # What was in progress ended, the rest was not started.
        assert len(spy.shapes) < 15
    np.testing.assert_allclose(model.encode(texts), expected(texts), atol=1e-6)


def test_a_run_that_fails_says_what_to_do(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    # A token that the table does not have, as of a tokenizer of another model.
    with monkeypatch.context() as patch:
        pad = Tokenizer.pad

        def broken(self: Tokenizer, encodings: Any) -> Any:
            tokens = pad(self, encodings)
            return replace(tokens, input_ids=tokens.input_ids + 10**6)

        patch.setattr(Tokenizer, "pad", broken)
        for texts in ("bread", [f"bread {index}" for index in range(500)]):
            with pytest.raises(RunError, match=r"failed to run input_ids \[.*max_batch_tokens.*trim\(\)"):
                model.encode(texts)
    np.testing.assert_allclose(model.encode(["bread"]), expected(["bread"]), atol=1e-6)


def test_a_stopped_control_ends_a_run(bundle: Path) -> None:
    session = SentenceTransformer(bundle)._route.session
    control = session.control()
    feeds = {"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 4), np.int64)}
    session.run(["sentence_embedding"], feeds, control)
    control.stop()
    for free_memory in (False, True):
        with pytest.raises(Exception, match="terminate flag"):
            session.run(["sentence_embedding"], feeds, control, free_memory=free_memory)
    session.run(["sentence_embedding"], feeds)


@pytest.mark.parametrize("started", [1, 2], ids=["first thread", "second thread"])
def test_ctrl_c_while_a_thread_is_started_waits_for_its_run(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """Ctrl-C comes to the main thread, which may be in the middle of starting a thread whose run goes on already."""
    runner = model._engine.route()._runner
    start, starts, ended = threading.Thread.start, [], []

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        starts.append(thread)
        if len(starts) == started:
            time.sleep(0.1)
            raise KeyboardInterrupt

    def work(job: int, control: RunControl) -> None:
        while not control.stopped:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.append(job)

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(runner.map(work, range(5), 2))
    assert sorted(ended) == list(range(started))
    assert not any(thread.is_alive() for thread in starts)


# --- texts that are too long -----------------------------------------------------------------------------------------

LONG = "bread " * 30  # 32 tokens, of which the model reads 16


def test_too_long_is_an_error_where_that_is_asked_for(bundle: Path) -> None:
    model = SentenceTransformer(bundle, too_long="error", threads=2)
    texts = ["river", "bread", LONG, "sun", LONG + "sun", LONG]
    with pytest.raises(TextTooLongError) as error:
        model.encode(texts)
    assert (error.value.index, error.value.tokens, error.value.limit) == (2, 32, 16)
    assert str(error.value).startswith("Text 2 has 32 tokens, and the model reads 16. Split it, or")
    assert isinstance(error.value, ValueError)
    with pytest.raises(TextTooLongError, match="Text 0 has 32 tokens"):
        model.encode(LONG)
    with pytest.raises(TextTooLongError, match="Text 1500 has 32 tokens"):
        model.encode([f"bread {index}" for index in range(1500)] + [LONG] * 2)
    # A call decides for itself, and everything else goes through.
    np.testing.assert_allclose(model.encode(texts, too_long="truncate"), expected(texts), atol=1e-6)
    model.encode(["bread " * 14])
    model.too_long = "truncate"
    model.encode(LONG)


def test_too_long_with_a_pool(bundle: Path) -> None:
    model = SentenceTransformer(bundle, threads=2)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        texts = [f"bread {index}" for index in range(10)]
        with pytest.raises(TextTooLongError, match="Text 7 has 32 tokens") as error:
            model.encode([*texts[:7], LONG, *texts[7:]], pool=pool, chunk_size=2, too_long="error")
        assert error.value.index == 7
        vectors = model.encode([*texts[:7], LONG, *texts[7:], LONG], pool=pool, chunk_size=2)
        np.testing.assert_allclose(vectors, expected([*texts[:7], LONG, *texts[7:], LONG]), atol=1e-6)
    finally:
        model.stop_multi_process_pool(pool)
    stats = model.last_stats
    assert stats is not None
    assert (stats.texts, stats.unique_texts, stats.truncated.tolist()) == (12, 12, [7, 11])
    assert stats.tokens_per_text.tolist() == [4] * 7 + [16] + [4] * 3 + [16]
    assert stats.batches == 6


def test_too_long_is_logged_where_that_is_asked_for(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    model.encode(["bread", LONG], too_long="truncate")
    model.encode(["bread"], too_long="warn")
    assert not caplog.records
    model.encode(["bread", LONG, "river", LONG], too_long="warn")
    (record,) = caplog.records
    assert record.name == "stonnx"
    assert record.getMessage() == "2 of 4 texts have more tokens than the model reads and lost their end: 1, 3"
    model.encode([LONG] * 20, too_long="warn")
    assert caplog.records[1].getMessage().endswith("lost their end: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")


def test_too_long_has_three_values(bundle: Path, model: SentenceTransformer) -> None:
    match = "too_long must be one of 'truncate', 'warn', 'error', got 'raise'"
    with pytest.raises(ValueError, match=match):
        SentenceTransformer(bundle, too_long="raise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        model.encode("bread", too_long="raise")
    with pytest.raises(ValueError, match=match):
        model.too_long = "raise"  # type: ignore[assignment]


def test_count_tokens(model: SentenceTransformer) -> None:
    assert model.count_tokens("bread rises") == 4
    counts = model.count_tokens(["", "bread", LONG, ("bread", "river")], prompt="the ")
    assert counts.tolist() == [3, 4, 33, 6]
    assert counts.dtype == np.int64


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_texts=100)(bundle, threads=2)
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for index in range(250):
            taken += 1
            yield f"bread {index}"

    stream = model.encode_stream(texts(), normalize_embeddings=True)
    assert taken == 0
    first = next(stream)
    assert taken == 100
    parts = [first, *stream]
    assert [len(part) for part in parts] == [100, 100, 50]
    whole = model.encode([f"bread {index}" for index in range(250)], normalize_embeddings=True)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert list(model.encode_stream([])) == []


def test_a_stream_is_cut_by_characters_too(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_characters=1000)(bundle, threads=2)
    parts = list(model.encode_stream(["bread " * 50] * 3 + [("bread " * 100, "bread " * 100), "bread", "sun"]))
    assert [len(part) for part in parts] == [4, 2]


def test_a_stream_of_queries(bundle: Path) -> None:
    model = SentenceTransformer(bundle, prompts={"query": "the ", "document": "of "})
    for task, prompt in (("query", "the "), ("document", "of "), (None, "")):
        (part,) = model.encode_stream(["bread", "river"], task=task)  # type: ignore[arg-type]
        np.testing.assert_allclose(part, expected([f"{prompt}bread", f"{prompt}river"]), atol=1e-6)


def test_errors_of_a_stream(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_texts=10)(bundle, threads=2)
    texts: list[Any] = [f"bread {index}" for index in range(30)]
    texts[23] = None
    with pytest.raises(TypeError, match="Input 3 is not a text but None") as error:
        list(model.encode_stream(texts))
    assert error.value.index == 23  # type: ignore[attr-defined]
    assert error.value.__notes__ == ["Its index is counted from input 20 of the stream."]
    texts[23] = LONG
    with pytest.raises(TextTooLongError, match="Text 23 has 32 tokens"):
        list(model.encode_stream(texts, too_long="error"))
    with pytest.raises(TypeError, match="inputs is a single str"):
        model.encode_stream("bread")
    with pytest.raises(ValueError, match="task must be one of 'query', 'document', got"):
        model.encode_stream([], task="passage")  # type: ignore[arg-type]
    for precision in ("int8", "uint8"):
        with pytest.raises(NotImplementedError, match="takes its ranges from all texts"):
            model.encode_stream([], precision=precision)


# --- what is running -------------------------------------------------------------------------------------------------


def test_cuda_0_is_cuda(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model._route.session
    monkeypatch.setattr(session, "device", "cuda")
    model._check_call(32, "cuda:0", None, {})
    monkeypatch.setattr(session, "device", "cuda:0")
    model._check_call(32, "cuda", None, {})
    with pytest.raises(ValueError, match="loaded for 'cuda:0' and cannot move to 'cuda:1'"):
        model._check_call(32, "cuda:1", None, {})


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (DeviceOptions(memory_limit=2**30), r"memory_limit \(for cuda and tensorrt\)\."),
        (
            DeviceOptions(cuda_graphs=True, build=True),
            r"cuda_graphs \(for cuda and tensorrt\), build \(for tensorrt\)\.",
        ),
        ({"build": True}, "device_options must be stonnx.DeviceOptions or None, got {'build': True}"),
    ],
)
def test_options_of_another_device_are_refused(bundle: Path, options: Any, refused: str) -> None:
    with pytest.raises(InvalidArgumentError, match=refused):
        SentenceTransformer(bundle, device="cpu", device_options=options)
    SentenceTransformer(bundle, device="cpu", device_options=DeviceOptions())


def test_options_for_a_gpu_that_is_not_there(bundle: Path) -> None:
    options = DeviceOptions(memory_limit=2**30, cuda_graphs=True)
    model = SentenceTransformer(bundle, threads=1, device_options=options)
    pool = model.start_multi_process_pool(["cpu"])
    try:
        np.testing.assert_allclose(model.encode(["bread"], pool=pool), expected(["bread"]), atol=1e-6)
    finally:
        model.stop_multi_process_pool(pool)


def test_info(model: SentenceTransformer) -> None:
    info = model.info
    assert (info.device, info.threads, info.form, info.fallbacks) == ("cpu", 2, "", ())
    assert "form=, kernels=, fallbacks=()" in str(info)
