"""Embeddings of every accepted kind as float matrices, and results back in the caller's kind.

Inputs are lists, numpy arrays, scipy sparse matrices and torch tensors. The check does not import torch or scipy: an
object of theirs can only exist if the caller imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidArgumentError, MissingDependencyError

Embeddings: TypeAlias = Any
"""A list (of numbers, lists, arrays, tensors), a numpy array, a scipy sparse matrix or array, or a torch tensor."""

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

Matrix: TypeAlias = Any
"""A two-dimensional float32 or float64 numpy array, or a canonical float32 ``scipy.sparse.csr_array``."""


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_sparse(value: object) -> bool:
    """Whether ``value`` is a scipy sparse matrix or array."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(value))


def to_array(value: Embeddings) -> Any:
    """``value`` as a numpy array of its own dtype, or as a CSR matrix if it is sparse (a sparse vector is one row).

    Python numbers become float32, as torch reads them, and so do bfloat16 and float8 tensors.

    Raises:
        InvalidArgumentError: The items of a list do not have the same shape.
        MissingDependencyError: The value is a sparse tensor, and scipy is not installed.
    """
    if is_tensor(value):
        return _from_tensor(value)
    if is_sparse(value):
        return _to_csr(value)
    if isinstance(value, list | tuple):
        return _from_list(value)
    return np.asarray(value)


def to_float(array: Any) -> Any:
    """An array or CSR matrix in float32, or in float64 if it is a dense float64 array.

    Raises:
        InvalidArgumentError: The values are not real numbers.
    """
    if array.dtype.kind not in "biuf":
        raise InvalidArgumentError(
            f"Embeddings have the dtype {array.dtype}, which does not hold real numbers. "
            "Pass floats, integers or booleans. Encode texts first."
        )
    # Half precision would round nearby scores into ties, and integer products would overflow. Sparse input always
    # becomes float32, as in sentence-transformers.
    wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8 and not is_sparse(array)
    return array.astype(np.float64 if wide else np.float32, copy=False)


def as_rows(array: Any) -> Any:
    """A vector as a matrix of one row, an empty vector as a matrix of no rows, a matrix as it is.

    Raises:
        InvalidArgumentError: The array has more than two dimensions, or none.
    """
    if array.ndim == 1:
        return array.reshape(1, -1) if array.size else array.reshape(0, 0)
    if array.ndim != 2:
        raise InvalidArgumentError(
            f"Embeddings have the shape {array.shape}; one vector [dimension] or a matrix [rows, dimension] is "
            "allowed. Index or reshape them first."
        )
    return array


def to_matrix(value: Embeddings) -> Matrix:
    """``value`` as a float matrix: the three steps above."""
    return as_rows(to_float(to_array(value)))


def as_csr(matrix: Matrix) -> Any:
    """A matrix in the CSR layout, for an operation whose other operand has it."""
    return matrix if is_sparse(matrix) else _to_csr(matrix)


def check_same_width(a: Matrix, b: Matrix) -> None:
    """Raise InvalidArgumentError unless the rows of both matrices have the same length."""
    if a.shape[1] != b.shape[1]:
        raise InvalidArgumentError(
            f"The embeddings have {a.shape[1]} and {b.shape[1]} dimensions, and can only be compared if these are "
            "equal. Encode both with the same model and the same truncate_dim."
        )


def check_finite(name: str, matrix: Any) -> None:
    """Raise InvalidArgumentError if a row of a matrix, dense or sparse, holds NaN or infinity. It names the row."""
    values = matrix.data if is_sparse(matrix) else matrix
    finite = np.isfinite(values)
    if finite.all():
        return
    if is_sparse(matrix):
        row = int(np.searchsorted(matrix.indptr, np.argmin(finite), side="right")) - 1
    else:
        row = int(np.argmin(finite.reshape(-1, matrix.shape[-1]).all(axis=1)))
    raise InvalidArgumentError(
        f"Row {row} of {name} holds NaN or infinity. Leave such rows out, or look at what made them: "
        "np.isfinite(rows).all(axis=1) says which are fine."
    )


def result_like(*values: Embeddings) -> Callable[[Any], Any]:
    """The function that gives a result the kind of ``values``: a tensor if any of them is or holds a tensor.

    The tensor is on the device of the first one, and has no gradient.
    """
    for value in values:
        example = value[0] if isinstance(value, list | tuple) and value else value
        if is_tensor(example):
            return partial(_to_tensor, device=example.device)
    return lambda result: result


def _from_list(items: list[Any] | tuple[Any, ...]) -> Any:
    holds_objects = any(is_sparse(item) or is_tensor(item) for item in items)
    arrays = [to_array(item) for item in items] if holds_objects else items
    try:
        if any(map(is_sparse, arrays)):
            return _to_csr(scipy_sparse().vstack([as_csr(as_rows(array)) for array in arrays]))
        array = np.asarray(arrays)
    except ValueError as error:
        raise InvalidArgumentError(
            f"A list of {len(items)} embeddings has items of different shapes. "
            "All of them have to be vectors of the same dimension."
        ) from error
    return array.astype(np.float32) if _holds_python_numbers(items) else array


def _holds_python_numbers(items: Any) -> bool:
    while isinstance(items, list | tuple) and items:
        items = items[0]
    return isinstance(items, bool | int | float | list | tuple) and not isinstance(items, np.generic)


def _from_tensor(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4 and tensor.dtype != torch.float16:
        tensor = tensor.float()  # numpy has no bfloat16 and no float8
    if tensor.layout == torch.strided:
        return tensor.numpy()
    tensor = tensor.to_sparse_coo()
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    tensor = tensor.coalesce()
    rows, columns = tensor.indices().numpy()
    return scipy_sparse().csr_array((tensor.values().numpy(), (rows, columns)), shape=tuple(tensor.shape))


def _to_tensor(result: Any, device: Any) -> Any:
    torch = sys.modules["torch"]
    if not is_sparse(result):
        return torch.from_numpy(np.asarray(result)).to(device)
    coo = result.tocoo()
    indices = torch.from_numpy(np.stack((coo.row, coo.col)).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(coo.data), coo.shape, is_coalesced=True, check_invariants=False
    ).to(device)


def _to_csr(value: Any) -> Any:
    if value.ndim == 1:
        value = value.reshape(1, -1)
    csr = scipy_sparse().csr_array(value)
    if not csr.has_canonical_format:
        csr = csr.copy()  # it shares its memory with the caller's matrix
        csr.sum_duplicates()
    return csr


def scipy_sparse() -> Any:
    try:
        import scipy.sparse
    except ImportError as error:
        raise MissingDependencyError(
            'Sparse embeddings need scipy, which is not installed: pip install "stonnx[sparse]"'
        ) from error
    return scipy.sparse
