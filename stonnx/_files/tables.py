"""Texts in a column of a CSV or TSV file. The first row names the columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from stonnx._errors import InvalidInputError
from stonnx._files.rows import Keep, Row, Text, not_utf8

# The longest field; Python's own limit of 128 KB is too short for documents. Its type is a C long.
_LONGEST_FIELD = (1 << 31) - 1


def read_table(
    stream: BinaryIO,
    delimiter: str,
    *,
    name: str,
    columns: Sequence[str],
    keep: Keep = "records",
    keep_failed: bool = False,
) -> Iterator[tuple[Row, int]]:
    r"""The rows of a table, all columns as a JSON object, and the byte offset at which the next row begins.

    Blank lines are skipped, as in other programs. A quoted field may contain line ends.

    Args:
        stream: UTF-8, from its beginning.
        delimiter: The separator of fields, ``","`` or a tab.
        name: The name of the input, for messages.
        columns: The name of the column with the texts, or those of the queries and the texts of pairs. A table of one
            column needs no name.
        keep: ``"nothing"``: the output does not have the other columns, so two of them may have the same name.
        keep_failed: Whether a row that does not fit the first one is a row that says so, instead of an error.

    Raises:
        InvalidInputError: The column does not exist, or a row does not fit the first one; ``index`` is the row.

    Example:
        >>> stream = io.BytesIO(b'id,text\n1,"Bread, or\nnot"\n')
        >>> [(row.text, row.record) for row, _ in read_table(stream, ",", name="texts.csv", columns=["text"])]
        [('Bread, or\nnot', '{"id": "1", "text": "Bread, or\\nnot"}')]
    """
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    index = 0
    while True:
        try:
            row = _next_row(rows)
        except (csv.Error, UnicodeDecodeError) as error:
            problem = f"this is not a valid table ({error})."
            if isinstance(error, UnicodeDecodeError):
                problem = not_utf8(lines.raw[error.start], lines.start + error.start, error)
            where = f"{name}, line {lines.number}"
            # Without names of columns, or after a quote that never ends, there are no rows.
            if not keep_failed or header is None or lines.at_end:
                raise InvalidInputError(f"{where}: {problem}", index) from error
            raw = lines.raw.decode("utf-8", errors="backslashreplace")
            yield Row.without_text(f"{where}: {problem}", columns, raw.rstrip("\r\n")), lines.end
            index += 1
            continue
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
            twice = [column for column in dict.fromkeys(row) if row.count(column) > 1 and column not in columns]
            if twice and keep != "nothing":
                raise InvalidInputError(
                    f"{name} has two columns {json.dumps(twice[0])}, and the output could not keep both. Rename one."
                )
            positions = [_position(header, column, name, columns) for column in columns]
            continue
        if len(row) != len(header):
            problem = (
                f"{name}, line {lines.number}: the row has {len(row)} columns, and the first one names {len(header)} "
                f"({', '.join(header)}). Put fields that hold the separator or a line end in double quotes."
            )
            if not keep_failed:
                raise InvalidInputError(problem, index)
            further = f" Its further columns: {json.dumps(row[len(header) :])}" if len(row) > len(header) else ""
            yield Row.without_text(problem + further, columns, dict(zip(header, row, strict=False))), lines.end
            index += 1
            continue
        texts = [row[position] for position in positions]
        text: Text = texts[0] if len(texts) == 1 else (texts[0], texts[1])
        yield Row(text, json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False)), lines.end
        index += 1


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, or None after the last. The limit of the csv module is for the whole process, so it is put back."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)


def _position(header: list[str], column: str, name: str, columns: Sequence[str]) -> int:
    if len(header) == 1 and len(columns) == 1:
        return 0
    if header.count(column) != 1:
        found = "two columns" if column in header else "no column"
        raise InvalidInputError(
            f"{name} has {found} {json.dumps(column)}. Its first row must name the columns, and names: "
            f"{', '.join(json.dumps(field) for field in header[:20])}. Choose the one with the "
            f"{'texts with --field' if column == columns[-1] else 'queries with --query-field'}."
        )
    return header.index(column)


class _Lines(Iterator[str]):
    """The lines of a stream as text, and the last one as it is: its bytes, its number, the offsets that it spans."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.raw, self.at_end = stream, b"", False
        self.number = self.start = self.end = 0

    def __next__(self) -> str:
        raw = self._stream.readline()
        if not raw:
            self.at_end = True
            raise StopIteration
        self.raw, self.start, self.end, self.number = raw, self.end, self.end + len(raw), self.number + 1
        text = raw.decode("utf-8")
        return text if self.start else text.removeprefix("\ufeff")
