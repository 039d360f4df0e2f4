"""The toy network of the tests of SparseEncoder, and the texts that it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from toy_bundles import VOCABULARY, toy_table

WIDTH = len(VOCABULARY)
DOCUMENT_TABLE, QUERY_TABLE = toy_table(WIDTH, 1), toy_table(WIDTH, 2)
PROMPTS = {"query": "question : ", "passage": "document : ", "shout": "zzz "}
TEXTS = [
    "the river flows",
    "",
    "bread rises and the sun shines where the river flows and the city is of bread and " * 3,
    "Straße 42 ?",
    "a",
    "what is the city of bread ?",
]
FACTS: dict[str, Any] = {"task": "sparse", "embedding_dimension": WIDTH}


def assert_equal(expected: torch.Tensor, result: Any) -> None:
    """A tensor of the original and a result of ours: the same shape, and the same numbers to the bit."""
    assert result.shape == tuple(expected.shape)
    assert result.dtype == np.float32
    dense = expected.to_dense().numpy()
    np.testing.assert_array_equal(dense, result if isinstance(result, np.ndarray) else result.toarray())
