"""maxsim and its kin against sentence-transformers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import util as original

import stonnx.util as util
from stonnx import InvalidArgumentError, UnsupportedError

pytestmark = pytest.mark.needs("sentence-transformers", "6.2", "late interaction")

NAMES = ["maxsim", "maxsim_pairwise", "mean_maxsim", "mean_maxsim_pairwise"]
SAME = {"rtol": 1e-5, "atol": 1e-5}


def ragged(lengths: list[int], seed: int = 0, dimension: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, dimension)).astype(np.float32) for length in lengths]


def both(name: str, *arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What stonnx and the original give for the same arguments."""
    return getattr(util, name)(*arguments, **options), getattr(original, name)(*arguments, **options).numpy()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=7),
    chunk=st.sampled_from([None, 1, 50, 1000]),
    seed=st.integers(0, 99),
)
def test_ragged_lists(name: str, lengths: list[tuple[int, int]], chunk: int | None, seed: int) -> None:
    queries, documents = ragged([one for one, _ in lengths], seed), ragged([two for _, two in lengths], seed + 1)
    if not any(two for _, two in lengths):
        documents[0] = documents[0].reshape(0, 8)
    found, expected = both(name, queries, documents, chunk_elements=chunk)
    np.testing.assert_allclose(found, expected, **SAME)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masks", [False, True])
def test_padded_arrays(name: str, masks: bool) -> None:
    rng = np.random.default_rng(1)
    queries, documents = (rng.standard_normal((3, length, 8)).astype(np.float32) for length in (4, 6))
    queries[1, 2:] = documents[0, 5:] = 0
    options: dict[str, Any] = {}
    if masks:
        options = {"a_mask": rng.random((3, 4)) < 0.7, "b_mask": rng.random((3, 6)) < 0.7}
        options["a_mask"][:, 0] = options["b_mask"][:, 0] = True
        options = {key: value.astype(np.float32) if key == "a_mask" else value for key, value in options.items()}
    np.testing.assert_allclose(*both(name, queries, documents, **options), **SAME)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_masks_of_lists(name: str) -> None:
    queries, documents = ragged([2, 4]), ragged([5, 3], 1)
    options = {
        "a_mask": [torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])],
        "b_mask": [torch.tensor([True, False, True, True, True]), torch.tensor([False, True, True])],
    }
    np.testing.assert_allclose(*both(name, queries, documents, **options), **SAME)


@pytest.mark.parametrize("name", NAMES)
def test_one_item(name: str) -> None:
    query, document = ragged([4, 7])
    np.testing.assert_allclose(*both(name, query, document), **SAME)
    np.testing.assert_allclose(
        *both(name, query, document, np.array([1, 1, 0, 1]), np.array([1.0] * 6 + [0.0])), **SAME
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8])
def test_dtypes(dtype: Any) -> None:
    queries, documents = ([(array * 20).astype(dtype) for array in ragged(sizes)] for sizes in ([2, 4], [5, 3, 1]))
    found, expected = both("maxsim", queries, documents)
    assert found.dtype == np.float32  # as the original says; it gives float64 for float64
    np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype is np.float16 else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_in_tensor_out(name: str) -> None:
    queries, documents = ([torch.tensor(array) for array in ragged(sizes)] for sizes in ([2, 4], [5, 3]))
    found = getattr(util, name)(queries, documents)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, getattr(original, name)(queries, documents), **SAME)


def test_empty_sides() -> None:
    assert util.maxsim([], ragged([3])).shape == (0, 1)
    assert util.maxsim(ragged([3]), []).shape == (1, 0)
    assert util.maxsim_pairwise([], []).shape == (0,)


def test_a_document_without_rows(caplog: pytest.LogCaptureFixture) -> None:
    queries, documents = ragged([3]), ragged([0, 2])
    with caplog.at_level(logging.WARNING, "stonnx"):
        found, expected = both("maxsim", queries, documents)
    assert found[0, 0] == expected[0, 0] == np.float32(-1e9)
    assert "1 documents have no row that counts, the first at index 0" in caplog.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: util.maxsim(ragged([2]), ragged([2], dimension=4)), r"same dimension, got \[4, 8\]"),
        (lambda: util.maxsim(np.zeros(3), ragged([2])), r"a must be a list .* got shape \[3\]"),
        (lambda: util.maxsim([np.zeros(3)], ragged([2])), r"a\[0\] must have the shape \[rows, dimension\]"),
        (lambda: util.maxsim(ragged([2]), ragged([2]), a_mask=3), "a_mask must be an array"),
        (
            lambda: util.maxsim(ragged([2]), ragged([2]), b_mask=np.ones((1, 3))),
            "covers 3 tokens, and the longest item has 2 rows",
        ),
        (lambda: util.maxsim(ragged([2] * 3), ragged([2]), a_mask=np.ones((2, 2))), "has 2 items for 3"),
        (lambda: util.maxsim_pairwise(ragged([2]), ragged([2, 2])), "same number of items to score as pairs, got 1"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call()


def test_another_device() -> None:
    with pytest.raises(UnsupportedError, match="on the CPU, not on 'cuda'"):
        util.maxsim(ragged([2]), ragged([2]), device="cuda")
    assert util.maxsim(ragged([2]), ragged([2]), device=torch.device("cpu")).shape == (1, 1)


def test_kinds_of_errors_are_those_of_the_original() -> None:
    for module in (util, original):
        with pytest.raises(TypeError, match="a_mask"):
            module.maxsim(ragged([2]), ragged([2]), a_mask="not a mask")
        for function in (module.maxsim, module.maxsim_pairwise):
            with pytest.raises(TypeError):
                function(ragged([2, 3]), ragged([4, 1]), chunk_elements="all")


@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise", "mean_maxsim"])
def test_vectors_without_dimensions(name: str) -> None:
    found, expected = both(name, ragged([2], dimension=0), ragged([3], dimension=0))
    np.testing.assert_array_equal(found, expected)
