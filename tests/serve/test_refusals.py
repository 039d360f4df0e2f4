"""What is refused, with which status and in which shape; and that the server lives on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from serve.conftest import Process

_OPENAI, _TEI, _COHERE, _KSERVE = "/v1/embeddings", "/embed", "/v2/rerank", "/v2/models/dense/infer"


@pytest.fixture(autouse=True)
def _lives_on(client: httpx.Client) -> Iterator[None]:
    """After every test the server answers as before."""
    yield
    assert client.post("/embed", json={"inputs": "the river"}).status_code == 200


def error_of(response: httpx.Response, path: str) -> str:
    """The message, from a body in the dialect of the path."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    if path in ("/v1/embeddings", "/embeddings"):
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    if path in ("/v2/rerank", "/v1/rerank", "/v2/embed", "/v1/embed"):
        assert set(body) == {"message"}
        return str(body["message"])
    if path.startswith("/v2/models"):
        assert set(body) == {"error"}
        return str(body["error"])
    assert set(body) == {"error", "error_type"}
    return str(body["error"])


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (_OPENAI, {"input": []}, 400, "empty list"),
        (_OPENAI, {"input": ["a"], "model": "gpt"}, 404, "There is: dense, sparse, rerank"),
        (_OPENAI, {"input": ["a"], "model": "dense:nope"}, 404, "does not exist"),
        (_OPENAI, {"input": ["a"], "model": "rerank"}, 400, "scores pairs of texts"),
        (_OPENAI, {"input": ["a"], "dimensions": 9}, 400, "from 1 to 8"),
        (_OPENAI, {"input": ["a"], "dimensions": 0}, 400, "from 1 to 8"),
        (_OPENAI, {"input": ["a"], "encoding_format": "hex"}, 400, "hex"),
        (_OPENAI, {"input": ["a"], "prompt_name": "nope"}, 400, "nope"),
        (_OPENAI, {"input": ["a"], "input_type": "nope"}, 400, "search_query"),
        (_OPENAI, {"input": ["a", 1]}, 400, "mixture"),
        (_OPENAI, {"input": [[1], "a"]}, 400, "mixture"),
        (_OPENAI, {"input": [1.5]}, 400, "input[0] must be "),
        (_OPENAI, {"input": None}, 400, "input must be a text or a list, and it is null."),
        (_OPENAI, ["a"], 400, "The body must be an object, and it is a list."),
        (_OPENAI, {"input": "a", "encoding_format": "hex"}, 400, "which is not known. Allowed: base64, float"),
        (_OPENAI, {}, 400, "The field input is missing: a text, or a list of texts."),
        (_OPENAI, {"input": ["a", "river " * 40], "truncate": False}, 400, "Text 1 has 42 tokens"),
        (_OPENAI, {"input": ["a"] * 2049}, 413, "2,049 texts"),
        (_OPENAI, {"input": "a" * 1_000_001}, 413, "--max-text-characters"),
        (_TEI, {"inputs": []}, 400, "empty list"),
        (_TEI, {"inputs": "a", "model": "rerank"}, 424, "scores pairs"),
        (_TEI, {"inputs": 3}, 422, "inputs must be a text or a list, and it is a whole number."),
        (_TEI, {"inputs": "a", "prompt_name": "nope"}, 422, "nope"),
        (_TEI, {"inputs": "a", "truncation_direction": "Left"}, 422, "cuts on the right"),
        (_TEI, {"inputs": ["a"] * 2049}, 413, "--max-texts"),
        ("/embed_sparse", {"inputs": "a", "model": "dense"}, 424, "Models that can: sparse"),
        ("/rerank", {"query": "a"}, 422, "texts is missing"),
        ("/rerank", {"query": "a", "texts": []}, 400, "empty list"),
        ("/rerank", {"query": "a", "texts": ["b"], "documents": ["b"]}, 400, "Both texts"),
        ("/predict", {"inputs": "a"}, 422, "pairs of texts"),
        ("/predict", {"inputs": [["a", "b"], ["c"]]}, 422, "pairs of texts"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "empty list"),
        ("/similarity", {"inputs": {"sentences": ["a"]}}, 422, "The field inputs.source_sentence is missing."),
        ("/", {"inputs": {"source_sentence": "a", "sentences": [3]}}, 422, "inputs.sentences[0] must be a text, and"),
        ("/tokenize", {"inputs": []}, 400, "empty list"),
        ("/decode", {"ids": [99999]}, 422, "numbers from 0"),
        ("/decode", {"ids": [-1]}, 422, "numbers from 0"),
        (_COHERE, {"query": "a", "documents": []}, 400, "empty list"),
        (_COHERE, {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
        (_COHERE, {"query": "a", "documents": [{"title": "b"}]}, 400, "documents[0]"),
        (_COHERE, {"query": "a", "documents": ["b"], "model": "dense"}, 400, "Models that can: rerank"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}, 400, "binary"),
        ("/v2/embed", {"texts": ["a"], "images": ["data:"]}, 400, "images"),
        ("/v2/embed", {"texts": ["a"], "truncate": "START"}, 400, "START"),
        ("/v2/embed", {"texts": ["river " * 40], "truncate": "NONE"}, 400, "42 tokens"),
        (_KSERVE, {"inputs": []}, 400, "the inputs text"),
        (_KSERVE, {"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1]}]}, 400, "BYTES"),
        (_KSERVE, {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}, 400, "shape"),
        (_KSERVE, {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}]}, 400, "texts"),
        ("/v2/models/nope/infer", {"inputs": []}, 404, "does not exist"),
    ],
)
def test_what_the_client_said_wrong(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert message in error_of(response, path)


@pytest.mark.parametrize("path", [_OPENAI, "/embeddings", _TEI, _COHERE, "/v1/embed", _KSERVE, "/", "/tokenize"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"input": NaN}',
        b'{"input": "\\ud800", "inputs": "\\ud800", "texts": ["\\ud800"], "query": "\\ud800"}',
        b'{"input": "a"} b',
        b"[" * 100_000,
        b'{"input":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"x":' * 50_000,
    ],
    ids=["empty", "cut", "null", "not-unicode", "nan", "surrogate", "trailing", "deep", "deep-field", "deep-objects"],
)
def test_bodies_that_are_no_request(client: httpx.Client, path: str, content: bytes) -> None:
    response = client.post(path, content=content)
    assert response.status_code in (400, 422), response.text
    assert error_of(response, path)


