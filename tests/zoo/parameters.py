"""A row of the table as the parameter of a test, which does not apply where an earlier version lacks the model."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest

from .rows import row
from .table import ModelRow


def parameter(model: ModelRow | str, *more: Any) -> Any:
    """The parameters of a test: a row, or the name of one, and others."""
    candidate = row(model) if isinstance(model, str) else model
    marks = [pytest.mark.needs(*astuple(candidate.needs))] if candidate.needs else []
    return pytest.param(model, *more, id=candidate.name, marks=marks)
