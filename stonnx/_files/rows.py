"""The rows that all input formats give, and the windows of rows that a run reads, encodes and writes at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Text = str | tuple[str, str]
"""A text, or the query and the text that a reranker scores."""

Keep = Literal["nothing", "records", "table"]
"""The part of a Parquet row beside its text that the output needs: see :class:`Window`."""


@dataclass(frozen=True)
class Row:
    """One text. ``record`` is its JSON object, exactly as it was written, or None for a bare text.

    ``problem`` says why the row does not have a text, if such rows are kept; ``text`` is empty then.
    """

    text: Text
    record: str | None = None
    problem: str | None = None

    @classmethod
    def without_text(cls, problem: str, fields: Sequence[str], content: object) -> Row:
        """A row that does not have a text. ``content`` is what it has instead, a dict of its fields if it has some."""
        record = content if isinstance(content, dict) else {fields[-1]: content}
        return cls("" if len(fields) == 1 else ("", ""), json.dumps(record), problem)


@dataclass(frozen=True)
class Window:
    """Some rows of an input.

    Attributes:
        rows: The rows, one or more; none of an empty Parquet file, whose columns the output needs.
        end: The byte offset of the input at which the next row begins; of Parquet, the share of it that is read.
        table: All columns of the rows as a ``pyarrow.RecordBatch``, of Parquet if ``keep`` is ``"table"``.
    """

    rows: Sequence[Row]
    end: int
    table: Any = None


def not_utf8(byte: int, offset: int, error: UnicodeDecodeError) -> str:
    """The problem of a text that is not UTF-8: its wrong byte, and where that is in the file."""
    return (
        f"byte 0x{byte:02x} at byte offset {offset} is not valid UTF-8 ({error.reason}). The input must be UTF-8; "
        "convert it, for example with: iconv -f LATIN1 -t UTF-8 OLD > NEW"
    )


def check_text(text: str, what: str) -> str:
    """The text itself, if it can be encoded.

    Raises:
        ValueError: It has half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            rf"the {what} has half of a surrogate pair (such as \ud83d alone), which is not a character. Write both "
            "halves."
        ) from None
    return text
