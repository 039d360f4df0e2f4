"""Sparse vectors: batches of mostly zeros to rows of a ``scipy.sparse.csr_array``, and functions on these.

The only code here that needs scipy imports it when called: dense models run without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._engine.call import BatchResult
from stonnx._engine.request import Request
from stonnx._engine.route import LoadedRoute
from stonnx._errors import InvalidArgumentError, InvalidInputError, MissingDependencyError
from stonnx._results.dense import join_rows

CsrArray: TypeAlias = Any
"""A ``scipy.sparse.csr_array``; scipy has no type information."""

# One-dimensional csr_arrays: https://docs.scipy.org/doc/scipy/release/1.15.0-notes.html
_OLDEST_SCIPY = (1, 15)


@dataclass(frozen=True)
class SparseRows:
    """Rows of mostly zeros, as their other values: those of the first row, then those of the second.

    Attributes:
        counts: The number of values of each row, int64 [rows].
        columns: The column of each value, ascending within a row, int32 [values].
        values: float32 [values].

    Example:
        >>> rows = SparseRows.of(np.array([[1.0, -3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 4.0]], dtype=np.float32))
        >>> rows.columns.tolist(), rows.strongest(2).columns.tolist(), rows[np.array([1])].columns.tolist()
        ([0, 1, 3, 3], [1, 3, 3], [3])
    """

    counts: npt.NDArray[np.intp]
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, batch: npt.NDArray[np.float32]) -> SparseRows:
        """The non-zero values of a batch [rows, width]."""
        active = np.flatnonzero(batch != 0)  # for booleans it is ten times faster than for floats
        ends = np.searchsorted(active, np.arange(1, len(batch) + 1) * batch.shape[1])
        columns = (active % batch.shape[1]).astype(np.int32)
        return cls(np.diff(ends, prepend=0), columns, batch.reshape(-1)[active])

    def strongest(self, limit: int | None) -> SparseRows:
        """The same rows with no more than ``limit`` values each, those of largest magnitude; of equal ones the first.

        None, or a number that no row exceeds, keeps all values.
        """
        if limit is None or self.counts.max(initial=0) <= limit:
            return self
        # Sorted by row, and within a row by descending magnitude. lexsort is stable, and columns ascend within a row.
        order = np.lexsort((-np.abs(self.values), np.repeat(np.arange(len(self.counts)), self.counts)))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        kept = np.zeros(len(order), dtype=np.bool_)
        kept[order[rank < limit]] = True
        return SparseRows(np.minimum(self.counts, limit), self.columns[kept], self.values[kept])

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> SparseRows:
        """Some of the rows, in any order, any of them several times."""
        counts = self.counts[rows]
        starts = (np.cumsum(self.counts) - self.counts)[rows]
        places = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return SparseRows(counts, self.columns[places], self.values[places])

    def write(self, matrix: npt.NDArray[np.float32], indices: npt.NDArray[np.intp]) -> None:
        """Put row ``i`` into row ``indices[i]`` of a dense matrix of zeros [any, width]."""
        matrix[np.repeat(indices, self.counts), self.columns] = self.values


@dataclass(frozen=True)
class Strongest:
    """Keeps of a run's dense vectors, [batch, width], only the values of largest magnitude: ``Request.reduce``."""

    count: int | None

    def __call__(self, outputs: list[npt.NDArray[np.float32]]) -> list[SparseRows]:
        return [SparseRows.of(outputs[0]).strongest(self.count)]


@dataclass(frozen=True)
class CsrMatrix:
    """Collects :class:`SparseRows` as a float32 ``csr_array`` [texts, width]."""

    width: int

    def collect(self, request: Request[CsrArray], route: LoadedRoute, batches: Iterator[BatchResult]) -> CsrArray:
        """The vectors of the texts of a request."""
        rows = CsrRows(len(request.texts), self.width)
        for batch in batches:
            rows.add(batch.indices, batch.outputs[0])
        return rows.matrix()

    def join(self, parts: list[CsrArray]) -> CsrArray:
        """The vectors of all texts."""
        return join_csr(parts)


