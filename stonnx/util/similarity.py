"""Similarity of embeddings: every row of one with every row of another, or row by row.

Every function takes lists, numpy arrays, scipy sparse matrices and torch tensors, and computes in float32, or in
float64 if a dense input is float64. The result is a numpy array, as annotated, or a torch tensor (without a
gradient) if an input is one. Higher is more similar, so distances come back negative.

All raise InvalidArgumentError for embeddings of different dimensions, with more than two axes, or of a dtype that
holds no real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from stonnx._arrays import (
    Embeddings,
    FloatArray,
    Matrix,
    as_csr,
    check_same_width,
    is_sparse,
    result_like,
    to_array,
    to_matrix,
)
from stonnx._errors import InvalidArgumentError
from stonnx.util._matrix import blocks, product, row_abs_sum, row_dot, transposed, unit_rows

Similarity: TypeAlias = Callable[[Embeddings, Embeddings], FloatArray]

# torch.cdist takes the difference of each pair up to this many rows, and a matrix product above:
# https://docs.pytorch.org/docs/stable/generated/torch.cdist.html, compute_mode.
_MOST_ROWS_FOR_DIFFERENCES = 25

_BLOCK_ELEMENTS = 1 << 16  # 256 KB of differences at a time: they stay in the cache, and memory stays bounded


def cos_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Cosine of each row of ``a`` with each row of ``b``; 0 if either row is all zeros.

    Args:
        a: [n, dimension], or one vector.
        b: [m, dimension], or one vector.

    Returns:
        [n, m], float32 (float64 for dense float64 input).

    Example:
        >>> cos_sim([1.0, 0.0], [[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
        array([[ 1.,  0., -1.]], dtype=float32)
    """
    rows_a, rows_b, like_input = _matrices(a, b)
    return like_input(product(unit_rows(rows_a), transposed(unit_rows(rows_b))))


pytorch_cos_sim = cos_sim  # the name before sentence-transformers 2


def dot_score(a: Embeddings, b: Embeddings) -> FloatArray:
    """Dot product of each row of ``a`` with each row of ``b``.

    Args:
        a: [n, dimension], or one vector.
        b: [m, dimension], or one vector.

    Returns:
        [n, m], float32 (float64 for dense float64 input).

    Example:
        >>> dot_score([[1.0, 2.0]], [[3.0, 4.0], [0.0, 1.0]])
        array([[11.,  2.]], dtype=float32)
    """
    rows_a, rows_b, like_input = _matrices(a, b)
    return like_input(product(rows_a, transposed(rows_b)))


def euclidean_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Negative Euclidean distance of each row of ``a`` to each row of ``b``.

    With more than 25 rows on a side, or sparse input, it is computed as ``sqrt(|a|² + |b|² - 2ab)``, as torch.cdist
    does. In float32 that can leave ``1e-3 * |a|`` of a distance that is really 0.

    Args:
        a: [n, dimension], or one vector.
        b: [m, dimension], or one vector.

    Returns:
        [n, m], float32 (float64 for dense float64 input), none above 0.

    Example:
        >>> euclidean_sim([[0.0, 0.0]], [[3.0, 4.0], [6.0, 8.0]])
        array([[ -5., -10.]], dtype=float32)
    """
    rows_a, rows_b, like_input = _matrices(a, b)
    differences_are_cheap = max(rows_a.shape[0], rows_b.shape[0]) <= _MOST_ROWS_FOR_DIFFERENCES
    if differences_are_cheap and not (is_sparse(rows_a) or is_sparse(rows_b)):
        squared = _sum_of_differences(rows_a, rows_b, np.square)
    else:
        squared = product(rows_a, transposed(rows_b))
        squared *= -2
        squared += row_dot(rows_a, rows_a)[:, None]
        squared += row_dot(rows_b, rows_b)
        np.maximum(squared, 0, out=squared)  # rounding can leave a small negative
    np.sqrt(squared, out=squared)
    return like_input(np.negative(squared, out=squared))


def manhattan_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Negative Manhattan distance, the sum of absolute differences, of each row of ``a`` to each row of ``b``.

    Args:
        a: [n, dimension], or one vector.
        b: [m, dimension], or one vector.

    Returns:
        [n, m], float32 (float64 for dense float64 input), none above 0.

    Example:
        >>> manhattan_sim([[0.0, 0.0]], [[3.0, 4.0], [-6.0, 8.0]])
        array([[ -7., -14.]], dtype=float32)
    """
    rows_a, rows_b, like_input = _matrices(a, b)
    if is_sparse(rows_a) or is_sparse(rows_b):
        return like_input(-_sparse_manhattan(as_csr(rows_a), as_csr(rows_b)))
    return like_input(-_sum_of_differences(rows_a, rows_b, np.abs))


