"""The options of a call, and the checks of its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from stonnx._engine.call import TooLong
from stonnx._engine.stats import Counters
from stonnx._errors import InvalidArgumentError


@dataclass(frozen=True)
class CallOptions:
    """What a call asks for beside its texts, and where it is counted what it does."""

    batch_size: int
    too_long: TooLong
    show: bool | None
    counters: Counters


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
        raise InvalidArgumentError(f"{name} must be a positive integer, got {value!r}.")


def check_too_long(value: Any) -> None:
    if value is not None and value not in get_args(TooLong):
        allowed = ", ".join(map(repr, get_args(TooLong)))
        raise InvalidArgumentError(f"too_long must be one of {allowed}, got {value!r}.")


def is_same_device(one: str, other: str) -> bool:
    """``cuda`` and ``cuda:0`` are the same."""
    return one.removesuffix(":0") == other.removesuffix(":0")
