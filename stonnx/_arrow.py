"""Vectors as columns of Apache Arrow, which Parquet and the engines for bulk work read. pyarrow is an extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._errors import MissingDependencyError


def import_pyarrow() -> Any:
    """The package pyarrow.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            'Parquet needs pyarrow, which is not installed. Install it with: pip install "stonnx[cpu,parquet]"'
        ) from error
    return pyarrow


def vector_array(vectors: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """An array as a column: numbers for [n], lists of a fixed size for [n, dim].

    Args:
        vectors: Numbers of any dtype.
        valid: The rows that have a value; the others are null. None: all.
    """
    pa = import_pyarrow()
    if vectors.ndim == 1:
        return pa.array(vectors, mask=None if valid is None else ~valid)
    rows, width = vectors.shape
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = None if valid is None else pa.array(~valid)
    if width == 0:  # Arrow cannot tell the number of rows from no values
        return pa.array([[]] * rows, pa.list_(values.type, 0))
    return pa.FixedSizeListArray.from_arrays(values, width, mask=mask)


def list_array(
    rows: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike, valid: npt.NDArray[np.bool_] | None = None
) -> Any:
    """Arrays of different lengths as a column of lists.

    Args:
        rows: Arrays of one dimension.
        dtype: The dtype of the column.
        valid: The rows that have a value; the others are null. None: all.
    """
    pa = import_pyarrow()
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate([np.zeros(0, dtype), *rows], dtype=dtype)
    mask = None if valid is None else pa.array(~valid)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)
