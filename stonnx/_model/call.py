"""Checks of a call's arguments, the part of a call that goes to a pool, and the warning after the call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from stonnx._arguments import device_name
from stonnx._engine.request import ImageRequest, Request

logger = logging.getLogger("stonnx")

_Request = TypeVar("_Request", Request[Any], ImageRequest)

# Indices in a warning about truncated texts.
_TEXTS_NAMED = 10


@dataclass(frozen=True)
class PoolCall(Generic[_Request]):
    """A call as the processes of a pool get it: the request without its texts or images, which follow in chunks.

    Attributes:
        bundle: The identity of the caller's bundle: a pool answers only models of the bundle that it was started with.
        max_seq_lengths: The caller's limits, which may have changed since.
        request: The request to run.
    """

    bundle: str
    max_seq_lengths: Sequence[int | None]
    request: _Request


def is_same_device(one: Any, other: str) -> bool:
    """Whether a device of a call is that of a model: ``cuda``, ``cuda:0`` and 0 are the same."""
    return device_name(one).removesuffix(":0") == other.removesuffix(":0")


def warn_of_truncation(truncated: Sequence[int] | npt.NDArray[np.int64], texts: int) -> None:
    """Log which of so many texts of a call were cut, if any were."""
    if len(truncated):
        some = ", ".join(map(str, truncated[:_TEXTS_NAMED]))
        more = ", ..." if len(truncated) > _TEXTS_NAMED else ""
        logger.warning(
            "%d of %d texts have more tokens than the model reads and lost their end: %s%s",
            len(truncated),
            texts,
            some,
            more,
        )
