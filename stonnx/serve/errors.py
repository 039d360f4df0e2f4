"""Errors of requests: one kind for each meaning, in every dialect."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stonnx._errors import (
    DeadlineError,
    InvalidArgumentError,
    InvalidInputError,
    OverloadedError,
    TextTooLongError,
    TooManyTokensError,
    UnsupportedError,
)


class Kind(Enum):
    """The kind of an error, with its status in most dialects."""

    MALFORMED = 400
    INVALID = 400.1
    EMPTY = 400.2
    WRONG_TASK = 400.3
    UNAUTHORIZED = 401
    NOT_FOUND = 404
    MODEL_NOT_FOUND = 404.1
    METHOD = 405
    SLOW = 408
    TOO_LARGE = 413
    OVERLOADED = 429
    INTERNAL = 500
    UNAVAILABLE = 503
    TIMEOUT = 504

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.value)


@dataclass
class RequestError(Exception):
    """The reason why the server refuses a request.

    Attributes:
        kind: The kind of the error.
        message: The fault, the allowed values, and a remedy.
        param: The wrong field, as ``input[3]``.
        headers: Further headers of the response.
    """

    kind: Kind
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Dialect:
    """The form of errors for a family of clients.

    Attributes:
        name: A name for metrics and documentation.
        body: The body of an error, from the error and the status.
        statuses: Statuses that differ from those of :class:`Kind`.
    """

    name: str
    body: Callable[[RequestError, int], Any]
    statuses: Mapping[Kind, int] = field(default_factory=dict)

    def status(self, kind: Kind) -> int:
        """The status of an error."""
        return self.statuses.get(kind, kind.status)


def retry_headers(seconds: float) -> dict[str, str]:
    """Headers that say when to retry: whole seconds, and milliseconds for clients that read them."""
    return {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(seconds * 1000)))}


def as_request_error(error: Exception, field_name: str | None) -> RequestError | None:
    """An error of the model or the queue as an error of the request; None if the client did not cause it.

    Args:
        error: The error.
        field_name: The field that holds the texts.
    """
    index = getattr(error, "index", None)
    param = field_name if index is None or field_name is None else f"{field_name}[{index}]"
    if isinstance(error, TextTooLongError):
        message = (
            f"Text {error.index} has {error.tokens:,} tokens, and the model reads {error.limit:,}. Split it, or leave "
            "out truncate=false to have its end cut off."
        )
        return RequestError(Kind.INVALID, message, param)
    if isinstance(error, OverloadedError):
        return RequestError(Kind.OVERLOADED, str(error), None, retry_headers(error.retry_after))
    if isinstance(error, TooManyTokensError):
        message = (
            f"The request has about {error.tokens:,} tokens, and at most {error.limit:,} may wait at a time. Split it "
            "into several requests, or raise --max-queued-tokens."
        )
        return RequestError(Kind.TOO_LARGE, message, field_name)
    if isinstance(error, DeadlineError | TimeoutError):
        return RequestError(Kind.TIMEOUT, "The request took longer than its time limit, and was dropped.")
    if isinstance(error, InvalidInputError | InvalidArgumentError | UnsupportedError):
        return RequestError(Kind.INVALID, str(error), param)
    return None
