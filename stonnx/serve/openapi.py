"""``/openapi.json``, made from the endpoints and the structs that they decode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

import stonnx
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Kind

_REF = "#/components/schemas/{name}"
_ERRORS = {
    Kind.MALFORMED: "The request is malformed",
    Kind.INVALID: "A field is wrong",
    Kind.UNAUTHORIZED: "The key is missing or wrong",
    Kind.NOT_FOUND: "There is no such model",
    Kind.SLOW: "The body took too long to arrive",
    Kind.TOO_LARGE: "The body, the number of texts or a text is too large",
    Kind.WRONG_TASK: "The model does something else",
    Kind.OVERLOADED: "Too much waits; Retry-After says when to come again",
    Kind.INTERNAL: "The server failed",
    Kind.UNAVAILABLE: "The server starts or ends; Retry-After says when to come again",
    Kind.TIMEOUT: "The request took too long",
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI document of endpoints."""
    bodies = [each.body for each in endpoints if each.body is not None and each.body is not msgspec.Raw]
    replies = [each.reply for each in endpoints if each.reply is not None]
    types = list(dict.fromkeys([*bodies, *replies]))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stonnx",
            "version": stonnx.__version__,
            "description": "Embeddings, sparse embeddings and reranking in the dialects of several servers.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, path: str, schema_of: dict[Any, Any]) -> dict[str, Any]:
    content = {
        media: {"schema": schema_of.get(endpoint.reply, {})} if media == "application/json" else {}
        for media in endpoint.media
    }
    responses: dict[str, Any] = {"200": {"description": "The result", "content": content}}
    for kind, text in _ERRORS.items():
        if endpoint.body is None and kind in (Kind.MALFORMED, Kind.SLOW, Kind.TOO_LARGE, Kind.OVERLOADED):
            continue
        responses.setdefault(str(endpoint.dialect.status(kind)), {"description": text})
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{path}").strip("_"),
        "summary": endpoint.summary,
        "tags": [endpoint.dialect.name],
        "responses": responses,
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if endpoint.body is not None:
        schema = schema_of.get(endpoint.body, {"type": "object"})
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not endpoint.is_public:
        operation["security"] = [{}, {"key": []}]
    return operation
