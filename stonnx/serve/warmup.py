"""A request of each kind before the server is ready, so that the first request after that is as fast as others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from stonnx._errors import InvalidArgumentError
from stonnx.serve.errors import RequestError

if TYPE_CHECKING:
    from stonnx.serve.app import Server
    from stonnx.serve.endpoint import Endpoint


async def warm_routes(server: Server, names: Collection[str] | None = None) -> None:
    """Send a request to each route that a model answers, through everything but the socket.

    Args:
        server: The server.
        names: Only these models. None: all of them.
    """
    for served in server.models:
        if names is not None and served.name not in names:
            continue
        for endpoint in server.endpoints:
            if endpoint.sample is None or served.row.kind not in endpoint.gives:
                continue
            body = {**endpoint.sample, "model": served.name}
            # A reranker with several labels cannot rank, and some models need the kind of their texts.
            with contextlib.suppress(RequestError, InvalidArgumentError):
                await _request(server, endpoint, json.dumps(body).encode())


async def _request(server: Server, endpoint: Endpoint, body: bytes) -> None:
    """Send one request without a key, a log line or a metric."""
    from starlette.requests import Request

    is_sent = False

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            return {"type": "http.disconnect"}
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": endpoint.path,
        "raw_path": endpoint.path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("127.0.0.1", 0),
        "client": None,
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }
    await server.api.rehearse(endpoint, Request(scope, receive))
