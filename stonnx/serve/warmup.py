"""A request of each kind before the server is ready, so that the first request after that is as fast as others."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from stonnx._errors import InvalidArgumentError
from stonnx.serve.errors import RequestError

if TYPE_CHECKING:
    from stonnx.serve.app import Server

_TEXT = "The first request must not pay for what is loaded on demand."


async def warm_routes(server: Server) -> None:
    """Send a request to each route that a model answers, through everything but the socket."""
    for served in server.models:
        name = served.name
        bodies: dict[str, dict[str, dict[str, Any]]] = {
            "embedding": {
                "/v1/embeddings": {"input": [_TEXT], "model": name},
                "/embed": {"inputs": _TEXT, "model": name},
            },
            "sparse": {"/embed_sparse": {"inputs": _TEXT, "model": name}},
            "rerank": {
                "/rerank": {"query": _TEXT, "texts": [_TEXT], "model": name},
                "/predict": {"inputs": [_TEXT, _TEXT], "model": name},
            },
        }
        for path, body in bodies[served.task].items():
            # A reranker with several labels cannot rank, and some models need the kind of their texts.
            with contextlib.suppress(RequestError, InvalidArgumentError):
                await _request(server, path, json.dumps(body).encode())


async def _request(server: Server, path: str, body: bytes) -> None:
    """Send one request without a key, a log line or a metric."""
    from starlette.requests import Request

    endpoint = next(each for each in server.endpoints if each.path == path and each.method == "POST")
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
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("127.0.0.1", 0),
        "client": None,
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }
    await server.api.rehearse(endpoint, Request(scope, receive))
