"""The input formats of ``stonnx encode``: rows from lines, JSONL, CSV, TSV or Parquet, one window of rows at a time.

This file does not open files or know the progress of a run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Literal

from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._files.parquet import read_parquet
from stonnx._files.rows import Keep, Row, Text, Window, check_text, not_utf8
from stonnx._files.tables import read_table

InputFormat = Literal["lines", "jsonl", "csv", "tsv", "parquet"]

INPUT_FORMATS: tuple[InputFormat, ...] = ("lines", "jsonl", "csv", "tsv", "parquet")
INPUT_SUFFIXES: Mapping[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SEPARATORS: Mapping[InputFormat, str] = {"csv": ",", "tsv": "\t"}
_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = " \t\r\n"
# A window also ends here, so that very long lines cannot multiply the memory that `window` is meant to bound.
_WINDOW_BYTES = 64 << 20


def read_windows(
    stream: BinaryIO,
    input_format: InputFormat,
    *,
    name: str,
    text_field: str,
    query_field: str | None = None,
    window: int,
    first_row: int = 0,
    offset: int = 0,
    keep: Keep = "records",
    keep_failed: bool = False,
) -> Iterator[Window]:
    r"""Read rows, at most ``window`` at a time, each time with the byte offset at which the next row begins.

    The stream must stand at byte ``offset``, the beginning of row ``first_row``. A table is read from its beginning
    again, for the names of the columns. With a ``query_field``, the text of a row is the pair of both fields.
    Only ``\n`` and ``\r\n`` end a line. A byte order mark at the very start is dropped. In JSONL, one blank line at the
    end is allowed. With ``keep_failed``, a row without a text is a row that says why.

    Raises:
        InvalidInputError: A line is not UTF-8, or the JSONL format does not allow it; ``index`` is its row.
        InvalidArgumentError: Lines of text cannot hold pairs.

    Example:
        >>> import io
        >>> stream = io.BytesIO(b"one\n\nthree")
        >>> for window in read_windows(stream, "lines", name="texts.txt", text_field="text", window=2):
        ...     print([row.text for row in window.rows], window.end)
        ['one', ''] 5
        ['three'] 10
    """
    fields = (text_field,) if query_field is None else (query_field, text_field)
    if input_format == "parquet":
        yield from read_parquet(
            stream, name=name, fields=fields, window=window, first_row=first_row, keep=keep, keep_failed=keep_failed
        )
        return
    if input_format in _SEPARATORS:
        if first_row:
            stream.seek(0)
        table = read_table(
            stream, _SEPARATORS[input_format], name=name, columns=fields, keep=keep, keep_failed=keep_failed
        )
        yield from _table_windows(itertools.islice(table, first_row, None), window, offset)
        return
    if input_format == "lines" and query_field is not None:
        raise InvalidArgumentError(
            f"{name} has one text in each line, and a reranker scores pairs of texts. Write JSONL, CSV, TSV or Parquet "
            f"with a query in {json.dumps(query_field)} and a text in {json.dumps(text_field)}."
        )
    rows: list[Row] = []
    index, start = first_row, offset
    ahead = b""
    while raw := ahead or stream.readline():
        ahead = b""
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
                    ahead = stream.readline()
                    if not ahead:
                        break
                    raise ValueError(f"the line is blank. {_allowed(fields)} Remove blank lines.")
                rows.append(_parse_json(text, fields))
            else:
                rows.append(Row(text))
        except ValueError as error:
            problem = str(error)
            if isinstance(error, UnicodeDecodeError):
                problem = not_utf8(line[error.start], line_start + error.start, error)
            if not keep_failed:
                raise InvalidInputError(f"{where}: {problem}", index) from error
            rows.append(Row.without_text(f"{where}: {problem}", fields, _content(line, input_format)))
        index += 1
        if len(rows) >= window or offset - start >= _WINDOW_BYTES:
            yield Window(rows, offset)
            rows, start = [], offset
    if rows:
        yield Window(rows, offset)


def _content(line: bytes, input_format: InputFormat) -> object:
    """The content of a line without a text: its JSON value, or the line as it is."""
    text = line.decode("utf-8", errors="backslashreplace")
    if input_format == "jsonl":
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _table_windows(table: Iterator[tuple[Row, int]], window: int, offset: int) -> Iterator[Window]:
    rows: list[Row] = []
    start = end = offset
    for row, end in table:
        rows.append(row)
        if len(rows) >= window or end - start >= _WINDOW_BYTES:
            yield Window(rows, end)
            rows, start = [], end
    if rows:
        yield Window(rows, end)


def _parse_json(line: str, fields: Sequence[str]) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Its own message counts lines from here, while ours count from the start of the file.
        problem = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"this is not valid JSON ({problem}). {_allowed(fields)}") from error
    if isinstance(value, str) and len(fields) == 1:
        return Row(check_text(value, "text"))
    if not isinstance(value, dict):
        raise ValueError(f"found {_kind(value)}. {_allowed(fields)}")
    for field in fields:
        if field not in value:
            found = ", ".join(json.dumps(key) for key in list(value)[:10]) or "none"
            option = "--field" if field == fields[-1] else "--query-field"
            raise ValueError(
                f"the object has no field {json.dumps(field)}; its fields: {found}. {_allowed(fields)} "
                f"Name the field that holds the {'text' if field == fields[-1] else 'query'} with {option}."
            )
        if not isinstance(value[field], str):
            raise ValueError(f"the field {json.dumps(field)} holds {_kind(value[field])}. {_allowed(fields)}")
        check_text(value[field], "text" if field == fields[-1] else "query")
    text: Text = value[fields[0]] if len(fields) == 1 else (value[fields[0]], value[fields[1]])
    return Row(text, line.strip(_JSON_SPACE))


def _allowed(fields: Sequence[str]) -> str:
    names = " and in ".join(map(json.dumps, fields))
    return f"Each line must be an object with a string in {names}{', or a JSON string' * (len(fields) == 1)}."


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {"list": "a list", "dict": "an object", "str": "a string"}
    return names.get(type(value).__name__, "a number")