def test_token_ids_are_refused_with_the_remedy(client: httpx.Client) -> None:
    """Pain 13."""
    for ids in ([5, 6, 7], [[5, 6], [7]]):
        response = client.post(_OPENAI, json={"input": ids})
        assert response.status_code == 400
        assert "check_embedding_ctx_length=False" in response.text
        assert "--token-ids model" in response.text
        assert client.post(_TEI, json={"inputs": ids}).status_code == 422


def test_token_ids_of_the_model_are_taken_where_the_operator_allows_it(
    start: Callable[..., Process], dense_path: Any
) -> None:
    client = start(dense_path, "--token-ids", "model").client
    tokens = client.post("/tokenize", json={"inputs": ["the river flows", "bread"]}).json()
    ids = [[token["id"] for token in text] for text in tokens]
    wanted = client.post(_TEI, json={"inputs": ["the river flows", "bread"]}).json()
    assert client.post(_TEI, json={"inputs": ids}).json() == wanted
    assert client.post(_OPENAI, json={"input": ids[0][1:-1]}).json()["data"][0]["index"] == 0
    response = client.post(_OPENAI, json={"input": [[5, 100_000]]})
    assert response.status_code == 400
    assert "100000 is not a token id" in response.text


def test_truncation_is_told(client: httpx.Client) -> None:
    """Pain 26: which texts were cut; `usage` counts what was computed."""
    long = "river " * 40
    response = client.post(_OPENAI, json={"input": ["a", long, "b", long]})
    assert response.headers["x-truncated"] == "1,3"
    assert response.json()["usage"]["prompt_tokens"] == 3 + 16 + 3 + 16
    response = client.post(_OPENAI, json={"input": [long + str(number) for number in range(40)]})
    assert response.headers["x-truncated"] == ",".join(map(str, range(32))) + ",+8"
    assert "x-truncated" not in client.post(_OPENAI, json={"input": ["a"]}).headers


def test_the_empty_text_is_a_text(client: httpx.Client) -> None:
    reply = client.post(_OPENAI, json={"input": ["", "a"]}).json()
    assert reply["data"][0]["embedding"] == client.post(_OPENAI, json={"input": ""}).json()["data"][0]["embedding"]


def test_paths_and_methods_that_are_not_there(client: httpx.Client) -> None:
    for path in ("/nope", "/v1/nope", "/v2/nope", "/v2/models/dense/nope"):
        response = client.get(path)
        assert response.status_code == 404
        assert "/openapi.json" in response.text
    response = client.get(_OPENAI)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "Allowed: POST" in error_of(response, _OPENAI)
    assert client.get("/v1/models/nope").json()["error"]["code"] == "model_not_found"