def pairwise_cos_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Cosine of each row of ``a`` with the same row of ``b``; 0 if either row is all zeros.

    Args:
        a: [n, dimension]; or one vector or row, which is compared with every row of ``b``.
        b: [n, dimension]; or one vector or row, which is compared with every row of ``a``.

    Returns:
        [n], or [] for two vectors; float32 (float64 for dense float64 input).

    Example:
        >>> pairwise_cos_sim([[1.0, 0.0], [0.0, 2.0]], [[5.0, 0.0], [0.0, -1.0]])
        array([ 1., -1.], dtype=float32)
    """
    return _by_row(a, b, lambda rows_a, rows_b: row_dot(unit_rows(rows_a), unit_rows(rows_b)))


def pairwise_dot_score(a: Embeddings, b: Embeddings) -> FloatArray:
    """Dot product of each row of ``a`` with the same row of ``b``.

    Args:
        a: [n, dimension]; or one vector or row, which is compared with every row of ``b``.
        b: [n, dimension]; or one vector or row, which is compared with every row of ``a``.

    Returns:
        [n], or [] for two vectors; float32 (float64 for dense float64 input).

    Example:
        >>> pairwise_dot_score([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [2.0, 0.0]])
        array([3., 6.], dtype=float32)
    """
    return _by_row(a, b, row_dot)


def pairwise_euclidean_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Negative Euclidean distance of each row of ``a`` to the same row of ``b``.

    Args:
        a: [n, dimension]; or one vector or row, which is compared with every row of ``b``.
        b: [n, dimension]; or one vector or row, which is compared with every row of ``a``.

    Returns:
        [n], or [] for two vectors; float32 (float64 for dense float64 input).

    Example:
        >>> pairwise_euclidean_sim([[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 3.0]])
        array([-5., -2.], dtype=float32)
    """

    def distance(rows_a: Matrix, rows_b: Matrix) -> FloatArray:
        difference = rows_a - rows_b
        return -np.sqrt(row_dot(difference, difference))

    return _by_row(a, b, distance)


def pairwise_manhattan_sim(a: Embeddings, b: Embeddings) -> FloatArray:
    """Negative Manhattan distance of each row of ``a`` to the same row of ``b``.

    Args:
        a: [n, dimension]; or one vector or row, which is compared with every row of ``b``.
        b: [n, dimension]; or one vector or row, which is compared with every row of ``a``.

    Returns:
        [n], or [] for two vectors; float32 (float64 for dense float64 input).

    Example:
        >>> pairwise_manhattan_sim([[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 3.0]])
        array([-7., -2.], dtype=float32)
    """
    return _by_row(a, b, lambda rows_a, rows_b: -row_abs_sum(rows_a - rows_b))


def pairwise_angle_sim(x: Embeddings, y: Embeddings) -> FloatArray:
    """AnglE similarity of each row of ``x`` with the same row of ``y``: ``|cosine + sine|``.

    The first half of a row holds the real parts of complex numbers, the second half the imaginary parts; a row of
    odd length is padded with a zero. Source: AnglE, https://arxiv.org/abs/2309.12871, section 3.3.

    Args:
        x: [n, dimension]; or one vector or row, which is compared with every row of ``y``.
        y: [n, dimension]; or one vector or row, which is compared with every row of ``x``.

    Returns:
        [n], or [] for two vectors; float32 (float64 for dense float64 input), none below 0.

    Example:
        >>> pairwise_angle_sim([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
        array([1., 1.], dtype=float32)
    """

    def similarity(rows_x: Matrix, rows_y: Matrix) -> FloatArray:
        unit_x, unit_y = unit_rows(rows_x), unit_rows(rows_y)
        half = (unit_x.shape[1] + 1) // 2
        imaginary_x, imaginary_y = unit_x[:, half:], unit_y[:, half:]
        # The real part opposite the padding contributes zero, so this leaves it out instead of padding.
        paired = imaginary_x.shape[1]
        sine = row_dot(imaginary_x, unit_y[:, :paired]) - row_dot(unit_x[:, :paired], imaginary_y)
        return np.asarray(np.abs(row_dot(unit_x, unit_y) + sine))

    return _by_row(x, y, similarity)


