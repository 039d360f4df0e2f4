"""Every adapter gives the vectors and scores of the model that it wraps, and passes its host's own tests.

A host that is not installed skips its tests; `make test-integrations` makes an environment with all of them.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

import stonnx

TEXTS = ["bread rises", "the river flows", "the sun shines", "what is the city"]
QUERY = "what rises"
# Hosts form their own batches: what stonnx promises for a text in any batch. Lists and Arrow keep every float32.
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("integrations")
    prompts = {"query": "question: ", "document": "document: "}
    dense = {"task": "embedding", "embedding_dimension": 8, "prompts": prompts, "similarity_fn_name": "cosine"}
    sparse = {"task": "sparse", "embedding_dimension": 40, "similarity_fn_name": "dot"}
    rerank = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    pairs = pair_graph(toy_table(1, 5), np.float32([0.5]), "Sigmoid")
    return {
        "dense": write_bundle(folder / "dense", {"default": dense_graph(toy_table(8, 5))}, **dense),
        "sparse": write_bundle(folder / "sparse", {"default": sparse_graph(toy_table(40, 6))}, **sparse),
        "rerank": write_bundle(folder / "rerank", {"default": pairs}, **rerank),
    }


@pytest.fixture(scope="module")
def dense(bundles: dict[str, Path]) -> stonnx.SentenceTransformer:
    return stonnx.SentenceTransformer(bundles["dense"])


@pytest.fixture(scope="module")
def sparse(bundles: dict[str, Path]) -> stonnx.SparseEncoder:
    return stonnx.SparseEncoder(bundles["sparse"])


@pytest.fixture(scope="module")
def reranker(bundles: dict[str, Path]) -> stonnx.CrossEncoder:
    return stonnx.CrossEncoder(bundles["rerank"])


@pytest.fixture(scope="module")
def order(reranker: stonnx.CrossEncoder) -> list[tuple[int, float]]:
    return [(row["corpus_id"], float(row["score"])) for row in reranker.rank(QUERY, TEXTS)]


def test_the_prompts_matter(dense: stonnx.SentenceTransformer) -> None:
    """Otherwise an adapter that forgets them would pass."""
    assert not np.allclose(dense.encode_query(QUERY), dense.encode_document(QUERY))


def approx(order: list[tuple[int, float]]) -> list[Any]:
    return [(index, pytest.approx(score, abs=1e-6)) for index, score in order]


class TestLazyModel:
    def test_it_loads_once_and_survives_copies(self, bundles: dict[str, Path]) -> None:
        from stonnx.integrations._models import LazyModel

        lazy = LazyModel(stonnx.SentenceTransformer, bundles["dense"], {"threads": 1})
        assert lazy._loaded is None
        assert lazy() is lazy() is copy.deepcopy(lazy)()
        assert lazy().info.threads == 1
        again = pickle.loads(pickle.dumps(lazy))
        assert again._loaded is None
        np.testing.assert_array_equal(again().encode(TEXTS), lazy().encode(TEXTS))

    def test_a_loaded_model(self, dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations._models import LazyModel

        assert LazyModel(stonnx.SentenceTransformer, dense)() is dense
        with pytest.raises(stonnx.InvalidArgumentError, match=r"takes no options, got threads\. Load it with them"):
            LazyModel(stonnx.SentenceTransformer, dense, {"threads": 1})

    @pytest.mark.parametrize("wrong", [None, 3, ["a"]])
    def test_what_is_not_a_model(self, wrong: Any) -> None:
        from stonnx.integrations._models import LazyModel

        with pytest.raises(stonnx.InvalidArgumentError, match=r"directory of a bundle, a Hub id or a stonnx\."):
            LazyModel(stonnx.SentenceTransformer, wrong)

    def test_a_model_of_another_class(self, reranker: stonnx.CrossEncoder) -> None:
        from stonnx.integrations._models import LazyModel

        with pytest.raises(stonnx.InvalidArgumentError, match="got CrossEncoder"):
            LazyModel(stonnx.SentenceTransformer, reranker)


class TestLangChain:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("langchain_core")

    def test_embeddings(self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations.langchain import StonnxEmbeddings

        embeddings = StonnxEmbeddings(bundles["dense"], encode_kwargs={"normalize_embeddings": True}, threads=1)
        documents, query = embeddings.embed_documents(TEXTS), embeddings.embed_query(QUERY)
        np.testing.assert_allclose(documents, dense.encode_document(TEXTS, normalize_embeddings=True), **SAME)
        np.testing.assert_allclose(query, dense.encode_query(QUERY, normalize_embeddings=True), **SAME)
        assert embeddings.embed_documents([]) == []
        assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
        assert asyncio.run(embeddings.aembed_query(QUERY)) == query

    def test_a_vector_store(self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore

        from stonnx.integrations.langchain import StonnxEmbeddings

        store = InMemoryVectorStore.from_texts(TEXTS, StonnxEmbeddings(bundles["dense"]))
        (found, _), *_ = store.similarity_search_with_score(QUERY, k=1)
        scores = stonnx.util.cos_sim(dense.encode_query(QUERY), dense.encode_document(TEXTS))
        assert found.page_content == TEXTS[int(np.argmax(scores))]

    def test_reranker(self, bundles: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from langchain_core.documents import Document

        from stonnx.integrations.langchain import StonnxRerank

        documents = [Document(text, metadata={"source": index}) for index, text in enumerate(TEXTS)]
        reranker = StonnxRerank(model=str(bundles["rerank"]), top_n=2)
        kept = reranker.compress_documents(documents, QUERY)
        assert [(d.metadata["source"], d.metadata["relevance_score"]) for d in kept] == approx(order[:2])
        assert all("relevance_score" not in document.metadata for document in documents)
        assert asyncio.run(reranker.acompress_documents(documents, QUERY)) == kept
        assert reranker.compress_documents([], QUERY) == []

    def test_the_tests_of_the_host(self, bundles: dict[str, Path], tmp_path: Path) -> None:
        """langchain-tests is a set of classes that pytest collects: it runs in a pytest of its own."""
        pytest.importorskip("langchain_tests")
        pytest.importorskip("pytest_asyncio")
        import subprocess
        import sys

        (tmp_path / "test_host.py").write_text(
            "from langchain_tests.integration_tests import EmbeddingsIntegrationTests\n"
            "from langchain_tests.unit_tests import EmbeddingsUnitTests\n"
            "from stonnx.integrations.langchain import StonnxEmbeddings\n"
            f"PARAMETERS = {{'model': {str(bundles['dense'])!r}}}\n"
            "class TestUnit(EmbeddingsUnitTests):\n"
            "    embeddings_class = property(lambda self: StonnxEmbeddings)\n"
            "    embedding_model_params = property(lambda self: PARAMETERS)\n"
            "class TestIntegration(EmbeddingsIntegrationTests):\n"
            "    embeddings_class = property(lambda self: StonnxEmbeddings)\n"
            "    embedding_model_params = property(lambda self: PARAMETERS)\n"
        )
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--asyncio-mode=auto",
            "-p",
            "no:cacheprovider",
            "test_host.py",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout


class TestLlamaIndex:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("llama_index.core")

    def test_dense(self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations.llama_index import StonnxEmbedding

        embedding = StonnxEmbedding(bundles["dense"], embed_batch_size=3)
        np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), dense.encode_document(TEXTS), **SAME)
        np.testing.assert_allclose(embedding.get_query_embedding(QUERY), dense.encode_query(QUERY), **SAME)
        found = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
        np.testing.assert_allclose(found, dense.encode_document(TEXTS), **SAME)
        assert embedding.to_dict()["model_name"] == str(bundles["dense"])

    def test_sparse(self, bundles: dict[str, Path], sparse: stonnx.SparseEncoder) -> None:
        from stonnx.integrations.llama_index import StonnxSparseEmbedding

        embedding = StonnxSparseEmbedding(bundles["sparse"])
        expected = sparse.encode_document(TEXTS)
        for row, found in enumerate(embedding.get_text_embedding_batch(TEXTS)):
            _same_sparse(expected, row, list(found), list(found.values()))
        found = embedding.get_query_embedding(QUERY)
        _same_sparse(sparse.encode_query([QUERY]), 0, list(found), list(found.values()))

    def test_reranker(self, bundles: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from llama_index.core.schema import NodeWithScore, TextNode

        from stonnx.integrations.llama_index import StonnxRerank

        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(TEXTS)]
        reranker = StonnxRerank(bundles["rerank"], top_n=3)
        kept = reranker.postprocess_nodes(nodes, query_str=QUERY)
        assert [(int(node.node.node_id), node.score) for node in kept] == approx(order[:3])
        assert reranker.postprocess_nodes([], query_str=QUERY) == []
        with pytest.raises(ValueError, match="needs the query"):
            reranker.postprocess_nodes(nodes)


class TestHaystack:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("haystack")

    def test_dense_in_a_pipeline(self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from haystack import Document, Pipeline

        from stonnx.integrations.haystack import StonnxDocumentEmbedder, StonnxTextEmbedder

        pipeline = Pipeline()
        pipeline.add_component("text", StonnxTextEmbedder(str(bundles["dense"])))
        pipeline.add_component("documents", StonnxDocumentEmbedder(str(bundles["dense"]), ["title"]))
        pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["stonnx.integrations.haystack"])
        documents = [
            Document(content=text, meta={"title": "city"} if index else {}) for index, text in enumerate(TEXTS)
        ]
        found = pipeline.run({"text": {"text": QUERY}, "documents": {"documents": documents}})
        np.testing.assert_allclose(found["text"]["embedding"], dense.encode_query(QUERY), **SAME)
        expected = dense.encode_document([TEXTS[0], *(f"city\n{text}" for text in TEXTS[1:])])
        np.testing.assert_allclose([d.embedding for d in found["documents"]["documents"]], expected, **SAME)
        assert documents[0].embedding is None
        assert StonnxDocumentEmbedder(dense).run([])["documents"] == []

    def test_sparse(self, bundles: dict[str, Path], sparse: stonnx.SparseEncoder) -> None:
        from haystack import Document

        from stonnx.integrations.haystack import StonnxSparseDocumentEmbedder, StonnxSparseTextEmbedder

        query = StonnxSparseTextEmbedder(sparse).run(QUERY)["sparse_embedding"]
        _same_sparse(sparse.encode_query([QUERY]), 0, query.indices, query.values)
        embedder = StonnxSparseDocumentEmbedder(str(bundles["sparse"]))
        embedder.warm_up()
        for row, document in enumerate(embedder.run([Document(content=text) for text in TEXTS])["documents"]):
            found = document.sparse_embedding
            _same_sparse(sparse.encode_document(TEXTS), row, found.indices, found.values)

    def test_ranker(self, bundles: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from haystack import Document

        from stonnx.integrations.haystack import StonnxRanker

        documents = [Document(content=text, meta={"index": index}) for index, text in enumerate(TEXTS)]
        ranker = StonnxRanker(str(bundles["rerank"]), top_k=3)
        found = ranker.run(QUERY, documents)["documents"]
        assert [(document.meta["index"], document.score) for document in found] == approx(order[:3])
        assert len(ranker.run(QUERY, documents, top_k=1)["documents"]) == 1
        assert ranker.run(QUERY, [])["documents"] == []

    def test_texts_and_documents_are_not_confused(self, dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations.haystack import StonnxDocumentEmbedder, StonnxTextEmbedder

        with pytest.raises(stonnx.InvalidArgumentError, match="For a text, use StonnxTextEmbedder"):
            StonnxDocumentEmbedder(dense).run("a text")
        with pytest.raises(stonnx.InvalidArgumentError, match="For documents, use StonnxDocumentEmbedder"):
            StonnxTextEmbedder(dense).run(["a text"])


class TestChroma:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("chromadb")

    def test_a_collection_finds_its_function_again(
        self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer, tmp_path: Path
    ) -> None:
        import chromadb

        from stonnx.integrations.chroma import StonnxEmbeddingFunction

        settings = chromadb.Settings(anonymized_telemetry=False)
        function = StonnxEmbeddingFunction(bundles["dense"], threads=1)
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

    def test_another_model_for_the_same_vectors(self, bundles: dict[str, Path]) -> None:
        from stonnx.integrations.chroma import StonnxEmbeddingFunction

        function = StonnxEmbeddingFunction(bundles["dense"])
        old = function.get_config()
        assert StonnxEmbeddingFunction.build_from_config(old).get_config() == old
        with pytest.raises(ValueError, match="Make a new collection"):
            function.validate_config_update(old, old | {"model": "other"})


class TestLanceDB:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("lancedb")

    def test_a_table(
        self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer, order: list[Any], tmp_path: Path
    ) -> None:
        import lancedb
        from lancedb.embeddings import get_registry
        from lancedb.pydantic import LanceModel, Vector

        from stonnx.integrations.lancedb import StonnxReranker

        function = get_registry().get("stonnx").create(name=str(bundles["dense"]))

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
        rows = table.search(QUERY).limit(4).rerank(StonnxReranker(bundles["rerank"]), query_string=QUERY).to_list()
        assert [(TEXTS.index(row["text"]), row["_relevance_score"]) for row in rows] == approx(order)
        with pytest.raises(ValueError, match="no column 'content'"):
            StonnxReranker(bundles["rerank"], column="content").rerank_vector(QUERY, table.to_arrow())


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


class TestMTEB:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("mteb")

    def test_protocols(self, bundles: dict[str, Path]) -> None:
        from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol

        from stonnx.integrations.mteb import StonnxCrossEncoder, StonnxEncoder

        encoder = StonnxEncoder(bundles["dense"], device="cpu")
        assert isinstance(encoder, EncoderProtocol)
        assert encoder.mteb_model_meta.name == "stonnx/dense"
        assert isinstance(StonnxCrossEncoder(bundles["rerank"]), CrossEncoderProtocol)

    def test_a_small_task(self, bundles: dict[str, Path], dense: stonnx.SentenceTransformer, tmp_path: Path) -> None:
        """A task of made-up pairs: Spearman's correlation is that of the vectors, computed here."""
        import mteb
        from datasets import Dataset, DatasetDict
        from mteb.abstasks.sts import AbsTaskSTS
        from scipy.stats import spearmanr

        from stonnx.integrations.mteb import StonnxEncoder

        pairs = [(one, two) for index, one in enumerate(TEXTS) for two in TEXTS[index + 1 :]]  # no ties
        scores = [float(index % 6) for index in range(len(pairs))]

        class Made(AbsTaskSTS):
            metadata = mteb.get_task("STSBenchmark").metadata.model_copy(update={"name": "Made", "superseded_by": None})

            def load_data(self, **_: Any) -> None:
                columns = {"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs], "score": scores}
                self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
                self.data_loaded = True

        result = mteb.evaluate(StonnxEncoder(bundles["dense"]), Made(), cache=None)
        first, second = (dense.encode([pair[side] for pair in pairs]) for side in (0, 1))
        expected = spearmanr(stonnx.util.pairwise_cos_sim(first, second), scores).statistic
        np.testing.assert_allclose(result[0].get_score(), expected, atol=1e-5)


def _same_sparse(matrix: Any, row: int, indices: Any, values: Any) -> None:
    start, end = matrix.indptr[row : row + 2]
    np.testing.assert_array_equal(indices, matrix.indices[start:end])
    np.testing.assert_allclose(values, matrix.data[start:end], **SAME)
