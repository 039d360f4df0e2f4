"""Properties of batch plans: every text once, no batch over the budget, the longest texts first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stonnx._batching import TOKENS_PER_BATCH_UNIT, plan_batches, windows

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


def test_one_unit_of_batch_size_is_32_padded_tokens() -> None:
    # Public, in the docstring of encode: batch_size=32 stands for at most 1,024 tokens at a time.
    assert TOKENS_PER_BATCH_UNIT == 32


@all_lengths
@settings(deadline=None)
@given(lengths=lengths_of_texts | lengths_with_ties, first=st.integers(1, 20), size=st.integers(1, 30))
def test_windows(kind: Any, lengths: list[int], first: int, size: int) -> None:
    pieces = list(windows(kind(lengths), first, size))
    assert concatenated(pieces) == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    # Only the last piece may be smaller than asked for, and none is empty.
    expected = [first, *[size] * len(lengths)][: len(pieces)]
    if pieces:
        expected[-1] = len(lengths) - sum(expected[:-1])
    assert [len(piece) for piece in pieces] == expected
    assert all(expected)


def test_nothing_to_do() -> None:
    assert plan_batches([], 10) == []
    assert list(windows([], 1, 1)) == []
