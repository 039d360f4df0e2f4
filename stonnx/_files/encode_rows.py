"""The results for a window of rows, where rows without one may be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stonnx._errors import InvalidInputError, TextTooLongError
from stonnx._files.results import SPARSE, Kind
from stonnx._files.rows import Row, Text, Window


def encode_rows(
    encode: Callable[[list[Any]], Any], window: Window, kind: Kind, error_field: str | None
) -> tuple[Window, Any]:
    """The rows and their results. Those of a row with a problem are the results of an empty text.

    Args:
        encode: Turns texts into results.
        window: The rows.
        kind: The kind of the results.
        error_field: None: a text that is refused is an error. Otherwise its row gets a problem.

    Raises:
        InvalidInputError, TextTooLongError: A text is refused, and there is no ``error_field``.
    """
    rows = list(window.rows)
    while True:
        try:
            results = encode([row.text if row.problem is None else _blank(row) for row in rows])
            break
        except (InvalidInputError, TextTooLongError) as error:
            # Some texts are refused only by the tokenizer or the network.
            if error_field is None or error.index is None or rows[error.index].problem is not None:
                raise
            rows[error.index] = replace(rows[error.index], problem=str(error))
    if error_field is not None:
        for index in np.flatnonzero(~_finite(kind, results)):
            if rows[index].problem is None:
                rows[index] = replace(rows[index], problem=f"the {kind.fields[-1]} is not finite (NaN or infinity)")
    return replace(window, rows=rows), results


def _blank(row: Row) -> Text:
    return "" if isinstance(row.text, str) else ("", "")


def _finite(kind: Kind, results: Any) -> Any:
    """Which rows have numbers only: bool [rows]."""
    if kind is SPARSE:
        bad = np.concatenate([[0], np.cumsum(~np.isfinite(results.data))])
        return bad[results.indptr[1:]] == bad[results.indptr[:-1]]
    return np.isfinite(results.reshape(len(results), -1)).all(axis=1)
