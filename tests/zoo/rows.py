"""All rows of the table, and one by its name."""

from __future__ import annotations

from .architectures import ARCHITECTURES
from .table import PUBLISHED, ModelRow

ROWS: tuple[ModelRow, ...] = (*PUBLISHED, *ARCHITECTURES)
_BY_NAME = {candidate.name: candidate for candidate in ROWS}


def row(name: str) -> ModelRow:
    """The row of a published name."""
    if name not in _BY_NAME:
        raise KeyError(f"the zoo has no row {name!r}; its rows are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
