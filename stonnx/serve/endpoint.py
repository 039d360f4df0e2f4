"""A route, as data: its input, its output, and the form of its errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stonnx._tasks import ResultKind
from stonnx.serve.context import Call, Reply
from stonnx.serve.errors import Dialect

SAMPLE_TEXT = "The first request must not pay for what is loaded on demand."


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: ``GET`` or ``POST``.
        path: The path, with ``{name}`` for a part that varies.
        call: The function that answers. It gets the call, and the body if there is one.
        dialect: The form of errors.
        summary: A line for the documentation.
        body: The type that the body is decoded to, a msgspec.Struct. None: the endpoint does not read a body.
        reply: The type of the response, for the documentation.
        is_public: Whether it never needs a key.
        needs_models: Whether it is refused until the models are loaded.
        media: The types of its response.
        gives: The forms of its results: models that give such results answer. None of them: any model, or none.
        sample: A body for the warm-up, without the name of a model. None: the warm-up leaves the endpoint out.
    """

    method: str
    path: str
    call: Callable[..., Awaitable[Reply]]
    dialect: Dialect
    summary: str
    body: Any = None
    reply: Any = None
    is_public: bool = False
    needs_models: bool = True
    media: tuple[str, ...] = ("application/json",)
    gives: tuple[ResultKind, ...] = ()
    sample: Mapping[str, Any] | None = None

    async def __call__(self, call: Call, body: Any) -> Reply:
        """Answer a call."""
        return await (self.call(call) if self.body is None else self.call(call, body))
