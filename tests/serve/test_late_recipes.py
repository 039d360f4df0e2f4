"""Late interaction in bf16 and int8 on one server with other models: vectors, ranks, bad requests, clients that leave.

Queries of this checkpoint are filled up with tokens that no token attends to, and native kernels run it if they are
installed. The answers are those of the bundle in this process, which tests/parity compares with the original.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

from zoo.late_checkpoints import build_late_checkpoint
from zoo.late_interaction import row

import stonnx
from stonnx_export import export

from .conftest import Process

DTYPES = ("bf16", "int8")
QUERY = "what rises, and why?"
TEXTS = [
    "bread rises",
    "",
    "a",
    "the river, it flows; so what is the city .",
    "Die Fähre verlässt 漢字 🙂",
    "the moon " * 300,
]


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("late")
    checkpoint = build_late_checkpoint(row("colbert-ir/colbertv2.0"), directory)
    return {dtype: export(checkpoint, directory / dtype, dtype=dtype, name="late") for dtype in DTYPES}


@pytest.fixture(scope="module")
def server(late: dict[str, Path], dense_path: Path, rerank_path: Path) -> Iterator[Process]:
    models = [f"{dtype}={path}" for dtype, path in late.items()]
    process = Process([*models, f"dense={dense_path}", f"pairs={rerank_path}"])
    yield process.ready()
    process.close()


@pytest.fixture(scope="module")
def models(late: dict[str, Path], dense_path: Path, rerank_path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = {dtype: stonnx.MultiVectorEncoder(path) for dtype, path in late.items()}
    return loaded | {"dense": stonnx.SentenceTransformer(dense_path), "pairs": stonnx.CrossEncoder(rerank_path)}


def ranked(model: Any, query: str, texts: list[str]) -> np.ndarray:
    """The scores of texts for a query."""
    if isinstance(model, stonnx.CrossEncoder):
        scores: np.ndarray = model.predict([(query, text) for text in texts])
        return scores
    found: np.ndarray = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]
    return found


def by_index(results: list[dict[str, Any]], name: str) -> list[float]:
    return [result[name] for result in sorted(results, key=lambda result: result["index"])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_are_those_of_the_model(dtype: str, server: Process, models: dict[str, Any]) -> None:
    for prompt_name, method in ((None, "encode"), ("query", "encode_query"), ("document", "encode_document")):
        body = {"model": dtype, "inputs": TEXTS, "prompt_name": prompt_name}
        found = server.client.post("/embed_all", json=body).raise_for_status().json()
        for mine, expected in zip(found, getattr(models[dtype], method)(TEXTS), strict=True):
            np.testing.assert_array_equal(np.array(mine, np.float32), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_are_those_of_the_model(dtype: str, server: Process, models: dict[str, Any]) -> None:
    expected = ranked(models[dtype], QUERY, TEXTS)
    for path, field, score in (("/rerank", "texts", "score"), ("/v2/rerank", "documents", "relevance_score")):
        body = {"model": dtype, "query": QUERY, field: TEXTS}
        found = server.client.post(path, json=body).raise_for_status().json()
        results = found if path == "/rerank" else found["results"]
        np.testing.assert_allclose(by_index(results, score), expected, rtol=1e-6)
        assert [result["index"] for result in results] == np.argsort(-expected, kind="stable").tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/embed_all", b'{"inputs": ', 400, "not valid JSON"),
        ("/embed_all", b'{"inputs": [1], "model": "DTYPE"}', 422, "token ids"),
        ("/embed_all", b'{"inputs": {"a": 1}, "model": "DTYPE"}', 422, "inputs must be a text or a list"),
        ("/embed_all", b'{"inputs": [], "model": "DTYPE"}', 400, "inputs is an empty list"),
        ("/embed_all", b'{"inputs": "a", "prompt_name": "x", "model": "DTYPE"}', 422, "'x' is not a prompt"),
        ("/embed_all", b'{"inputs": "' + b"a " * 600 + b'", "truncate": false, "model": "DTYPE"}', 422, "602 tokens"),
        ("/rerank", b'{"query": "a", "texts": [{"text": "b"}], "model": "DTYPE"}', 422, "texts[0] must be a text"),
        ("/rerank", b'{"query": ["a"], "texts": ["b"], "model": "DTYPE"}', 422, "query must be a text"),
        ("/embed", b'{"inputs": "a", "model": "DTYPE"}', 424, "gives a vector for each token"),
    ],
)  # fmt: skip
def test_bad_requests(path: str, body: bytes, status: int, said: str, dtype: str, server: Process) -> None:
    headers = {"content-type": "application/json"}
    reply = server.client.post(path, content=body.replace(b"DTYPE", dtype.encode()), headers=headers)
    assert (reply.status_code, said in reply.json()["error"]) == (status, True), reply.text


async def leave(url: str, path: str, body: dict[str, Any], share: float) -> None:
    """Send a part of a request, or all of it, and break the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content[: int(share * len(content))])
    await writer.drain()
    writer.transport.abort()


def test_many_models_at_once_and_clients_that_leave(server: Process, models: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(["the", "bread", "moon", "rises", ",", "漢字"], size=n)) for n in rng.integers(0, 60, 96)
    ]
    groups = [texts[start : start + 8] for start in range(0, len(texts), 8)]
    asked: list[tuple[str, str, dict[str, Any]]] = []
    for group in groups:
        asked += [(dtype, "/embed_all", {"inputs": group, "prompt_name": "query"}) for dtype in DTYPES]
        asked += [(name, "/rerank", {"query": QUERY, "texts": group}) for name in (*DTYPES, "pairs")]
        asked.append(("dense", "/embed", {"inputs": group, "normalize": False}))

    async def ask_all() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            gone = [
                leave(server.url, path, {"model": name, **body}, share)
                for (name, path, body), share in zip(asked[:24], (0, 0.5, 1) * 8, strict=True)
            ]
            answers = [client.post(path, json={"model": name, **body}) for name, path, body in asked]
            *replies, _ = await asyncio.gather(*answers, asyncio.gather(*gone))
        return [reply.raise_for_status().json() for reply in replies]

    for (name, path, body), found in zip(asked, asyncio.run(ask_all()), strict=True):
        if path == "/rerank":
            expected = ranked(models[name], QUERY, body["texts"])
            np.testing.assert_allclose(by_index(found, "score"), expected, rtol=1e-5, atol=1e-6)
        elif path == "/embed_all":
            for mine, rows in zip(found, models[name].encode_query(body["inputs"]), strict=True):
                np.testing.assert_array_equal(np.array(mine, np.float32), rows)
        else:
            np.testing.assert_allclose(found, models[name].encode(body["inputs"]), atol=1e-6)
    assert "Traceback" not in server.log
