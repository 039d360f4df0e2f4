"""Sparse vectors as ``.npz``, which ``scipy.sparse.load_npz`` reads: the arrays of a CSR matrix in a zip file.

The arrays of all rows stand one after the other in the zip file, and a run gets them window by window. So it appends
each window to its part file, and copies the arrays out of there at the end.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

# A window in a part file: the number of rows and of values, the counts of the rows, the indices, the values.
_HEAD = np.dtype("<i8")
_PARTS: tuple[np.dtype[Any], ...] = (np.dtype("<i8"), np.dtype("<i4"), np.dtype("<f4"))


def sparse_bytes(matrix: Any) -> bytes:
    """A window of rows, as a part file has it.

    Args:
        matrix: A scipy CSR matrix or array.
    """
    head = np.array([matrix.shape[0], len(matrix.data)], _HEAD)
    arrays = (np.diff(matrix.indptr), matrix.indices, matrix.data)
    return b"".join(
        [head.tobytes(), *(array.astype(dtype).tobytes() for array, dtype in zip(arrays, _PARTS, strict=True))]
    )


def write_npz(part: Path, target: BinaryIO, rows: int, width: int) -> None:
    """Make the ``.npz`` of all windows of a part file.

    Args:
        part: The part file.
        target: The file to write.
        rows: The number of rows.
        width: The width of the matrix.
    """
    total = sum(len(counts) and int(counts.sum()) for counts in _arrays(part, 0))
    # scipy gives both the same dtype, and int64 only if the numbers are that large.
    dtype = np.dtype("<i4") if max(total, width) <= np.iinfo(np.int32).max else np.dtype("<i8")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:
        _write(file, "indices", dtype, total, (block.astype(dtype) for block in _arrays(part, 1)))
        _write(file, "indptr", dtype, rows + 1, _pointers(part, dtype))
        _write(file, "data", _PARTS[2], total, _arrays(part, 2))
        for name, value in (("format", b"csr"), ("shape", (rows, width)), ("_is_array", True)):
            with file.open(f"{name}.npy", "w") as member:
                np.save(member, np.asarray(value))


def _pointers(part: Path, dtype: npt.DTypeLike) -> Iterator[npt.NDArray[Any]]:
    end = 0
    yield np.zeros(1, dtype)
    for counts in _arrays(part, 0):
        ends = end + np.cumsum(counts)
        end = int(ends[-1]) if len(ends) else end
        yield ends.astype(dtype)


def _write(
    file: zipfile.ZipFile, name: str, dtype: np.dtype[Any], length: int, blocks: Iterator[npt.NDArray[Any]]
) -> None:
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(block.tobytes())


def _arrays(part: Path, which: int) -> Iterator[npt.NDArray[Any]]:
    """One array of each window: the counts, the indices or the values."""
    with part.open("rb") as file:
        while head := file.read(2 * _HEAD.itemsize):
            rows, values = np.frombuffer(head, _HEAD).tolist()
            sizes = [count * dtype.itemsize for count, dtype in zip((rows, values, values), _PARTS, strict=True)]
            file.seek(sum(sizes[:which]), 1)
            yield np.frombuffer(file.read(sizes[which]), _PARTS[which])
            file.seek(sum(sizes[which + 1 :]), 1)


def npz_shape(path: Path) -> tuple[int, int]:
    """Rows and width of a ``.npz``.

    Raises:
        ValueError: It is not an intact one.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            rows, width = arrays["shape"].tolist()
            if len(arrays["indptr"]) != rows + 1:
                raise ValueError("its arrays do not fit together")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(str(error)) from error
    return rows, width
