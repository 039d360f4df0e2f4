"""Properties of batch plans: every text once, no batch over the budget, the longest texts first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stonnx._text.batching import (
    Duplicates,
    plan_batches,
    share_of_budget,
    texts_per_batch,
    tokens_on_one_thread,
    tokens_per_batch_unit,
    windows,
)

lengths_of_texts = st.lists(st.integers(0, 600), max_size=80)
# A few lengths only, so that many texts have the same one.
lengths_with_ties = st.lists(st.sampled_from([0, 1, 7, 8]), max_size=80)
all_lengths = pytest.mark.parametrize("kind", [list, np.array], ids=["list", "array"])


def concatenated(pieces: Any) -> list[int]:
    return [int(index) for piece in pieces for index in piece]


@all_lengths
@settings(deadline=None)
@given(lengths=lengths_of_texts | lengths_with_ties, max_tokens=st.integers(1, 2000))
def test_plan(kind: Any, lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(kind(lengths), max_tokens)
    order = concatenated(batches)
    # Every text once, longest first; of equal ones the first comes first.
    assert order == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for batch in batches:
        assert len(batch) >= 1
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= max_tokens or len(batch) == 1


@settings(deadline=None)
@given(lengths=lengths_of_texts | lengths_with_ties, max_tokens=st.integers(1, 2000))
def test_no_batch_could_take_the_next_text(lengths: list[int], max_tokens: int) -> None:
    for batch, following in pairwise(plan_batches(lengths, max_tokens)):
        longest = max(1, lengths[batch[0]])
        assert (len(batch) + 1) * longest > max_tokens
        assert lengths[batch[-1]] >= lengths[following[0]]


def test_texts_without_a_token_do_not_make_an_endless_batch() -> None:
    assert [len(batch) for batch in plan_batches([0] * 25, 10)] == [10, 10, 5]


def test_a_text_over_the_budget_is_alone() -> None:
    assert [batch.tolist() for batch in plan_batches([5, 100, 11, 5], 10)] == [[1], [2], [0, 3]]


@settings(deadline=None)
@given(lengths=lengths_of_texts, max_tokens=st.integers(1, 2000), max_texts=st.integers(1, 10))
def test_no_batch_has_more_texts_than_allowed(lengths: list[int], max_tokens: int, max_texts: int) -> None:
    batches = plan_batches(lengths, max_tokens, max_texts)
    assert concatenated(batches) == concatenated(plan_batches(lengths, max_tokens))
    assert max(map(len, batches), default=0) <= max_texts
    for batch, following in pairwise(batches):
        longest = max(1, lengths[batch[0]])
        assert len(batch) == max_texts or (len(batch) + 1) * longest > max_tokens
        assert lengths[batch[-1]] >= lengths[following[0]]


def test_a_run_returns_no_more_than_its_bound() -> None:
    assert texts_per_batch(4 * 30522, "cpu") * 4 * 30522 <= 8 << 20
    assert texts_per_batch(4 * 30522, "cuda:1") * 4 * 30522 <= 256 << 20
    assert texts_per_batch(10**12, "cpu") == 1
    assert texts_per_batch(0, "cpu") > 10**6, "outputs with a row for each token are bounded by the tokens"


def test_one_unit_of_batch_size_is_16_padded_tokens() -> None:
    # Public, in the docstring of encode: batch_size=32 stands for at most 512 tokens at a time, 8,192 on a GPU.
    assert [tokens_per_batch_unit(device) for device in ("cpu", "openvino")] == [16, 16]
    assert [tokens_per_batch_unit(device) for device in ("cuda", "cuda:1", "tensorrt")] == [256, 256, 256]
    assert tokens_on_one_thread(32 * 16) == 320
    assert tokens_on_one_thread(1) == 1


@settings(deadline=None)
@given(lengths=lengths_of_texts, max_tokens=st.integers(200, 600), workers=st.integers(1, 8))
def test_a_small_call_is_enough_batches_for_all_workers(lengths: list[int], max_tokens: int, workers: int) -> None:
    share = share_of_budget(sum(lengths), max_tokens, workers)
    assert share <= max_tokens
    assert share == max_tokens or share >= 128
    # What is less than the budget is not more than an equal share, if that is worth a run.
    assert share <= max(128, sum(lengths) / workers + 1)


@all_lengths
@settings(deadline=None)
@given(
    lengths=lengths_of_texts | lengths_with_ties,
    first=st.integers(1, 20),
    size=st.integers(1, 30),
    max_length=st.integers(1, 5000),
)
def test_windows(kind: Any, lengths: list[int], first: int, size: int, max_length: int) -> None:
    pieces = list(windows(kind(lengths), first, size, max_length))
    assert concatenated(pieces) == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    ahead = [[lengths[index] for index in piece] for piece in pieces]
    for number, piece in enumerate(ahead):
        limit = size if number else first
        assert 1 <= len(piece) <= limit
        assert sum(piece) <= max_length or len(piece) == 1
        # No window could take the next text.
        following = ahead[number + 1][:1] if number + 1 < len(ahead) else []
        assert not following or len(piece) == limit or sum(piece) + following[0] > max_length


@settings(deadline=None)
@given(texts=st.lists(st.sampled_from("abc") | st.tuples(st.sampled_from("ab"), st.sampled_from("ab"))), data=st.data())
def test_duplicates(texts: list[Any], data: Any) -> None:
    duplicates = Duplicates(texts)
    assert duplicates.distinct == list(dict.fromkeys(texts))
    numbers = data.draw(st.permutations(range(len(duplicates.distinct))))
    parts = [numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]]
    seen: list[int] = []
    for part in parts:
        indices, rows = duplicates.spread(np.array(part, dtype=np.intp))
        assert [texts[index] for index in indices] == [duplicates.distinct[part[row]] for row in rows]
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(texts)))


@settings(deadline=None)
@given(lengths=lengths_of_texts, workers=st.integers(1, 6), max_texts=st.none() | st.integers(1, 10))
def test_few_batches_for_several_workers(lengths: list[int], workers: int, max_texts: int | None) -> None:
    plain = plan_batches(lengths, 320, max_texts)
    batches = plan_batches(lengths, 320, max_texts, workers)
    assert concatenated(batches) == concatenated(plain)
    for batch in batches:
        assert 1 <= len(batch) <= (max_texts or len(batch))
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= 400
    assert duration(batches, lengths, workers) <= duration(plain, lengths, workers)
    limited = plan_batches(lengths, 320, max_texts, workers, limit=330)
    assert max((len(batch) * lengths[batch[0]] for batch in limited if len(batch) > 1), default=0) <= 330
    few = plan_batches(lengths, 40, max_texts, workers, limit=64)
    assert max((len(batch) * lengths[batch[0]] for batch in few if len(batch) > 1), default=0) <= 50


def duration(batches: list[Any], lengths: list[int], workers: int) -> int:
    """When the last worker is done, with 30 tokens for each run."""
    done = [0] * workers
    for batch in batches:
        done[done.index(min(done))] += len(batch) * lengths[batch[0]] + 30
    return max(done)


@pytest.mark.parametrize(
    ("texts", "workers", "expected"), [(10, 2, [5, 5]), (12, 2, [3] * 4), (8, 4, [2] * 4), (20, 1, [4] * 5)]
)
def test_no_worker_waits_long(texts: int, workers: int, expected: list[int]) -> None:
    assert list(map(len, plan_batches([70] * texts, 320, workers=workers))) == expected


def test_nothing_to_do() -> None:
    assert plan_batches([], 10, workers=2) == []
    assert plan_batches([], 10) == []
    assert list(windows([], 1, 1, 1)) == []
    assert Duplicates([]).distinct == []
