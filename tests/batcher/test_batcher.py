"""``stonnx.Batcher``: the results of the model's own methods, whatever else runs, fails or is cancelled."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, sparse_graph, toy_table, write_bundle

import stonnx
from stonnx import Batcher, CrossEncoder, SentenceTransformer, SparseEncoder
from stonnx._model.work import Work

_WORDS = ("the", "river", "flows", "sun", "shines", "bread", "rises", "city", "what", "is")


def texts_of(count: int, seed: int = 1, *, longest: int = 60) -> list[str]:
    """Different texts of log-normal lengths, with some long ones."""
    rng = random.Random(seed)
    lengths = [max(1, min(longest, int(rng.lognormvariate(1.8, 0.9)))) for _ in range(count)]
    return [" ".join(rng.choice(_WORDS) for _ in range(length)) + f" {index}" for index, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return SentenceTransformer(dense_bundle(tmp_path_factory.mktemp("dense") / "bundle"))


@pytest.fixture
def batcher(dense: SentenceTransformer) -> Iterator[Batcher]:
    with Batcher(dense) as batcher:
        yield batcher


def test_one_text_and_many_have_the_results_of_encode(dense: SentenceTransformer, batcher: Batcher) -> None:
    texts = [*texts_of(300), "", "the river"]

    async def check() -> None:
        np.testing.assert_allclose(await batcher.encode("the river"), dense.encode("the river"), atol=1e-6)
        np.testing.assert_allclose(await batcher.encode(texts), dense.encode(texts), atol=1e-6)
        assert (await batcher.encode([])).tolist() == []
        options: dict[str, Any] = {"normalize_embeddings": True, "truncate_dim": 3}
        np.testing.assert_allclose(await batcher.encode(texts, **options), dense.encode(texts, **options), atol=1e-6)
        packed = await batcher.encode(texts, precision="ubinary")
        assert packed.tolist() == dense.encode(texts, precision="ubinary").tolist()

    asyncio.run(check())


def test_prompts_are_those_of_the_model(tmp_path: Path) -> None:
    path = dense_bundle(tmp_path / "bundle")
    model = SentenceTransformer(path, prompts={"query": "question: ", "passage": "document: "})

    async def check(batcher: Batcher) -> None:
        text = "the sun shines"
        for ours, theirs in (
            (batcher.encode_query(text), model.encode_query(text)),
            (batcher.encode_document(text), model.encode_document(text)),
            (batcher.encode(text, prompt_name="query"), model.encode(text, prompt_name="query")),
            (batcher.encode(text, prompt="what is "), model.encode(text, prompt="what is ")),
        ):
            np.testing.assert_allclose(await ours, theirs, atol=1e-6)
        with pytest.raises(stonnx.InvalidArgumentError, match="nope"):
            await batcher.encode(text, prompt_name="nope")

    with Batcher(model) as batcher:
        asyncio.run(check(batcher))


def test_each_text_has_the_vector_that_it_has_alone_under_mixed_load(minilm: SentenceTransformer) -> None:
    """Pain 27, on the real model: single texts, bulk jobs and cancelled ones side by side."""
    texts = texts_of(160, longest=200)
    alone = np.stack([minilm.encode(text) for text in texts])
    worst = 0.0

    async def single(batcher: Batcher, start: int) -> None:
        nonlocal worst
        for index in range(start, len(texts), 8):
            worst = max(worst, float(np.abs(await batcher.encode(texts[index]) - alone[index]).max()))

    async def bulk(batcher: Batcher) -> None:
        nonlocal worst
        worst = max(worst, float(np.abs(await batcher.encode(texts) - alone).max()))

    async def cancelled(batcher: Batcher, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            task = asyncio.create_task(batcher.encode(texts_of(20, rng.randrange(1000))))
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()

    async def everything(batcher: Batcher) -> None:
        await asyncio.gather(
            *(single(batcher, start) for start in range(8)), bulk(batcher), bulk(batcher), cancelled(batcher, 1)
        )

    with Batcher(minilm) as batcher:
        asyncio.run(everything(batcher))
    assert worst < 1e-6


def test_sparse_vectors_are_those_of_encode(tmp_path: Path) -> None:
    table = toy_table(40, 3)
    model = SparseEncoder(
        write_bundle(tmp_path / "bundle", {"default": sparse_graph(table)}, task="sparse", embedding_dimension=40),
        max_active_dims=7,
    )
    texts = texts_of(50)

    async def check(batcher: Batcher) -> None:
        ours, theirs = await batcher.encode(texts), model.encode(texts)
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() == 0
        single = await batcher.encode("the river")
        assert single.toarray().tolist() == model.encode("the river").toarray().tolist()
        assert (await batcher.encode([])).shape == (0, 40)

    with Batcher(model) as batcher:
        asyncio.run(check(batcher))


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_are_those_of_predict_and_rank(tmp_path: Path, labels: int) -> None:
    graph = pair_graph(toy_table(labels, 4), np.linspace(0.1, 0.5, labels, dtype=np.float32), "Sigmoid")
    model = CrossEncoder(
        write_bundle(
            tmp_path / "bundle",
            {"default": graph},
            task="rerank",
            num_labels=labels,
            labels=tuple("abc"[:labels]),
            activation="sigmoid",
        )
    )
    documents = texts_of(30)
    pairs = [("what flows", document) for document in documents]

    async def check(batcher: Batcher) -> None:
        np.testing.assert_allclose(await batcher.predict(pairs), model.predict(pairs), atol=1e-6)
        np.testing.assert_allclose(await batcher.predict(pairs[0]), model.predict(pairs[0]), atol=1e-6)
        np.testing.assert_allclose(
            await batcher.predict(pairs, apply_softmax=True), model.predict(pairs, apply_softmax=True), atol=1e-6
        )
        assert (await batcher.predict([])).tolist() == []
        if labels == 1:
            ours, theirs = (
                (await batcher.rank("what flows", documents, top_k=5)),
                model.rank("what flows", documents, top_k=5),
            )
            assert [entry["corpus_id"] for entry in ours] == [entry["corpus_id"] for entry in theirs]
        else:
            with pytest.raises(stonnx.InvalidArgumentError, match="3"):
                await batcher.rank("what flows", documents)
        with pytest.raises(stonnx.InvalidArgumentError, match="predict"):
            await batcher.encode("a")

    with Batcher(model) as batcher:
        asyncio.run(check(batcher))


class _Gate:
    """Holds up the runs of a model until it is opened, and lets some of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.texts = 0
        self.fails = lambda texts: False
        original = Work.run

        def run(work: Work, texts: Any, *, alone: bool) -> Any:
            self.entered.set()
            assert self.open.wait(120)
            if self.fails(texts):
                raise stonnx.RunError("no memory")
            self.texts += len(texts)
            return original(work, texts, alone=alone)

        monkeypatch.setattr(Work, "run", run)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Gate]:
    gate = _Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_after_a_thousand_cancelled_calls_the_next_one_is_answered(batcher: Batcher) -> None:
    """Pain 6."""
    texts = texts_of(1000)

    async def check() -> None:
        rng = random.Random(3)
        tasks = [asyncio.create_task(batcher.encode(text)) for text in texts]
        for task in tasks:
            if rng.random() < 0.05:
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await batcher.encode("the river")).shape == (8,)
        load = batcher.load()
        assert (load.queued_tokens, load.queued_bulk_tokens, load.queued_texts) == (0, 0, 0)

    asyncio.run(check())


