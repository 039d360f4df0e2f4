"""The rows that all input formats give, and the windows of rows that a run reads, encodes and writes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Text = str | tuple[str, str]
"""A text, or the query and the text that a reranker scores."""

Keep = Literal["nothing", "records", "table"]
"""The part of a Parquet row beside its text that the output needs: see :class:`Window`."""


@dataclass(frozen=True)
class Row:
    """One text. ``record`` is its JSON object, exactly as it was written, or None for a bare text."""

    text: Text
    record: str | None = None


@dataclass(frozen=True)
class Window:
    """Some rows of an input.

    Attributes:
        rows: The rows, one or more.
        end: The byte offset of the input at which the next row begins; of Parquet, the share of it that is read.
        table: All columns of the rows as a ``pyarrow.RecordBatch``, of Parquet if ``keep`` is ``"table"``.
    """

    rows: Sequence[Row]
    end: int
    table: Any = None


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