def _matrices(a: Embeddings, b: Embeddings) -> tuple[Matrix, Matrix, Callable[[FloatArray], FloatArray]]:
    rows_a, rows_b = to_matrix(a), to_matrix(b)
    check_same_width(rows_a, rows_b)
    return rows_a, rows_b, result_like(a, b)


def _by_row(a: Embeddings, b: Embeddings, score: Callable[[Matrix, Matrix], FloatArray]) -> FloatArray:
    """``score`` of the rows of both, which takes [n, dimension] twice and returns [n]."""
    like_input: Callable[[FloatArray], FloatArray] = result_like(a, b)
    a, b = (value if hasattr(value, "ndim") else to_array(value) for value in (a, b))
    rows_a, rows_b = to_matrix(a), to_matrix(b)
    check_same_width(rows_a, rows_b)
    counts = {rows_a.shape[0], rows_b.shape[0]}
    count = max(counts - {1}, default=1)
    if counts - {1, count}:
        raise InvalidArgumentError(
            f"The embeddings have {rows_a.shape[0]} and {rows_b.shape[0]} rows; row by row they need equally many, or "
            "one on a side. To compare all rows with all rows use the function without pairwise_ in its name."
        )
    if is_sparse(rows_a) or is_sparse(rows_b):
        # Sparse matrices subtract only at equal shapes.
        rows_a, rows_b = (
            rows if rows.shape[0] == count else rows[np.zeros(count, dtype=int)]
            for rows in (as_csr(rows_a), as_csr(rows_b))
        )
        scores = score(rows_a, rows_b)
    else:
        # In blocks: intermediate arrays of a score stay in the cache, and memory stays bounded.
        rows_a, rows_b = np.broadcast_arrays(rows_a, rows_b)
        scores = np.empty(count, np.result_type(rows_a, rows_b))
        for block in blocks(rows_a):
            scores[block] = score(rows_a[block], rows_b[block])
    # An empty list is no vectors, not a vector of no dimensions.
    are_vectors = a.ndim == 1 and b.ndim == 1 and count == 1
    return like_input(scores.reshape(()) if are_vectors else scores)


def _sum_of_differences(rows_a: FloatArray, rows_b: FloatArray, of: Callable[..., Any]) -> FloatArray:
    sums = np.empty((len(rows_a), len(rows_b)), np.result_type(rows_a, rows_b))
    step = max(1, _BLOCK_ELEMENTS // max(1, rows_b.shape[1]))
    for start in range(0, len(rows_b), step):
        block = rows_b[start : start + step]
        difference = np.empty(block.shape, sums.dtype)
        for row, row_sums in zip(rows_a, sums, strict=True):
            np.subtract(block, row, out=difference)
            of(difference, out=difference)
            difference.sum(axis=1, out=row_sums[start : start + step])
    return sums


def _sparse_manhattan(rows_a: Any, rows_b: Any) -> FloatArray:
    # |x - y| is |x| + |y| unless both are non-zero. So this looks at those columns only, one row at a time.
    # In float64, because the two parts cancel.
    rows_a, columns_b = rows_a.astype(np.float64), rows_b.tocsc().astype(np.float64)
    distances = np.add.outer(row_abs_sum(rows_a), row_abs_sum(columns_b))
    for row, start, end in zip(distances, rows_a.indptr[:-1], rows_a.indptr[1:], strict=True):
        shared = columns_b[:, rows_a.indices[start:end]]
        x = np.repeat(rows_a.data[start:end], np.diff(shared.indptr))
        excess = np.abs(x - shared.data) - np.abs(x) - np.abs(shared.data)
        row += np.bincount(shared.indices, weights=excess, minlength=len(row))
    return np.maximum(distances, 0).astype(np.float32)
