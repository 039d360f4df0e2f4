"""Texts in a column of a CSV or TSV file. The first row names the columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from stonnx._errors import InvalidInputError
from stonnx._files.rows import Text

# The longest field; Python's own limit of 128 KB is too short for documents. Its type is a C long.
_LONGEST_FIELD = (1 << 31) - 1


def read_table(
    stream: BinaryIO, delimiter: str, *, name: str, columns: Sequence[str]
) -> Iterator[tuple[Text, str, int]]:
    r"""The rows of a table: the text, all columns as a JSON object, and the byte offset at which the next row begins.

    Blank lines are skipped, as in other programs. A quoted field may contain line ends.

    Args:
        stream: UTF-8, from its beginning.
        delimiter: The separator of fields, ``","`` or a tab.
        name: The name of the input, for messages.
        columns: The name of the column with the texts, or those of the queries and the texts of pairs. A table of one
            column needs no name.

    Raises:
        InvalidInputError: The column does not exist, or a row does not fit the first one; ``index`` is the row.

    Example:
        >>> stream = io.BytesIO(b'id,text\n1,"Bread, or\nnot"\n')
        >>> [(text, record) for text, record, _ in read_table(stream, ",", name="texts.csv", columns=["text"])]
        [('Bread, or\nnot', '{"id": "1", "text": "Bread, or\\nnot"}')]
    """
    lines = _Lines(stream, name)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    index = 0
    while True:
        try:
            row = _next_row(rows)
        except csv.Error as error:
            raise InvalidInputError(
                f"{name}, line {lines.number}: this is not a valid table ({error}).", index
            ) from error
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
            positions = [_position(header, column, name, columns) for column in columns]
            continue
        if len(row) != len(header):
            raise InvalidInputError(
                f"{name}, line {lines.number}: the row has {len(row)} columns, and the first one names {len(header)} "
                f"({', '.join(header)}). Put fields that hold the separator or a line end in double quotes.",
                index,
            )
        texts = [row[position] for position in positions]
        text: Text = texts[0] if len(texts) == 1 else (texts[0], texts[1])
        yield text, json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False), lines.end
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
    """The lines of a stream as text, and the byte offset that they reach."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.number = self.end = 0

    def __next__(self) -> str:
        raw = self._stream.readline()
        if not raw:
            raise StopIteration
        start, self.end, self.number = self.end, self.end + len(raw), self.number + 1
        try:
            return raw.decode("utf-8-sig" if not start else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{self._name}, line {self.number}: byte 0x{raw[error.start]:02x} at byte offset {start + error.start} "
                f"is not valid UTF-8 ({error.reason}). The input must be UTF-8; convert it, for example with: "
                "iconv -f LATIN1 -t UTF-8 OLD > NEW"
            ) from error
