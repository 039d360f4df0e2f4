"""When a result of stonnx counts as that of the original.

Tolerance: 1e-5 for vectors of length 1, as in test_embeddings.py; token embeddings are longer and get 1e-4. Where the
original gives tensors although nobody asked for them, stonnx gives numpy arrays of the same dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

TOLERANCE = 1e-5
TOKEN_TOLERANCE = 1e-4
TEXTS = ["The weather is lovely today.", "He drove to the stadium."]
METHODS = ["encode", "encode_query", "encode_document"]
methods = pytest.mark.parametrize("method", METHODS)


def assert_same(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """The same structure, shapes, dtypes and, within the tolerance, values; numpy where the original has tensors."""
    if isinstance(expected, list):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs, tolerance)
    elif isinstance(expected, torch.Tensor | np.ndarray):
        expected = np.asarray(expected)
        assert isinstance(actual, np.ndarray)
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    else:
        assert type(actual) is type(expected)
        assert actual == expected


def assert_same_codes(actual: np.ndarray, expected: np.ndarray) -> None:
    """Codes of an integer precision: a rounding of the vectors moves some values on an edge into the next step."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max(initial=0) <= 1
    # The largest value of each dimension is on an edge.
    assert np.mean(difference > 0) <= 0.02


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bits = [np.unpackbits(codes.view(np.uint8), axis=-1) for codes in (actual, expected)]
    assert np.mean(bits[0] != bits[1]) <= 0.001


PROMPTS = {"query": "query: ", "document": "passage: ", "topic": "The topic is "}