def test_cancelled_texts_are_never_computed(dense: SentenceTransformer, gate: _Gate) -> None:
    """Pain 5: 100 calls wait, their tasks end, and no more texts are computed than those in progress."""

    async def check(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.encode("the river"))
        await asyncio.to_thread(gate.entered.wait, 60)
        waiting = [asyncio.create_task(batcher.encode(text)) for text in texts_of(100)]
        while batcher.load().queued_texts < 100 - dense.work_slots * 20:
            await asyncio.sleep(0.01)
        queued = batcher.load().queued_texts
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert batcher.load().queued_texts == 0
        assert batcher.load().cancelled_texts >= queued
        gate.open.set()
        await first
        await batcher.encode("the sun")
        assert gate.texts <= 102 - queued

    with Batcher(dense) as batcher:
        asyncio.run(check(batcher))


def test_a_text_that_cannot_run_fails_alone(batcher: Batcher, gate: _Gate, dense: SentenceTransformer) -> None:
    """Pain 7: its caller gets the error, the others of its run their vectors."""
    texts = texts_of(40)
    poison = len(dense.work().tokenize(["bread bread bread bread bread bread bread"])[0])
    gate.fails = lambda some: any(len(text) == poison and text.ids[1] == text.ids[2] for text in some)
    gate.open.set()

    async def check() -> None:
        calls = [batcher.encode(text) for text in texts]
        calls.insert(20, batcher.encode("bread bread bread bread bread bread bread"))
        results = await asyncio.gather(*calls, return_exceptions=True)
        error = results.pop(20)
        assert isinstance(error, stonnx.RunError)
        np.testing.assert_allclose(np.stack(results), dense.encode(texts), atol=1e-6)
        assert (await batcher.encode("the river")).shape == (8,)

    asyncio.run(check())


def test_an_error_of_any_kind_does_not_end_a_worker(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("onnxruntime")

    async def check() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Work, "run", fail)
            for _ in range(10):
                with pytest.raises(MemoryError):
                    await batcher.encode("the river")
        assert (await batcher.encode("the river")).shape == (8,)

    asyncio.run(check())


