"""A route, as data: what it takes, what it gives, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stonnx.serve.context import Call, Reply
from stonnx.serve.errors import Dialect


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: ``GET`` or ``POST``.
        path: With ``{name}`` for a part that varies.
        call: What answers it: gets the call, and the body if there is one.
        dialect: How errors are told.
        summary: For the documentation.
        body: What the body is decoded to: a msgspec.Struct. None: there is no body.
        reply: What the response is made of, for the documentation.
        is_public: Never needs a key.
        needs_models: Is refused until the models are loaded.
        media: The types of its response.
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

    async def __call__(self, call: Call, body: Any) -> Reply:
        """Answer a call."""
        return await (self.call(call) if self.body is None else self.call(call, body))
