"""Models of late interaction on the server: vectors for each token, and documents ranked by MaxSim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stonnx

QUERY = "what city"
TEXTS = ["bread rises", "the river flows", "what is the city"]


@pytest.fixture
def client(start: Callable[..., Any], rows_path: Path) -> Any:
    return start(rows_path).client


@pytest.fixture
def model(rows_path: Path) -> stonnx.MultiVectorEncoder:
    return stonnx.MultiVectorEncoder(rows_path, threads=1)


def scores(model: stonnx.MultiVectorEncoder) -> np.ndarray:
    found: np.ndarray = model.similarity(model.encode_query([QUERY]), model.encode_document(TEXTS))[0]
    return found


def test_vectors(client: Any, model: stonnx.MultiVectorEncoder) -> None:
    for prompt_name, method in ((None, "encode"), ("query", "encode_query"), ("document", "encode_document")):
        found = client.post("/embed_all", json={"inputs": TEXTS, "prompt_name": prompt_name}).json()
        for mine, other in zip(found, getattr(model, method)(TEXTS), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/"])
def test_documents_are_ranked(path: str, client: Any, model: stonnx.MultiVectorEncoder) -> None:
    body = {"query": QUERY, "documents" if path == "/v2/rerank" else "texts": TEXTS}
    found = client.post(path, json=body).json()
    expected, order = scores(model), np.argsort(-scores(model)).tolist()
    results = found["results"] if path == "/v2/rerank" else found
    assert [result["index"] for result in results] == order
    values = [result.get("score", result.get("relevance_score")) for result in results]
    np.testing.assert_allclose(values, expected[order], rtol=1e-5)


def test_kserve(client: Any, model: stonnx.MultiVectorEncoder) -> None:
    tensor = {"name": "text", "shape": [3], "datatype": "BYTES", "data": TEXTS}
    body = {"inputs": [tensor], "parameters": {"input_type": "query"}}
    outputs = client.post("/v2/models/toy-rows/infer", json=body).json()["outputs"]
    counts, vectors = (output["data"] for output in outputs)
    expected = model.encode_query(TEXTS)
    assert counts == [len(rows) for rows in expected]
    np.testing.assert_allclose(np.reshape(vectors, (-1, 8)), np.concatenate(expected), atol=1e-6)


def test_other_operations_are_refused(client: Any) -> None:
    reply = client.post("/embed", json={"inputs": "bread"})
    assert reply.status_code == 424
    assert "gives a vector for each token (" in reply.json()["error"]
    assert "/embed_all" in reply.json()["error"]
    assert "/rerank" in reply.json()["error"]


def test_a_reranker_comes_first(start: Callable[..., Any], rows_path: Path, rerank_path: Path) -> None:
    """A request that does not name a model."""
    client = start(rows_path, rerank_path).client
    alone = start(rerank_path).client
    body = {"query": QUERY, "texts": TEXTS}
    assert client.post("/rerank", json=body).json() == alone.post("/rerank", json=body).json()


def test_messages_list_all_models_that_rank(
    start: Callable[..., Any], rows_path: Path, rerank_path: Path, labels_path: Path, dense_path: Path
) -> None:
    """Rerankers and late interaction, but not a classifier: the scores of its labels give no order."""
    named = {"dense": dense_path, "a": rerank_path, "b": rerank_path, "col": rows_path, "labels": labels_path}
    client = start(*(f"{name}={path}" for name, path in named.items())).client
    for path, texts, error in (("/rerank", "texts", "error"), ("/v2/rerank", "documents", "message")):
        body = {"query": QUERY, texts: TEXTS}
        said = client.post(path, json=body).json()[error]
        assert said == "Several models can do that: say which one in `model`: a, b, col."
        said = client.post(path, json=body | {"model": "dense"}).json()[error]
        assert said.endswith("Models that can: a, b, col.")
        said = client.post(path, json=body | {"model": "labels"}).json()[error]
        assert "3 labels, which give no order of documents" in said
        assert client.post(path, json=body | {"model": "col"}).status_code == 200
    both = start(f"labels={labels_path}", f"a={rerank_path}").client
    assert both.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS}).json()["model"] == "a"
    alone = start(labels_path).client
    assert "Use /predict." in alone.post("/rerank", json={"query": QUERY, "texts": TEXTS}).json()["error"]


def test_documents_of_late_interaction_are_cut(client: Any) -> None:
    body = {"query": QUERY, "documents": TEXTS}
    cut = client.post("/v2/rerank", json=body | {"max_tokens_per_doc": 1}).json()["results"]
    whole = [text.split()[0] for text in TEXTS]
    assert cut == client.post("/v2/rerank", json=body | {"documents": whole}).json()["results"]
