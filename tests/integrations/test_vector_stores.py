"""The adapters of vector databases give the vectors of the model that they wrap, and search finds them.

A host that is not installed skips its tests; `make test-integrations` makes an environment with all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import QUERY, SAME, TEXTS, approx

import stonnx


class TestChroma:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("chromadb")

    def test_a_collection_finds_its_function_again(
        self, toys: dict[str, Path], dense: stonnx.SentenceTransformer, tmp_path: Path
    ) -> None:
        import chromadb

        from stonnx.integrations.chroma import StonnxEmbeddingFunction

        settings = chromadb.Settings(anonymized_telemetry=False)
        function = StonnxEmbeddingFunction(toys["dense"], threads=1)
        collection = chromadb.PersistentClient(str(tmp_path), settings=settings).create_collection(
            "texts", embedding_function=function
        )
        collection.add(ids=[str(index) for index in range(len(TEXTS))], documents=TEXTS)
        stored = collection.get(include=["embeddings"])
        np.testing.assert_allclose(stored["embeddings"], dense.encode_document(TEXTS), **SAME)
        again = chromadb.PersistentClient(str(tmp_path), settings=settings).get_collection("texts")
        scores = stonnx.util.cos_sim(dense.encode_query([QUERY]), dense.encode_document(TEXTS))[0]
        found = again.query(query_texts=[QUERY], n_results=1)
        assert found["ids"] == [[str(int(np.argmax(scores)))]]

    def test_another_model_for_the_same_vectors(self, toys: dict[str, Path]) -> None:
        from stonnx.integrations.chroma import StonnxEmbeddingFunction

        function = StonnxEmbeddingFunction(toys["dense"])
        old = function.get_config()
        assert StonnxEmbeddingFunction.build_from_config(old).get_config() == old
        with pytest.raises(ValueError, match="Make a new collection"):
            function.validate_config_update(old, old | {"model": "other"})


class TestLanceDB:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("lancedb")

    def test_a_table(
        self, toys: dict[str, Path], dense: stonnx.SentenceTransformer, order: list[Any], tmp_path: Path
    ) -> None:
        import lancedb
        from lancedb.embeddings import get_registry
        from lancedb.pydantic import LanceModel, Vector

        from stonnx.integrations.lancedb import StonnxReranker

        function = get_registry().get("stonnx").create(name=str(toys["dense"]))

        class Passage(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path).create_table("passages", schema=Passage)
        table.add([{"text": text} for text in TEXTS])
        vectors = np.stack(table.to_arrow()["vector"].to_pylist())
        np.testing.assert_allclose(vectors, dense.encode_document(TEXTS), **SAME)
        query = dense.encode_query(QUERY)
        nearest = int(np.argmin(((dense.encode_document(TEXTS) - query) ** 2).sum(1)))
        assert table.search(QUERY).limit(1).to_list()[0]["text"] == TEXTS[nearest]
        rows = table.search(QUERY).limit(4).rerank(StonnxReranker(toys["rerank"]), query_string=QUERY).to_list()
        assert [(TEXTS.index(row["text"]), row["_relevance_score"]) for row in rows] == approx(order)
        with pytest.raises(ValueError, match="no column 'content'"):
            StonnxReranker(toys["rerank"], column="content").rerank_vector(QUERY, table.to_arrow())


class TestQdrant:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("qdrant_client")

    def test_dense_and_sparse(self, dense: stonnx.SentenceTransformer, sparse: stonnx.SparseEncoder) -> None:
        from qdrant_client import QdrantClient
        from qdrant_client.models import PointStruct, SparseVectorParams

        from stonnx.integrations.qdrant import dense_vectors, sparse_vectors, vector_params

        documents, weights = dense.encode_document(TEXTS), sparse.encode_document(TEXTS)
        client = QdrantClient(":memory:")
        client.create_collection(
            "texts",
            vectors_config={"dense": vector_params(dense)},
            sparse_vectors_config={"sparse": SparseVectorParams()},
        )
        rows = zip(dense_vectors(documents), sparse_vectors(weights), strict=True)
        client.upsert(
            "texts",
            [PointStruct(id=index, vector={"dense": one, "sparse": two}) for index, (one, two) in enumerate(rows)],
        )
        query = dense.encode_query(QUERY)
        scores = stonnx.util.cos_sim(query, documents)[0]
        found = client.query_points("texts", query=query.tolist(), using="dense", limit=1).points[0]
        assert found.id == int(np.argmax(scores))
        np.testing.assert_allclose(found.score, scores.max(), atol=1e-6)
        sparse_query = sparse.encode_query([QUERY])
        products = stonnx.util.dot_score(sparse_query, weights)
        products = np.asarray(products.todense() if hasattr(products, "todense") else products)[0]
        point = client.query_points("texts", query=sparse_vectors(sparse_query)[0], using="sparse", limit=1).points[0]
        assert point.id == int(np.argmax(products))
        np.testing.assert_allclose(point.score, products.max(), rtol=1e-6)

    def test_wrong_arrays(self) -> None:
        from stonnx.integrations.qdrant import dense_vectors, sparse_vectors

        with pytest.raises(stonnx.InvalidArgumentError, match=r"got shape \[3\]"):
            dense_vectors(np.zeros(3))
        with pytest.raises(stonnx.InvalidArgumentError, match="scipy CSR"):
            sparse_vectors(np.zeros((1, 3)))