def test_a_deadline_that_passes_is_an_error_and_the_text_is_dropped(batcher: Batcher, gate: _Gate) -> None:
    async def check() -> None:
        first = asyncio.create_task(batcher.encode("the river"))
        await asyncio.to_thread(gate.entered.wait, 60)
        with pytest.raises(stonnx.DeadlineError):
            await batcher.encode(texts_of(100), timeout=0.05)
        assert batcher.load().queued_texts == 0
        gate.open.set()
        await first

    asyncio.run(check())


def test_a_full_queue_refuses_and_says_when_to_come_again(dense: SentenceTransformer, gate: _Gate) -> None:
    """Pains 1 and 3: by tokens, so that one text and a list of one are the same; bulk work does not fill it."""

    with Batcher(dense, max_queued_tokens=200) as batcher:
        asyncio.run(_until_overloaded(batcher, gate))


async def _until_overloaded(batcher: Batcher, gate: _Gate) -> None:
    bulk = asyncio.create_task(batcher.encode(texts_of(20, longest=3)))
    await asyncio.to_thread(gate.entered.wait, 60)
    singles = [asyncio.create_task(batcher.encode(text)) for text in texts_of(100)]
    # Nothing runs: a call that has ended was refused.
    refused, _ = await asyncio.wait(singles, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(next(iter(refused)).exception(), stonnx.OverloadedError)
    with pytest.raises(stonnx.OverloadedError):
        await batcher.encode(["the river flows and flows and flows and flows"])
    with pytest.raises(stonnx.TooManyTokensError, match="Split it"):
        await batcher.encode(texts_of(2000))
    gate.open.set()
    assert (await bulk).shape == (20, 8)
    answers = await asyncio.gather(*singles, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    assert 0 < len(errors) < len(answers)
    for error in errors:
        assert isinstance(error, stonnx.OverloadedError)
        assert error.retry_after > 0
        assert error.limit == 200
    assert all(answer.shape == (8,) for answer in answers if not isinstance(answer, BaseException))


def test_room_is_for_what_is_computed_not_for_what_is_cut_off(dense: SentenceTransformer) -> None:
    """Pain 9: 2,048 texts of any length are 2,048 texts of the model's length at most."""
    texts = [f"{index} " + "river " * 300 for index in range(2048)]

    async def check(batcher: Batcher) -> None:
        assert (await batcher.encode(texts)).shape == (2048, 8)

    with Batcher(dense, max_queued_tokens=2048 * 16) as batcher:
        asyncio.run(check(batcher))


def test_texts_that_are_too_long_are_cut_or_refused(batcher: Batcher, dense: SentenceTransformer) -> None:
    long = "river " * 100

    async def check() -> None:
        np.testing.assert_allclose(await batcher.encode(long), dense.encode(long), atol=1e-6)
        with pytest.raises(stonnx.TextTooLongError) as caught:
            await batcher.encode(["a", long], truncate=False)
        assert (caught.value.index, caught.value.tokens, caught.value.limit) == (1, 102, 16)

    asyncio.run(check())


def test_wrong_input_is_the_error_of_the_model(batcher: Batcher) -> None:
    async def check() -> None:
        with pytest.raises(stonnx.InvalidInputError) as caught:
            await batcher.encode(["a", 3])
        assert caught.value.index == 1
        with pytest.raises(stonnx.InvalidArgumentError, match="encode"):
            await batcher.predict([("a", "b")])

    asyncio.run(check())
    with pytest.raises(stonnx.InvalidArgumentError, match="Batcher"):
        Batcher("all-MiniLM-L6-v2")  # type: ignore[arg-type]
    with pytest.raises(stonnx.InvalidArgumentError, match="max_queued_tokens"):
        Batcher(batcher.model, max_queued_tokens=0)


def test_two_event_loops_share_a_batcher(batcher: Batcher, dense: SentenceTransformer) -> None:
    texts = texts_of(50)
    results: dict[int, Any] = {}

    def in_thread(number: int) -> None:
        results[number] = asyncio.run(_all(batcher, texts))

    threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for result in results.values():
        np.testing.assert_allclose(result, dense.encode(texts), atol=1e-6)
    assert len(results) == 2


async def _all(batcher: Batcher, texts: list[str]) -> Any:
    return np.stack(await asyncio.gather(*(batcher.encode(text) for text in texts)))


def test_a_closed_batcher_has_no_threads(dense: SentenceTransformer) -> None:
    before = set(threading.enumerate())
    with Batcher(dense) as batcher:
        asyncio.run(_all(batcher, ["a"]))
    assert not [thread for thread in set(threading.enumerate()) - before if "batcher" in thread.name]
