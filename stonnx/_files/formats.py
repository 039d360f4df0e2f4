"""The file formats of ``stonnx encode``: rows from lines, JSONL or tables; embeddings as npy, safetensors or JSONL.

This file does not open files or know the progress of a run. Both directions work on one window of rows at a time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidInputError, UnsupportedError
from stonnx._files.tables import read_table

InputFormat = Literal["lines", "jsonl", "csv", "tsv"]
OutputFormat = Literal["npy", "jsonl", "safetensors"]

INPUT_FORMATS: tuple[InputFormat, ...] = ("lines", "jsonl", "csv", "tsv")
INPUT_SUFFIXES: Mapping[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
_SEPARATORS: Mapping[InputFormat, str] = {"csv": ",", "tsv": "\t"}
OUTPUT_SUFFIXES: Mapping[str, OutputFormat] = {".npy": "npy", ".jsonl": "jsonl", ".safetensors": "safetensors"}
# The field that JSONL output adds to each record, and the tensor's name in safetensors: "embeddings".
EMBEDDING_FIELD = "embedding"

_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = " \t\r\n"
# A window also ends here, so that very long lines cannot multiply the memory that `window` is meant to bound.
_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True)
class DType:
    """A dtype of embeddings under its names in npy and safetensors headers. All are written little-endian."""

    npy: str
    safetensors: str


DTYPES: Mapping[str, DType] = {
    "float32": DType("<f4", "F32"),
    "int8": DType("|i1", "I8"),
    "uint8": DType("|u1", "U8"),
}


@dataclass(frozen=True)
class Row:
    """One text. ``record`` is its JSON object, exactly as it was written, or None for a bare text."""

    text: str
    record: str | None = None


def read_windows(
    stream: BinaryIO,
    input_format: InputFormat,
    *,
    name: str,
    text_field: str,
    window: int,
    first_row: int = 0,
    offset: int = 0,
) -> Iterator[tuple[list[Row], int]]:
    r"""Read rows, at most ``window`` at a time, each time with the byte offset at which the next row begins.

    The stream must stand at byte ``offset``, the beginning of row ``first_row``. A table is read from its beginning
    again, for the names of the columns. Only ``\n`` and ``\r\n`` end a line. A byte order mark at the very start is
    dropped. In JSONL, one blank line at the end is allowed.

    Raises:
        InvalidInputError: A line is not UTF-8, or the JSONL format does not allow it; ``index`` is its row.

    Example:
        >>> import io
        >>> stream = io.BytesIO(b"one\n\nthree")
        >>> for rows, end in read_windows(stream, "lines", name="texts.txt", text_field="text", window=2):
        ...     print([row.text for row in rows], end)
        ['one', ''] 5
        ['three'] 10
    """
    if input_format in _SEPARATORS:
        if first_row:
            stream.seek(0)
        table = read_table(stream, _SEPARATORS[input_format], name=name, column=text_field)
        yield from _table_windows(itertools.islice(table, first_row, None), window, offset)
        return
    rows: list[Row] = []
    index, start = first_row, offset
    while raw := stream.readline():
        line = raw.removeprefix(_BOM) if offset == 0 else raw
        line_start = offset + len(raw) - len(line)
        offset += len(raw)
        if not line:  # a byte order mark and nothing else
            break
        if line.endswith(b"\n"):
            line = line[:-1].removesuffix(b"\r")
        where = f"{name}, line {index + 1}"
        try:
            text = line.decode("utf-8")
            if input_format == "jsonl":
                if not text.strip(_JSON_SPACE):
                    if not stream.readline():
                        break
                    raise ValueError(f"the line is blank. {_allowed(text_field)} Remove blank lines.")
                rows.append(_parse_json(text, text_field))
            else:
                rows.append(Row(text))
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{where}: byte 0x{line[error.start]:02x} at byte offset {line_start + error.start} is not valid UTF-8 "
                f"({error.reason}). The input must be UTF-8; convert it, for example with: "
                "iconv -f LATIN1 -t UTF-8 OLD > NEW",
                index,
            ) from error
        except ValueError as error:
            raise InvalidInputError(f"{where}: {error}", index) from error
        index += 1
        if len(rows) >= window or offset - start >= _WINDOW_BYTES:
            yield rows, offset
            rows, start = [], offset
    if rows:
        yield rows, offset


def _table_windows(table: Iterator[tuple[str, str, int]], window: int, offset: int) -> Iterator[tuple[list[Row], int]]:
    rows: list[Row] = []
    start = end = offset
    for text, record, end in table:
        rows.append(Row(text, record))
        if len(rows) >= window or end - start >= _WINDOW_BYTES:
            yield rows, end
            rows, start = [], end
    if rows:
        yield rows, end


@dataclass(frozen=True)
class Writer:
    """The layout of an embeddings file: ``header_size`` bytes that are filled in last, then the rows' bytes."""

    header_size: int
    # (rows, dimension, dtype) -> exactly header_size bytes
    header: Callable[[int, int, str], bytes]
    # (vectors [rows, dimension], rows, text_field) -> the rows' bytes, in blocks
    body: Callable[[npt.NDArray[Any], Sequence[Row], str], Iterator[bytes]]


