"""The checks of a call's arguments, what a pool is sent of it, and the warning after it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

import numpy as np

from stonnx._engine.call import TooLong
from stonnx._engine.request import Request
from stonnx._engine.stats import CallStats
from stonnx._errors import InvalidArgumentError

logger = logging.getLogger("stonnx")

_Result = TypeVar("_Result")

# Indices in a warning about truncated texts.
_TEXTS_NAMED = 10


@dataclass(frozen=True)
class PoolCall(Generic[_Result]):
    """A call as the processes of a pool get it: the request without its texts, which follow in chunks.

    Attributes:
        bundle: The identity of the caller's bundle: a pool answers only models of the bundle that it was started with.
        max_seq_lengths: The caller's limits, which may have changed since.
        request: What to run.
    """

    bundle: str
    max_seq_lengths: Sequence[int | None]
    request: Request[_Result]


def check_positive(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless a value is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
        raise InvalidArgumentError(f"{name} must be a positive integer, got {value!r}.")


def check_too_long(value: Any) -> None:
    """Raise InvalidArgumentError unless a value says what happens to long texts, or is None."""
    if value is not None and value not in get_args(TooLong):
        allowed = ", ".join(map(repr, get_args(TooLong)))
        raise InvalidArgumentError(f"too_long must be one of {allowed}, got {value!r}.")


def is_same_device(one: str, other: str) -> bool:
    """``cuda`` and ``cuda:0`` are the same."""
    return one.removesuffix(":0") == other.removesuffix(":0")


def warn_of_truncation(stats: CallStats) -> None:
    """Log which texts of a call were cut, if any were."""
    if len(stats.truncated):
        some = ", ".join(map(str, stats.truncated[:_TEXTS_NAMED]))
        more = ", ..." if len(stats.truncated) > _TEXTS_NAMED else ""
        logger.warning(
            "%d of %d texts have more tokens than the model reads and lost their end: %s%s",
            len(stats.truncated),
            stats.texts,
            some,
            more,
        )
