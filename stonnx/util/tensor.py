"""Embeddings made unit length, and made shorter."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer, described
from stonnx._arrays import Embeddings, is_sparse, result_like, to_array, to_float
from stonnx._errors import InvalidArgumentError
from stonnx.util._matrix import unit_rows


@overload
def normalize_embeddings(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
@overload
def normalize_embeddings(embeddings: Embeddings) -> Any: ...
def normalize_embeddings(embeddings: Embeddings) -> Any:
    """Divide each embedding by its Euclidean length, or by 1e-12 if it is shorter than that.

    Args:
        embeddings: [..., dimension] dense, or [dimension] or [rows, dimension] sparse.

    Returns:
        New embeddings of the same shape, float32 (float64 for dense float64 input). Zeros stay zeros. A scipy
        sparse input gives a ``csr_array``, a tensor a tensor of the same layout.

    Raises:
        InvalidArgumentError: The values are not real numbers.

    Example:
        >>> import numpy as np
        >>> normalize_embeddings(np.array([[3.0, 4.0], [0.0, 0.0]]))
        array([[0.6, 0.8],
               [0. , 0. ]])
    """
    return _like_input(embeddings, unit_rows(to_float(_vectors(embeddings))))


@overload
def truncate_embeddings(embeddings: npt.NDArray[np.float32], truncate_dim: int | None) -> npt.NDArray[np.float32]: ...
@overload
def truncate_embeddings(embeddings: Embeddings, truncate_dim: int | None) -> Any: ...
def truncate_embeddings(embeddings: Embeddings, truncate_dim: int | None) -> Any:
    """Keep the first dimensions of each embedding, as models trained for it allow (Matryoshka, arXiv:2205.13147).

    The result does not have unit length: normalize it afterwards to compare by dot product.

    Args:
        embeddings: [..., dimension] dense, or [dimension] or [rows, dimension] sparse.
        truncate_dim: How many dimensions to keep. None, or more than there are, keeps all.

    Returns:
        [..., truncate_dim] of the same dtype; a view for numpy arrays and dense tensors, as slicing gives.

    Raises:
        InvalidArgumentError: ``truncate_dim`` is below 1.

    Example:
        >>> import numpy as np
        >>> truncate_embeddings(np.eye(2, 8), 3)
        array([[1., 0., 0.],
               [0., 1., 0.]])
    """
    truncate_dim = check_integer("truncate_dim", truncate_dim, optional=True)
    array = _vectors(embeddings)
    if is_sparse(array):
        return _like_input(embeddings, array[:, :truncate_dim])
    # Slicing the tensor itself keeps its dtype, bfloat16 among them, its device and its gradient.
    sliceable = embeddings if hasattr(embeddings, "ndim") else result_like(embeddings)(array)
    return sliceable[..., :truncate_dim]


@overload
def select_max_active_dims(
    embeddings: npt.NDArray[np.float32], max_active_dims: int | None
) -> npt.NDArray[np.float32]: ...
@overload
def select_max_active_dims(embeddings: Embeddings, max_active_dims: int | None) -> Any: ...
def select_max_active_dims(embeddings: Embeddings, max_active_dims: int | None) -> Any:
    """Keep the values of largest magnitude of each embedding; of equal ones the first. The others become zero.

    Args:
        embeddings: [..., dimension] dense, or [dimension] or [rows, dimension] sparse.
        max_active_dims: How many values to keep of each. None, or more than there are, keeps all.

    Returns:
        New embeddings of the same shape, float32 (float64 for dense float64 input). For None, the given embeddings.
        A scipy sparse input gives a ``csr_array``, a tensor a tensor of the same layout.

    Raises:
        InvalidArgumentError: ``max_active_dims`` is below 1, or the values are not real numbers.

    Example:
        >>> import numpy as np
        >>> select_max_active_dims(np.array([[1.0, -3.0, 2.0], [0.0, 0.5, 0.0]]), 2)
        array([[ 0. , -3. ,  2. ],
               [ 0. ,  0.5,  0. ]])
    """
    max_active_dims = check_integer("max_active_dims", max_active_dims, optional=True)
    if max_active_dims is None:
        return embeddings
    array = to_float(_vectors(embeddings))
    if not is_sparse(array):
        weakest = np.argsort(-np.abs(array), axis=-1, kind="stable")[..., max_active_dims:]
        result = array.copy()
        np.put_along_axis(result, weakest, 0, axis=-1)
        return _like_input(embeddings, result)
    row = np.repeat(np.arange(array.shape[0]), np.diff(array.indptr))
    # Sorted by row, and within a row by strength.
    order = np.lexsort((array.indices, -np.abs(array.data), row))
    kept = np.sort(order[np.arange(len(order)) - array.indptr[row[order]] < max_active_dims])
    counts = np.bincount(row[kept], minlength=array.shape[0])
    parts = (array.data[kept], array.indices[kept], np.concatenate([[0], np.cumsum(counts)]))
    return _like_input(embeddings, type(array)(parts, shape=array.shape))


def _vectors(embeddings: Embeddings) -> Any:
    array = to_array(embeddings)
    to_float(array[:0] if array.ndim else array)  # for its error: the dtype stays as it is
    if not array.ndim:
        raise InvalidArgumentError(
            f"Embeddings must be a vector [dimension] or an array [..., dimension], got {described(embeddings)}."
        )
    return array


def _like_input(embeddings: Embeddings, matrix: Any) -> Any:
    result = result_like(embeddings)(matrix)
    was_sparse_vector = is_sparse(matrix) and getattr(embeddings, "ndim", 2) == 1
    return result[0] if was_sparse_vector else result
