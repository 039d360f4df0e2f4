"""What every host is asked, and how its answers are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

TEXTS = ["bread rises", "the river flows", "the sun shines", "what is the city"]
QUERY = "what rises"
# Hosts form their own batches: what stonnx promises for a text in any batch. Lists and Arrow keep every float32.
SAME = {"rtol": 0, "atol": 1e-6}


def approx(order: list[tuple[int, float]]) -> list[Any]:
    return [(index, pytest.approx(score, abs=1e-6)) for index, score in order]


def same_sparse(matrix: Any, row: int, indices: Any, values: Any) -> None:
    start, end = matrix.indptr[row : row + 2]
    np.testing.assert_array_equal(indices, matrix.indices[start:end])
    np.testing.assert_allclose(values, matrix.data[start:end], **SAME)
