"""The row operations that dense and CSR matrices share. Every result except a normalized matrix is dense."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stonnx._arrays import FloatArray, Matrix, is_sparse

_SMALLEST_NORM = 1e-12  # torch.nn.functional.normalize divides by no less, so a row of zeros stays zeros
_BLOCK_ELEMENTS = 1 << 22
_CACHED_ELEMENTS = 1 << 18


def unit_rows(matrix: Matrix) -> Matrix:
    """Each row divided by its length, in a new matrix. A dense one may have any number of dimensions."""
    if is_sparse(matrix):
        unit = matrix.copy()
        unit.data /= np.repeat(_norms(matrix), np.diff(matrix.indptr))
        return unit
    unit = np.empty(matrix.shape, matrix.dtype)
    shape = (math.prod(matrix.shape[:-1]), matrix.shape[-1])
    rows, result = matrix.reshape(shape), unit.reshape(shape)
    for block in blocks(rows):
        # `divide` with an operand for each row takes 1.5 times as long.
        np.einsum("ij,i->ij", rows[block], 1 / _norms(rows[block]), out=result[block])
    return unit


def _norms(matrix: Matrix) -> FloatArray:
    return np.maximum(np.sqrt(row_dot(matrix, matrix)), _SMALLEST_NORM)


def blocks(rows: FloatArray) -> Iterator[slice]:
    """Parts of a dense matrix [rows, dimension] that stay in a processor's cache, to do several steps with each."""
    step = max(1, _CACHED_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def transposed(matrix: Matrix) -> Matrix:
    """The transpose in the layout that :func:`product` multiplies fastest."""
    return matrix.T.tocsr() if is_sparse(matrix) else matrix.T


def product(a: Matrix, b_transposed: Matrix) -> FloatArray:
    """``a @ b_transposed`` of [n, d] and [d, m] as a dense [n, m] array."""
    if not (is_sparse(a) and is_sparse(b_transposed)):
        return np.ascontiguousarray(a @ b_transposed)
    shape = (a.shape[0], b_transposed.shape[1])
    result = np.empty(shape, np.result_type(a.dtype, b_transposed.dtype))
    # In blocks: the sparse product of nearly dense rows takes several times the memory of the result.
    step = max(1, _BLOCK_ELEMENTS // max(1, shape[1]))
    for start in range(0, shape[0], step):
        (a[start : start + step] @ b_transposed).toarray(out=result[start : start + step])
    return result


def row_dot(a: Matrix, b: Matrix) -> FloatArray:
    """The dot product of each row of ``a`` with the same row of ``b``: [n]. A single row meets every row."""
    if is_sparse(a):
        return np.asarray(a.multiply(b).sum(axis=1))
    # As products of vectors: BLAS takes half the time of `einsum`.
    return np.asarray(np.matmul(a[..., None, :], b[..., :, None])[..., 0, 0])


def row_abs_sum(matrix: Matrix) -> FloatArray:
    """The sum of the absolute values of each row: [n]."""
    return np.asarray(abs(matrix).sum(axis=1))
