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
from hosts import QUERY, SAME, TEXTS, approx, same_sparse

import stonnx


def test_the_prompts_matter(dense: stonnx.SentenceTransformer) -> None:
    """Otherwise an adapter that forgets them would pass."""
    assert not np.allclose(dense.encode_query(QUERY), dense.encode_document(QUERY))


class TestLazyModel:
    def test_it_loads_once_and_survives_copies(self, toys: dict[str, Path]) -> None:
        from stonnx.integrations._models import LazyModel

        lazy = LazyModel(stonnx.SentenceTransformer, toys["dense"], {"threads": 1})
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

    def test_embeddings(self, toys: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations.langchain import StonnxEmbeddings

        embeddings = StonnxEmbeddings(toys["dense"], encode_kwargs={"normalize_embeddings": True}, threads=1)
        documents, query = embeddings.embed_documents(TEXTS), embeddings.embed_query(QUERY)
        np.testing.assert_allclose(documents, dense.encode_document(TEXTS, normalize_embeddings=True), **SAME)
        np.testing.assert_allclose(query, dense.encode_query(QUERY, normalize_embeddings=True), **SAME)
        assert embeddings.embed_documents([]) == []
        assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
        assert asyncio.run(embeddings.aembed_query(QUERY)) == query

    def test_a_vector_store(self, toys: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore

        from stonnx.integrations.langchain import StonnxEmbeddings

        store = InMemoryVectorStore.from_texts(TEXTS, StonnxEmbeddings(toys["dense"]))
        (found, _), *_ = store.similarity_search_with_score(QUERY, k=1)
        scores = stonnx.util.cos_sim(dense.encode_query(QUERY), dense.encode_document(TEXTS))
        assert found.page_content == TEXTS[int(np.argmax(scores))]

    def test_reranker(self, toys: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from langchain_core.documents import Document

        from stonnx.integrations.langchain import StonnxRerank

        documents = [Document(text, metadata={"source": index}) for index, text in enumerate(TEXTS)]
        reranker = StonnxRerank(model=str(toys["rerank"]), top_n=2)
        kept = reranker.compress_documents(documents, QUERY)
        assert [(d.metadata["source"], d.metadata["relevance_score"]) for d in kept] == approx(order[:2])
        assert all("relevance_score" not in document.metadata for document in documents)
        assert asyncio.run(reranker.acompress_documents(documents, QUERY)) == kept
        assert reranker.compress_documents([], QUERY) == []

    def test_the_tests_of_the_host(self, toys: dict[str, Path], tmp_path: Path) -> None:
        """langchain-tests is a set of classes that pytest collects: it runs in a pytest of its own."""
        pytest.importorskip("langchain_tests")
        pytest.importorskip("pytest_asyncio")
        import subprocess
        import sys

        (tmp_path / "test_host.py").write_text(
            "from langchain_tests.integration_tests import EmbeddingsIntegrationTests\n"
            "from langchain_tests.unit_tests import EmbeddingsUnitTests\n"
            "from stonnx.integrations.langchain import StonnxEmbeddings\n"
            f"PARAMETERS = {{'model': {str(toys['dense'])!r}}}\n"
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

    def test_dense(self, toys: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from stonnx.integrations.llama_index import StonnxEmbedding

        embedding = StonnxEmbedding(toys["dense"], embed_batch_size=3)
        np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), dense.encode_document(TEXTS), **SAME)
        np.testing.assert_allclose(embedding.get_query_embedding(QUERY), dense.encode_query(QUERY), **SAME)
        found = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
        np.testing.assert_allclose(found, dense.encode_document(TEXTS), **SAME)
        assert embedding.to_dict()["model_name"] == str(toys["dense"])

    def test_sparse(self, toys: dict[str, Path], sparse: stonnx.SparseEncoder) -> None:
        from stonnx.integrations.llama_index import StonnxSparseEmbedding

        embedding = StonnxSparseEmbedding(toys["sparse"])
        expected = sparse.encode_document(TEXTS)
        for row, found in enumerate(embedding.get_text_embedding_batch(TEXTS)):
            same_sparse(expected, row, list(found), list(found.values()))
        found = embedding.get_query_embedding(QUERY)
        same_sparse(sparse.encode_query([QUERY]), 0, list(found), list(found.values()))

    def test_reranker(self, toys: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from llama_index.core.schema import NodeWithScore, TextNode

        from stonnx.integrations.llama_index import StonnxRerank

        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(TEXTS)]
        reranker = StonnxRerank(toys["rerank"], top_n=3)
        kept = reranker.postprocess_nodes(nodes, query_str=QUERY)
        assert [(int(node.node.node_id), node.score) for node in kept] == approx(order[:3])
        assert reranker.postprocess_nodes([], query_str=QUERY) == []
        with pytest.raises(ValueError, match="needs the query"):
            reranker.postprocess_nodes(nodes)


class TestHaystack:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("haystack")

    def test_dense_in_a_pipeline(self, toys: dict[str, Path], dense: stonnx.SentenceTransformer) -> None:
        from haystack import Document, Pipeline

        from stonnx.integrations.haystack import StonnxDocumentEmbedder, StonnxTextEmbedder

        pipeline = Pipeline()
        pipeline.add_component("text", StonnxTextEmbedder(str(toys["dense"])))
        pipeline.add_component("documents", StonnxDocumentEmbedder(str(toys["dense"]), ["title"]))
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

    def test_sparse(self, toys: dict[str, Path], sparse: stonnx.SparseEncoder) -> None:
        from haystack import Document

        from stonnx.integrations.haystack import StonnxSparseDocumentEmbedder, StonnxSparseTextEmbedder

        query = StonnxSparseTextEmbedder(sparse).run(QUERY)["sparse_embedding"]
        same_sparse(sparse.encode_query([QUERY]), 0, query.indices, query.values)
        embedder = StonnxSparseDocumentEmbedder(str(toys["sparse"]))
        embedder.warm_up()
        for row, document in enumerate(embedder.run([Document(content=text) for text in TEXTS])["documents"]):
            found = document.sparse_embedding
            same_sparse(sparse.encode_document(TEXTS), row, found.indices, found.values)

    def test_ranker(self, toys: dict[str, Path], order: list[tuple[int, float]]) -> None:
        from haystack import Document

        from stonnx.integrations.haystack import StonnxRanker

        documents = [Document(content=text, meta={"index": index}) for index, text in enumerate(TEXTS)]
        ranker = StonnxRanker(str(toys["rerank"]), top_k=3)
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


class TestMTEB:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("mteb")

    def test_protocols(self, toys: dict[str, Path]) -> None:
        from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol

        from stonnx.integrations.mteb import StonnxCrossEncoder, StonnxEncoder

        encoder = StonnxEncoder(toys["dense"], device="cpu")
        assert isinstance(encoder, EncoderProtocol)
        assert encoder.mteb_model_meta.name == "stonnx/dense"
        assert isinstance(StonnxCrossEncoder(toys["rerank"]), CrossEncoderProtocol)

    def test_a_small_task(self, toys: dict[str, Path], dense: stonnx.SentenceTransformer, tmp_path: Path) -> None:
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

        result = mteb.evaluate(StonnxEncoder(toys["dense"]), Made(), cache=None)
        first, second = (dense.encode([pair[side] for pair in pairs]) for side in (0, 1))
        expected = spearmanr(stonnx.util.pairwise_cos_sim(first, second), scores).statistic
        np.testing.assert_allclose(result[0].get_score(), expected, atol=1e-5)
