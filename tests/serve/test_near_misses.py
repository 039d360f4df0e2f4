"""Requests that are nearly right: a field, a prompt, a path or a method. The answer names the right one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve.conftest import Process
from stonnx.serve.decoding import _MOST_SCANNED, Decoder
from stonnx.serve.errors import RequestError
from stonnx.serve.near import nearest
from stonnx.serve.tei_types import EmbedRequest

_TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
_INFER = "/v2/models/dense/infer"
_DENSE: dict[str, Any] = {"model": "dense"}
# A right body of each route, by the field that holds its texts.
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": _DENSE | {"input": ["a"]},
    "/embed": _DENSE | {"inputs": ["a"]},
    "/embed_all": _DENSE | {"inputs": ["a"]},
    "/embed_sparse": {"inputs": ["a"]},
    "/rerank": {"query": "a", "texts": ["b"]},
    "/predict": {"inputs": ["a", "b"]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": ["a"]},
    "/decode": {"ids": [5]},
    "/": {"inputs": ["a"]},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/v1/embed": _DENSE | {"texts": ["a"]},
    "/v2/embed": _DENSE | {"texts": ["a"]},
    _INFER: {"inputs": [_TENSOR]},
}
# What clients of these and of other servers send, and this server does not read.
_OF_OTHERS: dict[str, Any] = {
    "user": "somebody",
    "task": "retrieval.query",
    "late_chunking": False,
    "normalized": True,
    "embedding_type": "float",
    "return_multivector": False,
    "truncation": True,
    "truncate_prompt_tokens": 5,
    "add_special_tokens": True,
    "additional_data": None,
    "output_dtype": "float",
    "modality": "text",
    "keep_alive": "5m",
    "options": {"use_cache": True},
    "metadata": {},
    "extra_body": {},
    "request_id": "1",
    "timeout": 5,
    "return_embeddings": False,
    "max_doc_length": 5,
    "overlap": 1,
    "rank_fields": ["text"],
    "max_chunks_per_doc": 1,
    "max_tokens_per_doc": 5,
    "priority": 0,
    "mm_processor_kwargs": {},
}
# Fields of that list that are one or two letters from one that the route has.
_REALLY_NEAR = {
    "/": {"normalized"},
    "/embed": {"normalized"},
    "/v1/embed": {"embedding_type"},
    "/v2/embed": {"embedding_type"},
}


def message_of(response: httpx.Response) -> str:
    body = response.json()
    error = body.get("error", body.get("message"))
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize(
    ("path", "wrong", "right", "status"),
    [
        ("/v1/embeddings", "prompt_nam", "prompt_name", 400),
        ("/v1/embeddings", "promptName", "prompt_name", 400),
        ("/v1/embeddings", "dimension", "dimensions", 400),
        ("/v1/embeddings", "encodingformat", "encoding_format", 400),
        ("/embed", "prompt-name", "prompt_name", 422),
        ("/embed", "trunacte", "truncate", 422),
        ("/embed", "normalise", "normalize", 422),
        ("/embed_all", "promt_name", "prompt_name", 422),
        ("/embed_sparse", "modl", "model", 422),
        ("/rerank", "raw_score", "raw_scores", 422),
        ("/rerank", "top_k", "top_n", 422),
        ("/predict", "raw_score", "raw_scores", 422),
        ("/similarity", "parameter", "parameters", 422),
        ("/tokenize", "add_special_token", "add_special_tokens", 422),
        ("/decode", "skip_special_token", "skip_special_tokens", 422),
        ("/", "prompt_nam", "prompt_name", 422),
        ("/v1/rerank", "return_document", "return_documents", 400),
        ("/v2/rerank", "max_token_per_doc", "max_tokens_per_doc", 400),
        ("/v2/embed", "output_dimensions", "output_dimension", 400),
        ("/v1/embed", "input_types", "input_type", 400),
        (_INFER, "output", "outputs", 400),
    ],
)
def test_a_field_that_is_nearly_right_is_named(
    client: httpx.Client, path: str, wrong: str, right: str, status: int
) -> None:
    # Another unknown field comes first.
    response = client.post(path, json={"other": 1, **_BODIES[path], wrong: None})
    assert response.status_code == status, response.text
    assert message_of(response).startswith(f"The field {wrong} is not known. Did you mean {right}?")
    if path == "/v1/embeddings":
        assert response.json()["error"]["param"] == wrong
    # Beside the right field it is not a slip: some clients send two spellings.
    if right != "model":
        both = client.post(path, json={**_BODIES[path], wrong: None, right: _VALUES.get(right)})
        assert "is not known. Did you mean" not in both.text


_VALUES = {"raw_scores": False, "add_special_tokens": True, "skip_special_tokens": True}


def test_a_parameter_that_is_nearly_right_is_named(client: httpx.Client) -> None:
    parameters = {"prompt_nam": "query", "sequence_id": 5}
    response = client.post(_INFER, json={"inputs": [_TENSOR], "parameters": parameters})
    assert response.status_code == 400
    assert response.json()["error"].startswith("The field prompt_nam is not known. Did you mean prompt_name?")
    assert client.post(_INFER, json={"inputs": [_TENSOR], "parameters": {"sequence_id": 5}}).status_code == 200


@pytest.mark.parametrize("path", _BODIES)
def test_fields_that_only_others_know_are_taken(client: httpx.Client, path: str) -> None:
    plain = client.post(path, json=_BODIES[path])
    near = _REALLY_NEAR.get(path, set())
    others = {name: value for name, value in _OF_OTHERS.items() if name not in near}
    response = client.post(path, json=_BODIES[path] | others)
    assert response.status_code == plain.status_code == 200, response.text
    for name in near:
        assert "Did you mean" in client.post(path, json=_BODIES[path] | {name: None}).text


def test_the_texts_under_the_name_of_another_dialect(client: httpx.Client) -> None:
    said = client.post("/v1/embeddings", json={"inputs": "a"}).json()["error"]
    assert said["message"].startswith("The field inputs is not known. Did you mean input?")
    assert "Did you mean inputs?" in client.post("/embed", json={"input": "a"}).json()["error"]


def test_names_are_compared_by_letters() -> None:
    known = ["prompt_name", "id", "top_n"]
    assert nearest("prmpt_nam", known) == nearest("prompt_naem", known) == nearest("PromptName", known) == "prompt_name"
    assert nearest("prompt", known) is nearest("ids", known) is nearest("top", ["topmost"]) is None
    # The nearest of several.
    assert nearest("document", ["documents_", "documents"]) == "documents"


def test_a_large_body_is_searched_only_as_far_as_its_first_unknown_field() -> None:
    """The names of a body of millions of fields would take many times its memory."""
    decode = Decoder(EmbedRequest)
    text = "a" * _MOST_SCANNED

    def body(*names: str) -> bytes:
        return json.dumps({"inputs": text, **dict.fromkeys(names, 1)}).encode()

    with pytest.raises(RequestError, match="Did you mean prompt_name"):
        decode(body("prompt_nam"))
    assert decode(body("other", "prompt_nam")).inputs == text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt_name": "nope"}, "prompt_name"),
        ({"input_type": "nope"}, "input_type"),
        ({"dimensions": 9}, "dimensions"),
        ({"dimensions": "9"}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": "nope"}, "model"),
        ({"model": "dense:nope"}, "model"),
        ({"model": "rerank"}, "model"),
        ({"model": 3}, "model"),
        ({"truncate": "END"}, "truncate"),
        ({"user": 3}, "user"),
        ({"input": []}, "input"),
        ({"input": ["a", 3]}, "input[0]"),
        ({"input": ["a", "river " * 40], "truncate": False}, "input[1]"),
    ],
)
def test_openai_clients_learn_which_field_is_wrong(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = client.post("/v1/embeddings", json={"input": "a", **body})
    assert response.json()["error"]["param"] == param, response.text


def test_a_wrong_prompt_names_the_prompts_of_the_model(client: httpx.Client) -> None:
    for path, name in (("/embed", "inputs"), ("/tokenize", "inputs"), ("/v1/embeddings", "input")):
        said = message_of(client.post(path, json={name: "a", "model": "dense", "prompt_name": "qery"}))
        assert said == "prompt_name 'qery' is not a prompt of the model 'dense'. Its prompts: query, document, other."
    response = client.post("/v1/embeddings", json={"input": "a", "model": "dense:qery"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == (
        "The model 'dense:qery' does not exist: dense has no prompt 'qery'. There is: dense, dense:query, "
        "dense:document, dense:other."
    )
    # Through an alias, in the client's words.
    said = client.get("/v1/models/text-embedding-3-small:qery").json()["error"]["message"]
    assert "There is: text-embedding-3-small, text-embedding-3-small:query, " in said
    said = client.post("/rerank", json={"query": "a", "texts": ["b"], "model": "rerank:qery"}).json()["error"]
    assert said == "The model 'rerank:qery' does not exist: rerank has no prompt 'qery'. There is: rerank."


def test_cohere_clients_read_the_name_of_their_own_field(client: httpx.Client) -> None:
    response = client.post("/v2/embed", json={"texts": ["a"], "output_dimension": 9})
    assert response.json()["message"] == "output_dimension must be from 1 to 8, as the model has; got 9."


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/v1/embedding", 404, "The nearest: POST /v1/embeddings"),
        ("POST", "/v1/v1/embeddings", 404, "The nearest: POST /v1/embeddings"),
        ("POST", "/api/embed", 404, "The nearest: POST /embed"),
        ("GET", "/helth", 404, "The nearest: GET /health"),
        ("POST", "/v1/chat/completions", 404, "Its models answer /v1/embeddings, "),
        ("GET", "/favicon.ico", 404, "/embed_sparse, "),
        ("GET", "/v1/embeddings", 405, "Allowed: POST."),
        ("GET", "/v1/embed", 405, "Allowed: POST."),
        ("POST", "/info", 405, "Allowed: GET, HEAD."),
        ("POST", "/v2/models/{model}", 405, "The nearest for POST: POST /v2/models/{model}/infer."),
    ],
)
def test_a_wrong_path_or_method_names_routes(
    client: httpx.Client, method: str, path: str, status: int, said: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert said in message_of(response)
    assert "GET /openapi.json lists all routes." in response.text
    if path in ("/v1/chat/completions", "/favicon.ico"):
        answered = ("/v1/embeddings", "/embed", "/v2/embed", "/embed_sparse", "/predict", "/rerank", "/v2/rerank")
        assert all(f"{each}," in response.text or f"{each}." in response.text for each in answered)
    if path == "/v1/embed":
        assert set(response.json()) == {"message"}  # in the dialect of Cohere, whose path it is


@pytest.fixture
def logged(server: Process) -> Callable[[str], str]:
    """What the log says of a request, by its id."""

    def find(request_id: str) -> str:
        return str(server.wait_for(f"request_id={request_id}( |$)").string)

    return find


def test_requests_without_a_route_have_an_id_and_a_line_in_the_log(
    client: httpx.Client, logged: Callable[[str], str]
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for method, path, status in (("POST", "/v1/chat/completions", 404), ("GET", "/embed", 405)):
        mine = f"mine-{status}"
        headers = {"x-request-id": mine, "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        response = client.request(method, path, headers=headers)
        assert response.headers["x-request-id"] == mine
        line = logged(mine)
        for field in (f"method={method}", f"path={path}", f"status={status}", "client=127.0.0.1", f"trace_id={trace}"):
            assert f" {field}" in line
        # Without an id of its own, a request gets one, as it does on other routes.
        given = client.request(method, path).headers["x-request-id"]
        assert f"status={status}" in logged(given)
    # An id that would look like another field is replaced.
    assert client.get("/nope", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