@dataclass(frozen=True)
class DenseMatrix:
    """Collects :class:`SparseRows` as a float32 numpy array [texts, width]."""

    width: int

    def collect(
        self, request: Request[npt.NDArray[np.float32]], route: LoadedRoute, batches: Iterator[BatchResult]
    ) -> npt.NDArray[np.float32]:
        """The vectors of the texts of a request."""
        matrix = np.zeros((len(request.texts), self.width), dtype=np.float32)
        for batch in batches:
            batch.outputs[0].write(matrix, batch.indices)
        return matrix

    def join(self, parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The vectors of all texts."""
        return join_rows(parts)


class CsrRows:
    """Rows that come in batches, to be put together in the order of the texts."""

    def __init__(self, rows: int, width: int) -> None:
        self._shape = (rows, width)
        self._counts = np.zeros(rows, dtype=np.int64)
        self._pieces: list[tuple[npt.NDArray[np.intp], SparseRows]] = []
        # A missing scipy must be an error before the first batch runs.
        self._sparse = scipy_sparse()

    def add(self, indices: npt.NDArray[np.intp], rows: SparseRows) -> None:
        """Keep a batch, whose row ``i`` is row ``indices[i]`` of the result."""
        self._counts[indices] = rows.counts
        self._pieces.append((indices, rows))

    def matrix(self) -> CsrArray:
        """The rows as a float32 ``csr_array`` [rows, width]. Call it once: the batches are freed on the way."""
        starts = np.concatenate(([0], np.cumsum(self._counts)))
        columns = np.empty(starts[-1], dtype=np.int32)
        values = np.empty(starts[-1], dtype=np.float32)
        while self._pieces:
            indices, rows = self._pieces.pop()
            shift = starts[indices] - (np.cumsum(rows.counts) - rows.counts)
            target = np.arange(len(rows.columns)) + np.repeat(shift, rows.counts)
            columns[target] = rows.columns
            values[target] = rows.values
        return self._sparse.csr_array((values, columns, starts), shape=self._shape)


def join_csr(parts: list[CsrArray]) -> CsrArray:
    """csr_arrays one below the other."""
    return parts[0] if len(parts) == 1 else scipy_sparse().vstack(parts, format="csr")


def empty_csr(width: int) -> CsrArray:
    """A csr_array of no rows, float32 [0, width]."""
    return scipy_sparse().csr_array((0, width), dtype=np.float32)


def csr_row(matrix: CsrArray, index: int) -> CsrArray:
    """A row of a csr_array [rows, width] as a csr_array [width]."""
    start, end = matrix.indptr[index : index + 2]
    parts = (matrix.data[start:end], matrix.indices[start:end], np.array([0, end - start]))
    return scipy_sparse().csr_array(parts, shape=matrix.shape[1:])


def read_sparse(embeddings: Any) -> tuple[CsrArray, bool]:
    """Embeddings as a canonical csr_array [rows, width], and whether they were a single vector [width].

    Raises:
        InvalidInputError: They are not a numpy array, scipy sparse array or torch tensor.
        InvalidArgumentError: They do not have one or two dimensions.
    """
    from stonnx._arrays import as_csr, is_sparse, is_tensor, to_array, to_float

    if not (isinstance(embeddings, np.ndarray) or is_sparse(embeddings) or is_tensor(embeddings)):
        raise InvalidInputError(
            "embeddings: Expected torch.Tensor, numpy.ndarray or a scipy sparse array, got "
            f"{type(embeddings).__name__}. Stack a list of rows first: scipy.sparse.vstack(rows, format='csr')."
        )
    if embeddings.ndim not in (1, 2):
        raise InvalidArgumentError(
            f"embeddings: Input tensor must be 1D or 2D: vector [dim] or matrix [rows, dim], got {embeddings.ndim}D."
        )
    scipy_sparse()
    return as_csr(to_float(to_array(embeddings))), embeddings.ndim == 1


def sparsity(embeddings: Any) -> dict[str, float]:
    """The mean number of stored values of a row, and the mean share of the others."""
    matrix, _ = read_sparse(embeddings)
    rows, width = matrix.shape
    active = matrix.nnz / rows if rows and width else 0.0
    return {"active_dims": active, "sparsity_ratio": 1.0 - active / width if width else 1.0}


def intersection(embeddings_1: Any, embeddings_2: Any) -> Any:
    """The positive part of the product of a vector with each row, in the kind of the arguments."""
    from stonnx._arrays import result_like

    vector, is_vector = read_sparse(embeddings_1)
    if not is_vector:
        raise InvalidArgumentError(
            f"The first embedding must be a single vector [dim], found the shape {vector.shape}. "
            "Pass its rows one by one."
        )
    matrix, single = read_sparse(embeddings_2)
    if vector.shape[1] != matrix.shape[1]:
        raise InvalidArgumentError(
            f"The embeddings have {vector.shape[1]} and {matrix.shape[1]} dimensions, and must have equally many: "
            "encode both with the same model."
        )
    factors = np.zeros(vector.shape[1], dtype=vector.dtype)
    factors[vector.indices] = vector.data
    products = matrix.data * factors[matrix.indices]
    kept = products > 0
    counts = np.concatenate(([0], np.cumsum(kept)))[matrix.indptr]
    shared = scipy_sparse().csr_array((products[kept], matrix.indices[kept], counts), shape=matrix.shape)
    like_input = result_like(embeddings_1, embeddings_2)(shared)
    if not single:
        return like_input
    return csr_row(shared, 0) if like_input is shared else like_input[0]


def scipy_sparse() -> Any:
    """``scipy.sparse``, imported when it is first needed.

    Raises:
        MissingDependencyError: scipy is not installed, or too old.
    """
    from stonnx._arrays import scipy_sparse

    sparse = scipy_sparse()
    from scipy import __version__ as version

    if tuple(map(int, version.split(".")[:2])) < _OLDEST_SCIPY:
        oldest = ".".join(map(str, _OLDEST_SCIPY))
        raise MissingDependencyError(
            f'Sparse vectors need scipy {oldest} or newer, found {version}: pip install -U "stonnx[sparse]"'
        )
    return sparse