# Room for the shape of every file below 2**63 bytes. It is fixed because the number of rows is only known at the end,
# and a multiple of 64 because npy promises aligned data; np.save arrives at the same 128 bytes.
_HEADER_SIZE = 128


def _npy_header(rows: int, dimension: int, dtype: str) -> bytes:
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0
    start = b"\x93NUMPY\x01\x00" + (_HEADER_SIZE - 10).to_bytes(2, "little")
    text = f"{{'descr': '{DTYPES[dtype].npy}', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}"
    return (start + text.encode("ascii")).ljust(_HEADER_SIZE - 1) + b"\n"


def _safetensors_header(rows: int, dimension: int, dtype: str) -> bytes:
    # https://huggingface.co/docs/safetensors/index#format: data begins right after the padded JSON.
    tensor = {
        "dtype": DTYPES[dtype].safetensors,
        "shape": [rows, dimension],
        "data_offsets": [0, rows * dimension * np.dtype(dtype).itemsize],
    }
    text = json.dumps({"embeddings": tensor}, separators=(",", ":"))
    return ((_HEADER_SIZE - 8).to_bytes(8, "little") + text.encode("ascii")).ljust(_HEADER_SIZE)


def _binary_body(vectors: npt.NDArray[Any], rows: Sequence[Row], text_field: str) -> Iterator[bytes]:
    yield vectors.astype(DTYPES[vectors.dtype.name].npy, copy=False).tobytes()


def _jsonl_body(vectors: npt.NDArray[Any], rows: Sequence[Row], text_field: str) -> Iterator[bytes]:
    if not np.isfinite(vectors).all():
        text = rows[int(np.argmin(np.isfinite(vectors).all(axis=1)))].text
        raise UnsupportedError(
            f"The embedding of {text[:80]!r} is not finite (NaN or infinity), and JSON has no such numbers. "
            "Write to a .npy or .safetensors file to look at it."
        )
    for vector, row in zip(vectors, rows, strict=True):
        # str of a float32 is the shortest decimal that reads back as the same float32; as a Python float, it would have
        # the 17 digits of a double.
        numbers = ", ".join(map(str, vector))
        head = _record(row, text_field).rstrip(_JSON_SPACE)[:-1].rstrip(_JSON_SPACE)
        comma = "" if head == "{" else ", "
        yield f'{head}{comma}"{EMBEDDING_FIELD}": [{numbers}]}}\n'.encode()


WRITERS: Mapping[OutputFormat, Writer] = {
    "npy": Writer(_HEADER_SIZE, _npy_header, _binary_body),
    "safetensors": Writer(_HEADER_SIZE, _safetensors_header, _binary_body),
    "jsonl": Writer(0, lambda rows, dimension, dtype: b"", _jsonl_body),
}


def _record(row: Row, text_field: str) -> str:
    """The JSON object of a row, without an embedding. Numbers, spacing and order stay as they were in the input."""
    if row.record is None:
        return json.dumps({text_field: row.text}, ensure_ascii=False)
    if f'"{EMBEDDING_FIELD}"' in row.record:
        record = json.loads(row.record)
        if EMBEDDING_FIELD in record:  # from an earlier run: the new one replaces it
            del record[EMBEDDING_FIELD]
            return json.dumps(record)
    return row.record


def _parse_json(line: str, text_field: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Its own message counts lines from here, while ours count from the start of the file.
        problem = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"this is not valid JSON ({problem}). {_allowed(text_field)}") from error
    if isinstance(value, str):
        row = Row(value)
    elif not isinstance(value, dict):
        raise ValueError(f"found {_kind(value)}. {_allowed(text_field)}")
    elif text_field not in value:
        fields = ", ".join(json.dumps(key) for key in list(value)[:10]) or "none"
        raise ValueError(
            f"the object has no field {json.dumps(text_field)}; its fields: {fields}. {_allowed(text_field)} "
            "Name the field that holds the text with --field."
        )
    elif not isinstance(value[text_field], str):
        raise ValueError(f"the field {json.dumps(text_field)} holds {_kind(value[text_field])}. {_allowed(text_field)}")
    else:
        row = Row(value[text_field], line.strip(_JSON_SPACE))
    try:
        row.text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            r"the text has half of a surrogate pair (such as \ud83d alone), which is not a character. Write both "
            "halves."
        ) from None
    return row


def _allowed(text_field: str) -> str:
    return f"Each line must be an object with a string in {json.dumps(text_field)}, or a JSON string."


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {"list": "a list", "dict": "an object", "str": "a string"}
    return names.get(type(value).__name__, "a number")
