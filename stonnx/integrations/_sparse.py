"""The rows of a sparse matrix, one by one: every host has a form of its own for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def csr_rows(matrix: Any) -> Iterator[tuple[list[int], list[float]]]:
    """The indices and the values of each row of a scipy CSR matrix, as Python numbers.

    Example:
        >>> import scipy.sparse
        >>> list(csr_rows(scipy.sparse.csr_array([[0.0, 0.5], [0.0, 0.0]])))
        [([1], [0.5]), ([], [])]
    """
    for start, end in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        yield matrix.indices[start:end].tolist(), matrix.data[start:end].tolist()
