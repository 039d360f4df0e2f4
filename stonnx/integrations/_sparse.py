"""The rows of a sparse matrix, one by one: every host has a form of its own for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def csr_rows(matrix: Any) -> Iterator[tuple[list[int], list[float]]]:
    """The indices and the values of each row of a scipy CSR matrix, as Python numbers.

    Example:
        >>> import scipy.sparse
        >>> list(csr_rows(scipy.sparse.csr_array([[0.0, 0.5], [0.0, 0.0]])))
        [([1], [0.5]), ([], [])]
    """
    for start, end in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        yield matrix.indices[start:end].tolist(), matrix.data[start:end].tolist()


def csr_arrays(matrix: Any) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.float32]]]:
    """The same as arrays: the indices of all rows, int32, and the values of all rows, float32.

    Example:
        >>> import scipy.sparse
        >>> indices, values = csr_arrays(scipy.sparse.csr_array(np.float32([[0.0, 0.5], [0.0, 0.0]])))
        >>> [row.tolist() for row in indices], [row.tolist() for row in values]
        ([[1], []], [[0.5], []])
    """
    cuts = matrix.indptr[1:-1]
    if not matrix.shape[0]:
        return [], []
    indices = np.split(matrix.indices.astype(np.int32, copy=False), cuts)
    return indices, np.split(matrix.data.astype(np.float32, copy=False), cuts)
