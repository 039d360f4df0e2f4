"""A connection that sends the head of a response together with its body: one system call and packet, not two."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# A larger body is sent by itself: to copy it would cost more than a system call.
_MOST_JOINED = 64 * 1024
_HEAD, _CONTINUE = b"HTTP/1.1 ", b"HTTP/1.1 100"


class Transport:
    """A transport that keeps the head of a response until the body follows, which uvicorn always writes.

    Args:
        transport: The transport of the event loop.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Send data, or keep it if it is the head of a response."""
        head = self._head
        if head is None:
            if data.startswith(_HEAD) and not data.startswith(_CONTINUE):
                self._head = data
            else:
                self._transport.write(data)
            return
        self._head = None
        if len(data) > _MOST_JOINED:
            self._transport.write(head)
            self._transport.write(data)
        else:
            self._transport.write(head + data)

    def close(self) -> None:
        """Close the connection after all data."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # the class depends on packages
    """uvicorn's protocol over such a transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection."""
        super().connection_made(Transport(cast(asyncio.Transport, transport)))
