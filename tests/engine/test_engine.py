"""What is done to run texts fast changes no result: order, duplicates, batches, sessions."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import WIDTH, SideBySide, expected
from fake_session import Run, Sessions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundles import MAX_SEQ_LENGTH, toy_tokenizer, wide_sparse_graph, write_bundle

from stonnx import DeviceOptions, InvalidArgumentError, RunError, SentenceTransformer, SparseEncoder
from stonnx._device.session import RunControl
from stonnx._engine import call as call_module
from stonnx._engine import runner as runner_module
from stonnx._model.model import with_limits
from stonnx._text.tokenizer import Tokenizer

words = st.lists(st.sampled_from(["bread", "rises", "river", "the", "xyz", "?"]), max_size=30).map(" ".join)
many_texts = st.lists(words | st.sampled_from(["bread", "the river"]), min_size=1, max_size=60)


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
    np.testing.assert_allclose(all_threads, single_thread, atol=1e-6)
    np.testing.assert_allclose(all_threads, expected(texts), atol=1e-6)


def test_features_of_duplicates(model: SentenceTransformer) -> None:
    texts = ["bread rises"] * 3 + ["the river"] + ["bread rises"] * 70
    items = model.encode(texts, output_value=None)
    np.testing.assert_allclose(np.stack([item["sentence_embedding"] for item in items]), expected(texts), atol=1e-6)
    assert items[0]["input_ids"].tolist() == items[73]["input_ids"].tolist() == toy_tokenizer().encode(texts[0]).ids
    assert [item["token_embeddings"].shape for item in items] == [(4, WIDTH)] * 74


# --- what is run -----------------------------------------------------------------------------------------------------


def test_equal_texts_run_once(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(monkeypatch, model)
    model.encode(["bread"] * 500 + ["the river", "bread"] * 200)
    assert sum(batch for batch, _ in sessions.shapes) == 2


def test_no_run_is_over_the_budget(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(monkeypatch, model)
    model.encode([f"{'bread ' * (index % 20)}{index}" for index in range(2000)], batch_size=3)
    assert max(batch * sequence for batch, sequence in sessions.shapes) <= 3 * 16
    assert min(batch for batch, _ in sessions.shapes) >= 1


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
    sessions = Sessions(monkeypatch, model)
    model.encode([f"{'bread ' * 20} {index}" for index in range(count)])
    largest = max(batch * sequence for batch, sequence in sessions.shapes)
    longest = max(sequence for _, sequence in sessions.shapes)
    # The last runs of several threads may be a quarter larger, so that all are done at the same time.
    most = tokens * 5 // 4 if (threads, tokens, count) == (2, 320, 100) else tokens
    assert tokens - longest < largest <= most


def test_max_batch_tokens_wins(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SentenceTransformer(bundle, threads=2, max_batch_tokens=20)
    sessions = Sessions(monkeypatch, model)
    texts = [f"{'bread ' * (index % 20)}{index}" for index in range(300)]
    vectors = model.encode(texts, batch_size=64)
    assert max(batch * sequence for batch, sequence in sessions.shapes) <= 20
    np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
    # A single text is never split.
    SentenceTransformer(bundle, max_batch_tokens=4).encode(["bread " * 50])
    assert sessions.shapes[-1] == (1, MAX_SEQ_LENGTH)


def test_no_run_returns_more_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {"default": wide_sparse_graph(30522, 3)}
    model = SparseEncoder(write_bundle(tmp_path / "wide", graphs, task="sparse", embedding_dimension=30522))
    sessions = Sessions(monkeypatch, model)
    model.encode([f"bread {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 2 + [str(i) for i in range(300)])
    model.warmup()
    # 8 MB, where the budget of tokens would allow 128 texts of four.
    assert max(batch for batch, _ in sessions.shapes) == 68


@pytest.mark.parametrize("value", [0, -1, 1.5, "512", True])
def test_max_batch_tokens_that_are_no_number(bundle: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="max_batch_tokens must be a positive integer or None, got"):
        SentenceTransformer(bundle, max_batch_tokens=value)


def test_one_text_needs_no_thread(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> Any:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(runner_module, "ThreadPoolExecutor", forbidden)
    monkeypatch.setattr(call_module, "in_background", forbidden)
    sessions = Sessions(monkeypatch, model)
    model.encode("bread rises")
    model.encode(["bread rises"] * 3)
    # All threads for the one run.
    assert sessions.threads == [2, 2]
    with pytest.raises(AssertionError, match="a thread was started"):
        model.encode([f"bread {index}" for index in range(200)])


# --- which session ---------------------------------------------------------------------------------------------------


def test_the_single_thread_session_comes_with_the_work(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(monkeypatch)
    model = with_limits(SentenceTransformer, tokens_before_second_session=1000)(bundle, threads=2)
    texts = [f"bread {index}" for index in range(100)]
    while len(sessions.opened) == 1:
        assert set(sessions.threads) <= {2}
        model.encode(texts)
        assert len(sessions.shapes) < 10
    assert sessions.opened_threads == [2, 1]
    sessions.runs.clear()
    model.encode(texts)
    assert set(sessions.threads) == {1}
    model.trim()
    sessions.runs.clear()
    model.encode(texts[:50])
    assert set(sessions.threads) == {2}


@pytest.mark.parametrize("reason", ["one thread", "large weights", "short texts one by one"])
def test_no_second_session(bundle: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    kind = with_limits(SideBySide, second_copy_bytes=10) if reason == "large weights" else SideBySide
    sessions = Sessions(monkeypatch)
    model = kind(bundle, threads=1 if reason == "one thread" else 2)
    texts = [f"bread {index}" for index in range(300)]
    if reason == "short texts one by one":
        for text in texts:
            model.encode(text)
    else:
        np.testing.assert_allclose(model.encode(texts), expected(texts), atol=1e-6)
    assert len(sessions.opened) == 1


def test_warmup_loads_all_there_is_to_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(monkeypatch)
    model = SentenceTransformer(bundle, threads=2)
    model.warmup()
    assert sessions.opened_threads == [2, 1]
    # The shortest, the longest, and a full batch of the longest, in both.
    assert sessions.shapes == [(1, 1), (1, 1), (1, 16), (1, 16), (32, 16), (32, 16)]
    assert not any(run.free_memory for run in sessions.runs)
    model.encode([f"bread {index}" for index in range(3000)])
    assert sessions.opened_threads == [2, 1]


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
    sessions = Sessions(monkeypatch)
    SentenceTransformer(bundle, threads=1, max_batch_tokens=max_batch_tokens).warmup()
    assert (sessions.shapes, [run.free_memory for run in sessions.runs]) == (shapes, freeing)


# --- an error in the middle ------------------------------------------------------------------------------------------


def test_an_error_in_a_run_reaches_the_caller_and_the_model_stays_usable(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"bread {index}" for index in range(2000)]
    with monkeypatch.context() as patch:
        runs = iter(range(10**9))

        def fail(run: Run) -> list[np.ndarray]:
            if next(runs) == 5:
                raise MemoryError("no memory for this run")
            return run.go()

        sessions = Sessions(patch, model, answer=fail)
        with pytest.raises(MemoryError, match="no memory for this run"):
            model.encode(texts)
        # What was in progress ended, the rest was not started.
        assert len(sessions.shapes) < 15
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
    begun = threading.Semaphore(0)

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        starts.append(thread)
        if len(starts) == started:
            assert all(begun.acquire(timeout=60) for _ in starts)
            raise KeyboardInterrupt

    def work(job: int, control: RunControl) -> None:
        begun.release()
        while not control.stopped:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.append(job)

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(runner.map(work, range(5), 2))
    assert sorted(ended) == list(range(started))
    assert not any(thread.is_alive() for thread in starts)


# --- what is running -------------------------------------------------------------------------------------------------


def test_cuda_0_is_cuda(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    Sessions(monkeypatch, model, device="cuda")
    model._check_call(32, "cuda:0", None, {})
    Sessions(monkeypatch, model, device="cuda:0")
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
