"""Every dialect gives the results of the model's own methods, through a real socket."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from toy_bundles import pair_graph, toy_table, write_bundle

from serve.conftest import Process
from stonnx import CrossEncoder, SentenceTransformer, SparseEncoder

_TEXTS = ["the river flows", "what is bread?", "", "ünïcode 猫", "the sun " * 30]
_QUERY, _DOCUMENTS = "what flows", ["bread rises", "the river flows", "the sun shines", "the river flows"]


@pytest.fixture(scope="module")
def dense(dense_path: Path) -> SentenceTransformer:
    prompts = {"query": "question: ", "document": "document: ", "other": "what "}
    return SentenceTransformer(dense_path, prompts=prompts)


@pytest.fixture(scope="module")
def sparse(sparse_path: Path) -> SparseEncoder:
    return SparseEncoder(sparse_path)


@pytest.fixture(scope="module")
def reranker(rerank_path: Path) -> CrossEncoder:
    return CrossEncoder(rerank_path)


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def openai_vectors(reply: Any) -> np.ndarray:
    assert [entry["index"] for entry in reply["data"]] == list(range(len(reply["data"])))
    return np.array([entry["embedding"] for entry in reply["data"]], dtype=np.float32)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_embeddings(client: httpx.Client, dense: SentenceTransformer, path: str) -> None:
    reply = post(client, path, input=_TEXTS, model="dense", user="somebody", unknown=1)
    np.testing.assert_allclose(openai_vectors(reply), dense.encode(_TEXTS), atol=1e-6)
    assert (reply["object"], reply["model"]) == ("list", "dense")
    tokens = int(dense.last_stats.tokens) if dense.last_stats else 0
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    single = post(client, path, input="the river flows")
    np.testing.assert_allclose(openai_vectors(single)[0], dense.encode("the river flows"), atol=1e-6)


def test_base64_has_the_bits_of_the_numbers(client: httpx.Client) -> None:
    """Pain 11: both formats give equal bits, little-endian."""
    numbers = openai_vectors(post(client, "/v1/embeddings", input=_TEXTS, encoding_format="float"))
    packed = post(client, "/v1/embeddings", input=_TEXTS, encoding_format="base64")["data"]
    vectors = np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in packed])
    assert vectors.tobytes() == numbers.tobytes()


def test_dimensions_are_cut_and_then_scaled(client: httpx.Client, dense: SentenceTransformer) -> None:
    vectors = openai_vectors(post(client, "/v1/embeddings", input=_TEXTS, dimensions=3))
    wanted = dense.encode(_TEXTS, truncate_dim=3, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_prompts_by_field_by_name_and_by_alias(client: httpx.Client, dense: SentenceTransformer) -> None:
    text = "bread rises"
    query, document, other = dense.encode_query(text), dense.encode_document(text), dense.encode(text, "other")
    for wanted, body in (
        (query, {"input_type": "query"}),
        (query, {"input_type": "search_query"}),
        (query, {"prompt_name": "query"}),
        (query, {"model": "dense:query"}),
        (query, {"model": "text-embedding-3-small:query"}),
        (query, {"model": "asked"}),
        (document, {"input_type": "passage"}),
        (document, {"model": "dense:document"}),
        (other, {"model": "dense:other"}),
        (other, {"input_type": "other"}),
        (dense.encode(text), {"model": "text-embedding-3-small"}),
        (dense.encode(text), {"input_type": "clustering"}),
    ):
        vectors = openai_vectors(post(client, "/v1/embeddings", input=text, **body))
        np.testing.assert_allclose(vectors[0], wanted, atol=1e-6, err_msg=str(body))


def test_the_models_are_listed(client: httpx.Client) -> None:
    reply = client.get("/v1/models").json()
    assert [entry["id"] for entry in reply["data"]] == ["dense", "sparse", "rerank"]
    dense = client.get("/v1/models/text-embedding-3-small").json()
    assert dense == reply["data"][0]
    assert (dense["task"], dense["dimension"], dense["max_input_tokens"]) == ("embedding", 8, 16)
    assert dense["aliases"] == ["text-embedding-3-small"]
    assert set(dense["prompts"]) == {"query", "document", "other"}


def test_tei_embed(client: httpx.Client, dense: SentenceTransformer) -> None:
    wanted = dense.encode(_TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(post(client, "/embed", inputs=_TEXTS, truncate=True), wanted, atol=1e-6)
    np.testing.assert_allclose(post(client, "/embed", inputs=_TEXTS, normalize=False), dense.encode(_TEXTS), atol=1e-6)
    # A list also for one text.
    np.testing.assert_allclose(post(client, "/embed", inputs=_TEXTS[0]), wanted[:1], atol=1e-6)
    np.testing.assert_allclose(
        post(client, "/embed", inputs=_TEXTS[0], prompt_name="query", truncation_direction="Right", dimensions=2),
        [dense.encode_query(_TEXTS[0], truncate_dim=2, normalize_embeddings=True)],
        atol=1e-6,
    )


def test_tei_embed_all_gives_the_vectors_of_tokens(client: httpx.Client, dense: SentenceTransformer) -> None:
    wanted = dense.encode(_TEXTS, output_value="token_embeddings")
    for ours, theirs in zip(post(client, "/embed_all", inputs=_TEXTS), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tei_embed_sparse(client: httpx.Client, sparse: SparseEncoder) -> None:
    wanted = sparse.encode(_TEXTS).toarray()
    for ours, theirs in zip(post(client, "/embed_sparse", inputs=_TEXTS), wanted, strict=True):
        row = np.zeros(40, dtype=np.float32)
        row[[entry["index"] for entry in ours]] = [entry["value"] for entry in ours]
        np.testing.assert_allclose(row, theirs, atol=1e-6)
        assert all(entry["value"] for entry in ours)


def test_tei_rerank_is_a_bare_list(client: httpx.Client, reranker: CrossEncoder) -> None:
    reply = post(client, "/rerank", query=_QUERY, texts=_DOCUMENTS)
    wanted = reranker.rank(_QUERY, _DOCUMENTS)
    assert [(entry["index"], entry["score"]) for entry in reply] == [
        (entry["corpus_id"], pytest.approx(entry["score"], abs=1e-6)) for entry in wanted
    ]
    # Elasticsearch fails on any other field.
    assert {key for entry in reply for key in entry} == {"index", "score"}
    with_text = post(client, "/rerank", query=_QUERY, texts=_DOCUMENTS, return_text=True, raw_scores=True)
    assert [entry["text"] for entry in with_text] == [_DOCUMENTS[entry["index"]] for entry in with_text]
    logits = reranker.predict([(_QUERY, text) for text in _DOCUMENTS], activation_fn="identity")
    assert [entry["score"] for entry in with_text] == pytest.approx(sorted(logits, reverse=True), abs=1e-6)


def test_scores_are_sigmoids_on_the_routes_of_tei(start: Callable[..., Process], tmp_path: Path) -> None:
    """As TEI does it, also for a model with another activation. Scores of Cohere's routes are the model's own."""
    graph = pair_graph(toy_table(1, 4), np.ones(1, np.float32), "Identity")
    bundle = write_bundle(tmp_path / "pairs", {"default": graph}, task="rerank", num_labels=1, activation="identity")
    client = start(bundle).client
    logits = CrossEncoder(bundle).predict([(_QUERY, text) for text in _DOCUMENTS])
    assert not all(0 < logit < 1 for logit in logits)
    sigmoids = (1 / (1 + np.exp(-logits))).tolist()

    def scores(path: str, **body: Any) -> list[float]:
        reply = post(client, path, query=_QUERY, **body)
        entries = reply["results"] if "documents" in body else reply
        return [entry["score" if "score" in entry else "relevance_score"] for entry in sorted(entries, key=_index)]

    assert scores("/rerank", texts=_DOCUMENTS) == pytest.approx(sigmoids, abs=1e-6)
    assert scores("/rerank", texts=_DOCUMENTS, raw_scores=True) == pytest.approx(logits.tolist(), abs=1e-6)
    assert scores("/rerank", documents=_DOCUMENTS) == pytest.approx(logits.tolist(), abs=1e-6)
    for raw, wanted in ((False, sigmoids), (True, logits.tolist())):
        reply = post(client, "/predict", inputs=[_QUERY, _DOCUMENTS[0]], raw_scores=raw)
        assert reply[0]["score"] == pytest.approx(wanted[0], abs=1e-6)


def _index(entry: dict[str, Any]) -> int:
    return int(entry["index"])


def test_cohere_cuts_texts_after_so_many_tokens(client: httpx.Client, reranker: CrossEncoder) -> None:
    documents = ["the river flows and the sun shines", "bread", "the sun"]
    reply = post(client, "/v2/rerank", query=_QUERY, documents=documents, max_tokens_per_doc=2, return_documents=True)
    wanted = reranker.rank(_QUERY, ["the river", "bread", "the sun"])
    assert [(entry["index"], entry["relevance_score"]) for entry in reply["results"]] == [
        (entry["corpus_id"], pytest.approx(entry["score"], abs=1e-6)) for entry in wanted
    ]
    # The documents come back as they were sent.
    assert {entry["document"]["text"] for entry in reply["results"]} == set(documents)
    vectors = post(client, "/v2/embed", texts=documents[:1], max_tokens=2, model="dense")["embeddings"]["float"]
    assert vectors == post(client, "/v2/embed", texts=["the river"], model="dense")["embeddings"]["float"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_cohere_rerank_is_an_object(client: httpx.Client, reranker: CrossEncoder, path: str) -> None:
    """Pain 33: `documents` are answered as Cohere and Jina do."""
    wanted = reranker.rank(_QUERY, _DOCUMENTS, top_k=2)
    reply = post(client, path, query=_QUERY, documents=_DOCUMENTS, top_n=2, model="rerank")
    assert [(entry["index"], entry["relevance_score"]) for entry in reply["results"]] == [
        (entry["corpus_id"], pytest.approx(entry["score"], abs=1e-6)) for entry in wanted
    ]
    assert {"id", "model", "usage", "meta"} < set(reply)
    assert "document" not in reply["results"][0]
    documents = [{"text": text, "title": "a title"} for text in _DOCUMENTS]
    reply = post(client, path, query=_QUERY, documents=documents, return_documents=True)
    assert reply["results"][0]["document"] == {"text": _DOCUMENTS[reply["results"][0]["index"]]}


def test_rank_fields_choose_what_is_ranked(client: httpx.Client, reranker: CrossEncoder) -> None:
    documents = [{"title": "bread", "body": text} for text in _DOCUMENTS]
    fields = ["title", "body"]
    reply = post(client, "/v1/rerank", query=_QUERY, documents=documents, rank_fields=fields)
    wanted = reranker.rank(_QUERY, [f"bread\n{text}" for text in _DOCUMENTS])
    assert [entry["index"] for entry in reply["results"]] == [entry["corpus_id"] for entry in wanted]


def test_predict_gives_all_labels(start: Any, labels_path: Path) -> None:
    process = start(labels_path)
    model = CrossEncoder(labels_path)
    pairs = [[_QUERY, text] for text in _DOCUMENTS]
    # As in TEI, the softmax of the logits, whatever the model's own activation is.
    wanted = model.predict(pairs, activation_fn="identity", apply_softmax=True)
    reply = post(process.client, "/predict", inputs=pairs)
    for ours, theirs in zip(reply, wanted, strict=True):
        assert [entry["score"] for entry in ours] == pytest.approx(sorted(theirs, reverse=True), abs=1e-6)
        assert ours[0]["label"] == model.config.id2label[int(theirs.argmax())]
    assert post(process.client, "/predict", inputs=pairs[0]) == reply[0]
    assert set(process.client.get("/info").json()["model_type"]) == {"classifier"}
    ranked = process.client.post("/rerank", json={"query": _QUERY, "texts": _DOCUMENTS})
    assert ranked.status_code == 424
    assert "/predict" in ranked.json()["error"]


def test_similarity_and_the_root_for_hugging_face(client: httpx.Client, dense: SentenceTransformer) -> None:
    inputs = {"source_sentence": _TEXTS[0], "sentences": _TEXTS[1:]}
    wanted = dense.similarity(dense.encode(_TEXTS[:1]), dense.encode(_TEXTS[1:]))[0]
    for path in ("/similarity", "/"):
        np.testing.assert_allclose(post(client, path, inputs=inputs), wanted, atol=1e-6)
    with_prompt = post(client, "/", inputs=inputs, parameters={"prompt_name": "query"})
    encoded = dense.encode_query(_TEXTS)
    np.testing.assert_allclose(with_prompt, dense.similarity(encoded[:1], encoded[1:])[0], atol=1e-6)
    np.testing.assert_allclose(
        post(client, "/", inputs=_TEXTS), dense.encode(_TEXTS, normalize_embeddings=True), atol=1e-6
    )
    assert post(client, "/", query=_QUERY, texts=_DOCUMENTS) == post(client, "/rerank", query=_QUERY, texts=_DOCUMENTS)


def test_tokens_are_those_of_the_whole_text(client: httpx.Client, dense: SentenceTransformer) -> None:
    text = "The river flows " * 10
    (tokens,) = post(client, "/tokenize", inputs=text, model="dense")
    assert len(tokens) == dense.count_tokens(text) > 16
    assert tokens[0] == {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert [tokens[1][key] for key in ("text", "start", "stop")] == ["The", 0, 3]
    assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])
    bare = post(client, "/tokenize", inputs=[text], add_special_tokens=False)
    assert [token["id"] for token in bare[0]] == [token["id"] for token in tokens[1:-1]]
    ids = [token["id"] for token in tokens]
    assert post(client, "/decode", ids=ids) == [dense.tokenizer.decode(ids)]
    assert post(client, "/decode", ids=[ids, ids[:3]], skip_special_tokens=False) == [
        dense.tokenizer.decode(ids, skip_special_tokens=False),
        dense.tokenizer.decode(ids[:3], skip_special_tokens=False),
    ]


def test_info_has_what_clients_of_tei_read(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "toy"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (16, 2048)
    assert set(client.get("/info", params={"model": "rerank"}).json()["model_type"]) == {"reranker"}
    assert {entry["name"]: entry["task"] for entry in info["models"]} == {
        "dense": "embedding",
        "sparse": "sparse",
        "rerank": "rerank",
    }


def test_cohere_embed(client: httpx.Client, dense: SentenceTransformer) -> None:
    types = ["float", "binary", "ubinary", "base64"]
    reply = post(client, "/v2/embed", texts=_TEXTS, input_type="search_document", embedding_types=types)
    wanted = dense.encode_document(_TEXTS)
    np.testing.assert_allclose(reply["embeddings"]["float"], wanted, atol=1e-6)
    packed = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in reply["embeddings"]["base64"]]
    np.testing.assert_allclose(packed, wanted, atol=1e-6)
    for precision in ("binary", "ubinary"):
        assert reply["embeddings"][precision] == dense.encode_document(_TEXTS, precision=precision).tolist()
    assert reply["texts"] == _TEXTS
    assert reply["meta"]["billed_units"]["input_tokens"] > 0
    plain = post(client, "/v1/embed", texts=_TEXTS, input_type="search_query", output_dimension=4)
    wanted = dense.encode_query(_TEXTS, truncate_dim=4, normalize_embeddings=True)
    np.testing.assert_allclose(plain["embeddings"], wanted, atol=1e-6)


def _tensor(name: str, texts: list[str]) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts), 1], "datatype": "BYTES", "data": [[text] for text in texts]}


def test_kserve_infers_each_task(
    client: httpx.Client, dense: SentenceTransformer, sparse: SparseEncoder, reranker: CrossEncoder
) -> None:
    reply = post(client, "/v2/models/dense/infer", id="7", inputs=[_tensor("text", _TEXTS)])
    (output,) = reply["outputs"]
    assert (reply["id"], output["name"], output["datatype"], output["shape"]) == ("7", "embedding", "FP32", [5, 8])
    np.testing.assert_allclose(np.reshape(output["data"], (5, 8)), dense.encode(_TEXTS), atol=1e-6)
    parameters = {"input_type": "query", "dimensions": 3}
    reply = post(client, "/v2/models/dense/infer", inputs=[_tensor("text", _TEXTS)], parameters=parameters)
    wanted = dense.encode_query(_TEXTS, truncate_dim=3, normalize_embeddings=True)
    np.testing.assert_allclose(np.reshape(reply["outputs"][0]["data"], (5, 3)), wanted, atol=1e-6)
    inputs = [_tensor("query", [_QUERY]), _tensor("text", _DOCUMENTS)]
    (output,) = post(client, "/v2/models/rerank/infer", inputs=inputs)["outputs"]
    assert output["data"] == pytest.approx(reranker.predict([(_QUERY, text) for text in _DOCUMENTS]), abs=1e-6)
    outputs = post(client, "/v2/models/sparse/infer", inputs=[_tensor("text", _TEXTS)])["outputs"]
    tensors = {tensor["name"]: tensor["data"] for tensor in outputs}
    matrix = sparse.encode(_TEXTS)
    assert tensors["counts"] == np.diff(matrix.indptr).tolist()
    assert tensors["indices"] == matrix.indices.tolist()
    assert tensors["values"] == pytest.approx(matrix.data.tolist(), abs=1e-6)


def test_kserve_speaks_its_binary_extension(client: httpx.Client, dense: SentenceTransformer) -> None:
    import json

    texts = ["the river", "ünïcode"]
    blob = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    header = json.dumps(
        {
            "inputs": [
                {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
            ],
            "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}],
        }
    ).encode()
    response = client.post(
        "/v2/models/dense/infer",
        content=header + blob,
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    reply = json.loads(response.content[:length])
    assert reply["outputs"][0]["parameters"] == {"binary_data_size": 64}
    vectors = np.frombuffer(response.content[length:], dtype="<f4").reshape(2, 8)
    np.testing.assert_allclose(vectors, dense.encode(texts), atol=1e-6)


def test_kserve_describes_the_server_and_its_models(client: httpx.Client) -> None:
    assert client.get("/v2").json()["name"] == "stonnx"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/dense/ready").json() == {"name": "dense", "ready": True}
    metadata = client.get("/v2/models/dense").json()
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]


def test_a_request_of_2048_texts_is_split_inside(client: httpx.Client, dense: SentenceTransformer) -> None:
    """Pain 9."""
    texts = [f"the river {index} flows" for index in range(2048)]
    vectors = openai_vectors(post(client, "/v1/embeddings", input=texts))
    np.testing.assert_allclose(vectors, dense.encode(texts), atol=1e-6)
