"""docs/serving-api.md and /openapi.json say what the server takes and gives; schemathesis tries it."""

from __future__ import annotations

import contextlib
import re
import types
import typing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serve.conftest import Process
from stonnx.serve.app import Server
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Kind
from stonnx.serve.settings import ModelSettings, Settings

_PAGE = Path(__file__).parents[2] / "docs" / "serving-api.md"


@pytest.fixture(scope="module")
def endpoints() -> tuple[Endpoint, ...]:
    server = Server(Settings(models=(ModelSettings("bundle"),)))
    server.close()
    return server.endpoints


def _sections() -> dict[tuple[str, str], str]:
    """The text of each route in the documentation."""
    sections = {}
    for part in re.split(r"^### ", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        for method, path in re.findall(r"`(\w+) (\S+)`", heading):
            sections[method, path] = text
    return sections


def _names(kind: Any) -> set[str]:
    """The fields of a reply, and of what is inside of it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return set(hints).union(*map(_names, hints.values()))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) in (list, typing.Union):
        return set().union(*map(_names, typing.get_args(kind)))
    return set()


def test_the_documentation_has_every_route(endpoints: tuple[Endpoint, ...]) -> None:
    routes = {(endpoint.method, endpoint.path.replace(":path}", "}")) for endpoint in endpoints}
    assert set(_sections()) == routes


def test_the_documentation_has_every_field_of_every_route(endpoints: tuple[Endpoint, ...]) -> None:
    sections = _sections()
    for endpoint in endpoints:
        text = sections[endpoint.method, endpoint.path.replace(":path}", "}")]
        rows = re.findall(r"^\| `(\w+)`(, needed)? \| (.+) \| (.+) \|$", text, re.MULTILINE)
        body = endpoint.body if endpoint.body is not msgspec.Raw else None
        fields = msgspec.structs.fields(body) if body is not None else ()
        assert [(name, bool(needed)) for name, needed, _, _ in rows] == [
            (field.encode_name, field.required) for field in fields
        ], endpoint.path
        missing = {name for name in _names(endpoint.reply) if f"`{name}`" not in text}
        assert not missing, endpoint.path


def test_the_documentation_has_every_status(endpoints: tuple[Endpoint, ...]) -> None:
    statuses = {endpoint.dialect.status(kind) for endpoint in endpoints for kind in Kind}
    listed = re.findall(r"^\| (\d{3}) \|", _PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, listed)) == sorted(statuses)


def test_openapi_describes_every_route(client: httpx.Client, endpoints: tuple[Endpoint, ...]) -> None:
    document = client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(endpoint.method, endpoint.path.replace(":path}", "}")) for endpoint in endpoints}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    embeddings = document["components"]["schemas"]["EmbeddingsRequest"]
    assert embeddings["required"] == ["input"]


def test_replies_have_the_form_that_is_described(client: httpx.Client, endpoints: tuple[Endpoint, ...]) -> None:
    """The replies of the routes are decoded with the types that the documentation is made of."""
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": ["a"]},
        "/embeddings": {"input": ["a"], "encoding_format": "base64"},
        "/embed": {"inputs": "a"},
        "/embed_all": {"inputs": "a"},
        "/embed_sparse": {"inputs": "a"},
        "/rerank": {"query": "a", "texts": ["b"]},
        "/predict": {"inputs": ["a", "b"]},
        "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        "/tokenize": {"inputs": "a"},
        "/decode": {"ids": [5]},
        "/v1/rerank": {"query": "a", "documents": ["b"]},
        "/v2/rerank": {"query": "a", "documents": ["b"], "return_documents": True},
        "/v1/embed": {"texts": ["a"]},
        "/v2/embed": {"texts": ["a"], "embedding_types": ["float", "binary"]},
        "/v2/models/{model}/infer": {"inputs": [text]},
    }
    tried = 0
    for endpoint in endpoints:
        if endpoint.reply is Any:
            continue
        path = re.sub(r"{\w+(:path)?}", "dense", endpoint.path)
        response = client.get(path) if endpoint.method == "GET" else client.post(path, json=bodies[endpoint.path])
        assert response.status_code == 200, (path, response.text)
        kind = endpoint.reply
        if isinstance(kind, types.UnionType) and endpoint.path == "/rerank":
            kind = typing.get_args(kind)[0]  # msgspec decodes one of two at most
        msgspec.json.decode(response.content, type=kind)
        tried += 1
    assert tried >= 25


def test_the_page_may_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    response = client.get("/", headers={"accept": "text/html,application/xhtml+xml"})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.get("/").json() == {"status": "ready"}
    plain = client.get("/", headers={"accept": "text/html", "accept-encoding": "identity"})
    assert (plain.content, "content-encoding" in plain.headers) == (response.content, False)
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < len(response.content) / 3


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: Process) -> None:
    """Requests made from /openapi.json, right and wrong: no 5xx, no status and no body that is not described."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )

    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    checks = (
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )
    calls = 0

    def check(case: Any) -> None:
        nonlocal calls
        calls += 1
        case.call_and_validate(base_url=server.url, checks=checks)

    limits = settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            # A route without a body and parameters has no wrong requests.
            with contextlib.suppress(Unsatisfiable):
                limits(given(case=operation.as_strategy(generation_mode=mode))(check))()
    assert calls > 500
    assert server.client.post("/embed", json={"inputs": "a"}).status_code == 200
