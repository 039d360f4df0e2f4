"""Requests for a path or a method that does not exist: the reason, and the routes that come nearest."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from stonnx.serve import cohere, kserve, openai, tei
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError

# The part of two paths that must be equal, and the number of routes that are named.
_LIKENESS, _MOST_NAMED = 0.75, 3
_LONGEST = 200


def no_path(path: str, endpoints: Sequence[Endpoint], answered: Sequence[str]) -> RequestError:
    """The error for a path that does not exist.

    Args:
        path: The path.
        endpoints: All endpoints of the server.
        answered: The paths that its models answer, for a path that is not like any.
    """
    near = _near(path, endpoints)
    routes = f"The nearest: {near}." if near else f"Its models answer {', '.join(answered)}."
    return RequestError(
        Kind.NOT_FOUND, f"This server has no {path[:_LONGEST]}. {routes} GET /openapi.json lists all routes."
    )


def no_method(method: str, path: str, allowed: str, endpoints: Sequence[Endpoint]) -> RequestError:
    """The error for a path that does not have the method.

    Args:
        method: The method.
        path: The path.
        allowed: The methods that it has.
        endpoints: All endpoints of the server.
    """
    near = _near(path, [each for each in endpoints if each.method == method])
    return RequestError(
        Kind.METHOD,
        f"{method[:_LONGEST]} is not allowed for {path[:_LONGEST]}. Allowed: {allowed}."
        + (f" The nearest for {method}: {near}." if near else "")
        + " GET /openapi.json lists all routes.",
        headers={"allow": allowed},
    )


def _near(path: str, endpoints: Sequence[Endpoint]) -> str:
    by_path = {endpoint.path.replace(":path}", "}"): endpoint.method for endpoint in endpoints}
    found = get_close_matches(path[:_LONGEST].lower(), by_path, _MOST_NAMED, _LIKENESS)
    return ", ".join(f"{by_path[each]} {each}" for each in found)


def dialect_of(path: str) -> Dialect:
    """The dialect of the clients that ask for such a path."""
    if path.startswith("/v2/models"):
        return kserve.DIALECT
    if path == "/v1/embed" or path.startswith(("/v1/rerank", "/v2/", "/v1/embed/")):
        return cohere.DIALECT
    return openai.DIALECT if path.startswith("/v1/") else tei.DIALECT
