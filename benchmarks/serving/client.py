"""A small HTTP/1.1 client for asyncio. It uses next to no CPU time for a request, and can cut connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CUT, REFUSED = 0, -1


@dataclass(frozen=True)
class Reply:
    """An answer. The status is ``CUT`` if the connection ended without an answer, ``REFUSED`` if it was never made."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reply: asyncio.Future[Reply] | None = None
        self.transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.is_open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._finish(Reply(CUT))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < size:
            return
        body = bytes(self._buffer[end + 4 : size])
        del self._buffer[:size]
        if headers.get("connection") == "close":
            self.is_open = False
        self._finish(Reply(int(first.split(" ", 2)[1]), headers, body))

    async def ask(self, request: bytes) -> Reply:
        assert self.transport is not None
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._reply

    def _finish(self, reply: Reply) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)


class Client:
    """Connections to one server, one for each request in flight."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, *, patience: float = 600.0) -> Reply:
        """Send a body. If its task is cancelled meanwhile, it cuts its connection, as a client that gives up does."""
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\ncontent-length: "
        return await self._send(f"{head}{len(body)}\r\n\r\n".encode() + body, patience)

    async def get(self, path: str, *, patience: float = 10.0) -> Reply:
        return await self._send(f"GET {path} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode(), patience)

    def close(self) -> None:
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()
        self._idle.clear()

    async def _send(self, request: bytes, patience: float) -> Reply:
        connection = await self._connection()
        if connection is None:
            return Reply(REFUSED)
        try:
            reply = await asyncio.wait_for(connection.ask(request), patience)
        except BaseException as error:
            assert connection.transport is not None
            connection.transport.abort()
            if isinstance(error, TimeoutError):
                return Reply(CUT)
            raise
        if connection.is_open:
            self._idle.append(connection)
        return reply

    async def _connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError:
            return None
        return connection


def embedding_body(texts: str | list[str], model: str) -> bytes:
    """The body of a request to ``/v1/embeddings``, as OpenAI's SDK sends it."""
    return json.dumps({"model": model, "input": texts, "encoding_format": "base64"}).encode()


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric over its series with these labels, from the text of ``/metrics``."""
    total = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        known, _, rest = series.partition("{")
        if known == name and all(f'{key}="{wanted}"' in rest for key, wanted in labels.items()):
            total += float(value)
    return total


def embeddings_of(reply: Reply) -> list[Any]:
    """The base64 texts of an answer, in the order of its inputs."""
    return [item["embedding"] for item in json.loads(reply.body)["data"]]
