"""The output formats of ``stonnx encode``: results as npy, npz, safetensors, JSONL or Parquet, one window at a time.

This file does not open files or know the progress of a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stonnx._arrow import import_pyarrow, list_array, vector_array
from stonnx._errors import UnsupportedError
from stonnx._files.npz import npz_shape, sparse_bytes, write_npz
from stonnx._files.parquet import parquet_shape, window_bytes, write_parquet
from stonnx._files.results import DTYPES, EMBEDDING, SCORE, SPARSE, Kind, OutputFormat, Shape
from stonnx._files.rows import Keep, Row, Window

OUTPUT_SUFFIXES: Mapping[str, OutputFormat] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".parquet": "parquet",
}
_JSON_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Writer:
    """The layout of a file of results.

    Attributes:
        header_size: The bytes at its beginning that are filled in last; the windows follow.
        header: Their content.
        body: The bytes of a window: its results, its rows, the names of the text fields, and that of the field of
            errors, if rows without a result are kept. Their results are null, and this field says why.
        keep: The part of Parquet rows that the body needs.
        finish: Makes the file from a part file of windows, if that is another one: kind, shape, part file, target, and
            the name of the field of errors.
        shape: Reads rows and width from a complete file, or raises ValueError if it is not one.
        check: Raises an error if the format cannot be written here.
    """

    header: Callable[[Kind, Shape], bytes]
    body: Callable[[Kind, Any, Window, Sequence[str], str | None], Iterator[bytes]]
    shape: Callable[[Kind, Path], tuple[int | None, int | None]]
    header_size: int = 0
    keep: Keep = "nothing"
    finish: Callable[[Kind, Shape, Path, BinaryIO, str | None], None] | None = None
    check: Callable[[], object] = lambda: None


# Room for the shape of every file below 2**63 bytes. It is fixed because the number of rows is only known at the end,
# and a multiple of 64 because npy promises aligned data; np.save arrives at the same 128 bytes.
_HEADER_SIZE = 128


def _lengths(kind: Kind, shape: Shape) -> tuple[int, ...]:
    return (shape.rows,) if kind is SCORE and not shape.width else (shape.rows, shape.width)


def _npy_header(kind: Kind, shape: Shape) -> bytes:
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0
    start = b"\x93NUMPY\x01\x00" + (_HEADER_SIZE - 10).to_bytes(2, "little")
    text = f"{{'descr': '{DTYPES[shape.dtype].npy}', 'fortran_order': False, 'shape': {_lengths(kind, shape)}, }}"
    return (start + text.encode("ascii")).ljust(_HEADER_SIZE - 1) + b"\n"


def _npy_shape(kind: Kind, path: Path) -> tuple[int, int]:
    lengths = np.load(path, mmap_mode="r").shape  # ValueError for a file that is too short
    return lengths[0], lengths[1] if len(lengths) > 1 else 0


def _safetensors_header(kind: Kind, shape: Shape) -> bytes:
    # https://huggingface.co/docs/safetensors/index#format: data begins right after the padded JSON.
    lengths = _lengths(kind, shape)
    tensor = {
        "dtype": DTYPES[shape.dtype].safetensors,
        "shape": list(lengths),
        "data_offsets": [0, int(np.prod(lengths)) * np.dtype(shape.dtype).itemsize],
    }
    text = json.dumps({kind.tensor: tensor}, separators=(",", ":"))
    return ((_HEADER_SIZE - 8).to_bytes(8, "little") + text.encode("ascii")).ljust(_HEADER_SIZE)


def _safetensors_shape(kind: Kind, path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        tensor = json.loads(file.read(_HEADER_SIZE)[8:])[kind.tensor]
    if path.stat().st_size != _HEADER_SIZE + tensor["data_offsets"][1]:
        raise ValueError("it has another length than its header says")
    return tensor["shape"][0], [*tensor["shape"], 0][1]


def _binary_body(
    kind: Kind, results: Any, window: Window, fields: Sequence[str], error_field: str | None
) -> Iterator[bytes]:
    yield results.astype(DTYPES[results.dtype.name].npy, copy=False).tobytes()


def _jsonl_body(
    kind: Kind, results: Any, window: Window, fields: Sequence[str], error_field: str | None
) -> Iterator[bytes]:
    values = results.data if kind is SPARSE else results
    if error_field is None and not np.isfinite(values).all():
        dense = results if kind is not SPARSE else results.toarray()
        wrong = int(np.argmin(np.isfinite(dense.reshape(len(window.rows), -1)).all(axis=1)))
        raise UnsupportedError(
            f"The {kind.fields[-1]} of {str(window.rows[wrong].text)[:80]!r} is not finite (NaN or infinity), and "
            f"JSON has no such numbers. Write to a .{kind.formats[0]} or .parquet file to look at it."
        )
    names = kind.fields if error_field is None else (*kind.fields, error_field)
    for row, texts in zip(window.rows, _numbers(kind, results), strict=True):
        head = _record(row, fields, names).rstrip(_JSON_SPACE)[:-1].rstrip(_JSON_SPACE)
        comma = "" if head == "{" else ", "
        if row.problem is not None:
            texts = ("null",) * len(texts)
        if error_field is not None:
            texts = (*texts, json.dumps(row.problem, ensure_ascii=False))
        added = ", ".join(
            f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in zip(names, texts, strict=True)
        )
        yield f"{head}{comma}{added}}}\n".encode()


def _numbers(kind: Kind, results: Any) -> Iterator[tuple[str, ...]]:
    """The numbers of each row as JSON.

    str of a float32 is the shortest decimal that reads back as the same float32; as a Python float, it would have the
    17 digits of a double.
    """
    if kind is SPARSE:
        for start, end in zip(results.indptr, results.indptr[1:], strict=False):
            yield tuple(f"[{', '.join(map(str, part[start:end]))}]" for part in (results.indices, results.data))
    elif results.ndim == 1:
        yield from ((str(number),) for number in results)
    else:
        yield from ((f"[{', '.join(map(str, vector))}]",) for vector in results)


def _record(row: Row, fields: Sequence[str], added: Sequence[str]) -> str:
    """The JSON object of a row, without results. Numbers, spacing and order stay as they were in the input."""
    if row.record is None:
        texts = [row.text] if isinstance(row.text, str) else row.text
        return json.dumps(dict(zip(fields, texts, strict=True)), ensure_ascii=False)
    if any(json.dumps(name, ensure_ascii=False) in row.record or "\\u" in row.record for name in added):
        record = json.loads(row.record)
        if any(name in record for name in added):  # from an earlier run: the new ones replace them
            return json.dumps({name: value for name, value in record.items() if name not in added})
    return row.record


def _jsonl_shape(kind: Kind, path: Path) -> tuple[None, None]:
    with path.open("rb") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                raise ValueError("its last line has no end")
    return None, None


def _npz_body(
    kind: Kind, results: Any, window: Window, fields: Sequence[str], error_field: str | None
) -> Iterator[bytes]:
    yield sparse_bytes(results)


def _parquet_body(
    kind: Kind, results: Any, window: Window, fields: Sequence[str], error_field: str | None
) -> Iterator[bytes]:
    if not window.rows:
        yield window_bytes(window, fields, {})
        return
    valid = np.array([row.problem is None for row in window.rows]) if error_field is not None else None
    if kind is SPARSE:
        cuts = results.indptr[1:-1]
        columns = [
            list_array(np.split(part, cuts), dtype, valid)
            for part, dtype in ((results.indices, np.int32), (results.data, np.float32))
        ]
    else:
        columns = [vector_array(results, valid)]
    added = dict(zip(kind.fields, columns, strict=True))
    if error_field is not None:
        pa = import_pyarrow()
        added[error_field] = pa.array([row.problem for row in window.rows], pa.string())
    yield window_bytes(window, fields, added)


def _finish_parquet(kind: Kind, shape: Shape, part: Path, target: BinaryIO, error_field: str | None) -> None:
    pa = import_pyarrow()
    number = pa.from_numpy_dtype(np.dtype(shape.dtype))
    if kind is SPARSE:
        types = [pa.list_(pa.int32()), pa.list_(pa.float32())]
    else:
        types = [pa.list_(number, shape.width) if shape.width or kind is EMBEDDING else number]
    added = dict(zip(kind.fields, types, strict=True))
    write_parquet(part, target, added if error_field is None else added | {error_field: pa.string()})


WRITERS: Mapping[OutputFormat, Writer] = {
    "npy": Writer(_npy_header, _binary_body, _npy_shape, _HEADER_SIZE),
    "safetensors": Writer(_safetensors_header, _binary_body, _safetensors_shape, _HEADER_SIZE),
    "jsonl": Writer(lambda kind, shape: b"", _jsonl_body, _jsonl_shape, keep="records"),
    "npz": Writer(
        lambda kind, shape: b"",
        _npz_body,
        lambda kind, path: npz_shape(path),
        finish=lambda kind, shape, part, target, error_field: write_npz(part, target, shape.rows, shape.width),
    ),
    "parquet": Writer(
        lambda kind, shape: b"",
        _parquet_body,
        lambda kind, path: parquet_shape(path, kind.fields[0]),
        keep="table",
        finish=_finish_parquet,
        check=import_pyarrow,
    ),
}