def test_a_body_over_the_limit_is_json_with_limit_size_and_option(client: httpx.Client) -> None:
    """Pain 10; with and without a length that says so before."""

    def stream() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(40):
            yield b"a" * 1_000_000

    # A server may close the connection while the client still sends.
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        assert client.post(_OPENAI, content=stream()).status_code == 413
    response = client.post(_TEI, content=b" " * 32_000_001)
    assert response.status_code == 413
    assert "32,000,001 bytes" in error_of(response, _TEI)
    assert "--max-body-mb" in response.text


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    response = client.post(_OPENAI, content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 400
    assert "gzip" in response.text


def test_a_client_that_sends_slowly_is_told_and_holds_up_nobody(start: Callable[..., Process], dense_path: Any) -> None:
    process = start(dense_path, "--body-timeout", "0.3")
    host, port = process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert process.client.post("/embed", json={"inputs": "a"}).status_code == 200
        answer = b""
        while part := slow.recv(65536):  # the body may come after the headers; then the server closes the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"--body-timeout" in answer


def test_a_request_that_takes_too_long_is_504_and_is_dropped(start: Callable[..., Process], slow_path: Any) -> None:
    process = start(slow_path)
    texts = [f"the river {index} flows " * 10 for index in range(2000)]
    response = process.client.post("/embed", json={"inputs": texts}, headers={"x-request-timeout-ms": "50"})
    assert response.status_code == 504
    deadline = time.monotonic() + 60
    while 'stonnx_queued_texts{device="cpu"} 0.0' not in process.client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.client.post("/embed", json={"inputs": "a"}, headers={"x-request-timeout-ms": "x"}).status_code == 422


def test_bulk_work_may_take_longer_than_a_query(start: Callable[..., Process], slow_path: Any) -> None:
    """It lets others go first, so the limit of a query would end it on a busy server after its work is nearly done."""
    process = start(slow_path, "--request-timeout", "0.001", "--bulk-timeout", "60")
    texts = [f"the river {index} flows" for index in range(9)]
    assert process.client.post("/embed", json={"inputs": texts[:8]}).status_code == 504
    assert process.client.post("/embed", json={"inputs": texts}).status_code == 200


def test_bodies_of_many_clients_have_a_bound_together(start: Callable[..., Process], dense_path: Any) -> None:
    """Pain 20: what is sent at once does not grow without end. A single body is allowed up to --max-body-mb."""
    process = start(dense_path, "--max-bodies-mb", "1")
    body = b'{"inputs": "' + b"a" * 900_000 + b'"}'
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((process.client.base_url.host, process.client.base_url.port)) as slow:
        slow.sendall(head + body[:800_000])
        # The server reads it before another body comes. Of two that arrive at once, either may be refused.
        time.sleep(1)
        deadline = time.monotonic() + 30
        while (response := process.client.post("/embed", content=body)).status_code == 200:
            assert time.monotonic() < deadline, "the first body has not arrived"
        assert response.status_code == 429
        assert "--max-bodies-mb" in response.json()["error"]
        assert response.headers["retry-after"] == "2"
        slow.sendall(body[800_000:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
    assert process.client.post("/embed", content=body).status_code == 200


def test_an_overloaded_server_says_when_to_come_again(start: Callable[..., Process], slow_path: Any) -> None:
    """Pains 1, 2 and 3: 429 with Retry-After in both forms, for one text as for a list of one."""
    process = start(slow_path, "--max-queued-tokens", "300", "--no-access-log")

    def ask(index: int) -> httpx.Response:
        text = f"the river {index} flows and the sun shines " * 3
        inputs: Any = text if index % 2 else [text]
        return httpx.post(process.url + "/embed", json={"inputs": inputs}, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(200)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 50
        assert answer.json()["error_type"] == "Overloaded"
    too_large = process.client.post("/embed", json={"inputs": ["the river flows " * 10] * 100})
    assert too_large.status_code == 413
    assert "--max-queued-tokens" in too_large.json()["error"]
    metrics = process.client.get("/metrics").text
    assert f'stonnx_rejected_total{{reason="overloaded"}} {float(len(refused))}' in metrics


def test_messages_hold_no_secrets_of_the_server(client: httpx.Client) -> None:
    """A failure inside is an id in the log, not a traceback in the response."""
    for body in ({"input": "a", "model": "x" * 10_000}, {"input": "a", "prompt_name": "y" * 10_000}):
        response = client.post(_OPENAI, json=body)
        assert response.status_code in (400, 404)
        assert "Traceback" not in response.text
        assert json.loads(response.text)
