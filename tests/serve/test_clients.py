"""Clients of other projects, unmodified: each gets the vectors of ``encode`` or the scores of ``rank``.

``make test-clients`` makes an environment that has all of them; elsewhere those that are missing are skipped.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import serve
from toy_bundles import pair_graph, sparse_graph, toy_table, write_bundle

from stonnx import CrossEncoder, SentenceTransformer, SparseEncoder

pytestmark = [
    pytest.mark.slow,
    # What these libraries warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]
TEXTS = ["The tides follow the moon.", "Bread rises because of yeast.", "", "naïve 漢字 🌊"]
QUERY, DOCUMENTS = "the city", ["bread rises", "the river of the city", "what is the sun?"]
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def bundles(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("served")
    sparse = write_bundle(
        directory / "sparse", {"default": sparse_graph(toy_table(64, 5))}, task="sparse", embedding_dimension=64
    )
    graph = pair_graph(toy_table(1, 7), np.ones(1, np.float32), "Sigmoid")
    pairs = write_bundle(directory / "pairs", {"default": graph}, task="rerank", num_labels=1, activation="sigmoid")
    return {"minilm": minilm_bundle, "sparse": sparse, "pairs": pairs}


@pytest.fixture(scope="module")
def address(bundles: dict[str, Path]) -> Iterator[str]:
    named = [f"{name}={bundle}" for name, bundle in bundles.items()]
    with serve(*named, "--api-key", KEY) as address:
        yield address


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Path]) -> np.ndarray:
    vectors: np.ndarray = SentenceTransformer(bundles["minilm"]).encode(TEXTS)
    return vectors


@pytest.fixture(scope="module")
def ranks(bundles: dict[str, Path]) -> list[tuple[int, float]]:
    """Documents by score, as ``rank`` gives them."""
    found = CrossEncoder(bundles["pairs"]).rank(QUERY, DOCUMENTS)
    return [(int(hit["corpus_id"]), float(hit["score"])) for hit in found]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a client leaves open is complained of in its own test, where that is ignored, and not at the end."""
    yield
    gc.collect()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE, which other tests want, huggingface_hub asks no address at all, not even this one."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def check(vectors: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=0, atol=1e-6)


def check_ranks(found: list[tuple[int, float]], ranks: list[tuple[int, float]]) -> None:
    assert [index for index, _ in found] == [index for index, _ in ranks]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in ranks], rtol=0, atol=1e-6)


def test_openai(address: str, expected: np.ndarray) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
    # Pain 12: the SDK asks for base64 unless told otherwise.
    check([item.embedding for item in client.embeddings.create(model="minilm", input=TEXTS).data], expected)
    floats = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    check([item.embedding for item in floats.data], expected)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > len(TEXTS)
    (one,) = client.embeddings.create(model="minilm", input=TEXTS[0]).data
    check(one.embedding, expected[0])
    cut = client.embeddings.create(model="minilm", input=TEXTS, dimensions=64)
    short = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
    check([item.embedding for item in cut.data], short)
    assert {"minilm", "sparse", "pairs"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("minilm").id == "minilm"


def test_openai_async(address: str, expected: np.ndarray) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
            return list(
                await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in TEXTS * 8))
            )

    for reply, row in zip(asyncio.run(ask()), np.tile(expected, (8, 1)), strict=True):
        check(reply.data[0].embedding, row)


def test_openai_is_told_its_mistakes_as_its_exceptions(address: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError, match="minilm"):
        client.embeddings.create(model="unknown", input=TEXTS)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        client.embeddings.create(model="minilm", input=[[1, 2, 3]])
    with pytest.raises(openai.BadRequestError, match="384"):
        client.embeddings.create(model="minilm", input=TEXTS, dimensions=4096)
    with pytest.raises(openai.BadRequestError, match="scores pairs"):
        client.embeddings.create(model="pairs", input=TEXTS)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).embeddings.create(
            model="minilm", input=TEXTS
        )


def test_cohere_v2(address: str, expected: np.ndarray, ranks: list[tuple[int, float]]) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key=KEY, base_url=address)
    found = client.rerank(model="pairs", query=QUERY, documents=DOCUMENTS).results
    check_ranks([(hit.index, hit.relevance_score) for hit in found], ranks)
    best = client.rerank(model="pairs", query=QUERY, documents=DOCUMENTS, top_n=1).results
    check_ranks([(hit.index, hit.relevance_score) for hit in best], ranks[:1])
    reply = client.embed(model="minilm", texts=TEXTS, input_type="search_document", embedding_types=["float"])
    check(reply.embeddings.float_, expected)


def test_cohere_v1(address: str, expected: np.ndarray, ranks: list[tuple[int, float]]) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.Client(api_key=KEY, base_url=address)
    found = client.rerank(model="pairs", query=QUERY, documents=DOCUMENTS, return_documents=True).results
    check_ranks([(hit.index, hit.relevance_score) for hit in found], ranks)
    assert [hit.document.text for hit in found] == [DOCUMENTS[index] for index, _ in ranks]
    check(client.embed(model="minilm", texts=TEXTS, input_type="search_document").embeddings, expected)


@pytest.mark.usefixtures("online")
def test_huggingface_hub(address: str, expected: np.ndarray) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=address, token=KEY)
    check(client.feature_extraction(TEXTS), expected)
    check(client.feature_extraction(TEXTS[0], normalize=True), expected[:1])
    similar = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    check(similar, expected[1:] @ expected[0])


def test_langchain_openai(address: str, expected: np.ndarray) -> None:
    langchain = pytest.importorskip("langchain_openai")
    # Otherwise it sends ids of OpenAI's tokenizer.
    embeddings = langchain.OpenAIEmbeddings(
        model="minilm", base_url=f"{address}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    check(embeddings.embed_documents(TEXTS), expected)
    check(embeddings.embed_query(TEXTS[0]), expected[0])
    check(asyncio.run(embeddings.aembed_documents(TEXTS)), expected)


@pytest.mark.usefixtures("online")
def test_langchain_huggingface(address: str, expected: np.ndarray) -> None:
    langchain = pytest.importorskip("langchain_huggingface")
    hub = pytest.importorskip("huggingface_hub")
    embeddings = langchain.HuggingFaceEndpointEmbeddings(model="unused/unused", huggingfacehub_api_token=KEY)
    # The class refuses an address as model; its client takes one.
    embeddings.client = hub.InferenceClient(model=address, token=KEY)
    check(embeddings.embed_documents(TEXTS), expected)
    check(embeddings.embed_query(TEXTS[0]), expected[0])


def test_langchain_cohere(address: str, expected: np.ndarray, ranks: list[tuple[int, float]]) -> None:
    langchain = pytest.importorskip("langchain_cohere")
    documents = pytest.importorskip("langchain_core.documents")
    embeddings = langchain.CohereEmbeddings(model="minilm", cohere_api_key=KEY, base_url=address)
    check(embeddings.embed_documents(TEXTS), expected)
    check(embeddings.embed_query(TEXTS[0]), expected[0])
    reranker = langchain.CohereRerank(model="pairs", cohere_api_key=KEY, base_url=address)
    found = reranker.compress_documents([documents.Document(page_content=text) for text in DOCUMENTS], query=QUERY)
    check_ranks([(DOCUMENTS.index(hit.page_content), hit.metadata["relevance_score"]) for hit in found], ranks)


def test_llama_index_openai_like(address: str, expected: np.ndarray) -> None:
    llama = pytest.importorskip("llama_index.embeddings.openai_like")
    model = llama.OpenAILikeEmbedding(model_name="minilm", api_base=f"{address}/v1", api_key=KEY)
    check(model.get_text_embedding_batch(TEXTS), expected)
    check(model.get_query_embedding(TEXTS[0]), expected[0])
    check(asyncio.run(model.aget_text_embedding(TEXTS[1])), expected[1])


def test_llama_index_tei(address: str, expected: np.ndarray, ranks: list[tuple[int, float]]) -> None:
    tei = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    reranking = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    schema = pytest.importorskip("llama_index.core.schema")
    # It puts Bearer in front of the key, and the reranker does not.
    model = tei.TextEmbeddingsInference(
        model_name="minilm", base_url=address, auth_token=KEY, text_instruction="", query_instruction=""
    )
    check(model.get_query_embedding(TEXTS[1]), expected[1])
    check(model.get_text_embedding_batch([TEXTS[0], TEXTS[1], TEXTS[3]]), expected[[0, 1, 3]])
    reranker = reranking.TextEmbeddingInference(base_url=address, auth_token=KEY, top_n=3)
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in DOCUMENTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    check_ranks([(DOCUMENTS.index(hit.node.text), hit.score) for hit in found], ranks)


@pytest.mark.usefixtures("online")
def test_haystack(address: str, bundles: dict[str, Path], expected: np.ndarray, ranks: list[tuple[int, float]]) -> None:
    haystack = pytest.importorskip("haystack")
    embedders = pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
    rankers = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
    secret = haystack.utils.Secret.from_token(KEY)
    where: dict[str, Any] = {"api_type": "text_embeddings_inference", "api_params": {"url": address}, "token": secret}
    text = embedders.HuggingFaceAPITextEmbedder(**where)
    check(text.run(text=TEXTS[0])["embedding"], expected[0])
    documents = [haystack.Document(content=content) for content in TEXTS]
    embedded = embedders.HuggingFaceAPIDocumentEmbedder(**where).run(documents=documents)["documents"]
    check([document.embedding for document in embedded], expected)
    ranker = rankers.HuggingFaceTEIRanker(url=address, token=secret, top_k=3)
    found = ranker.run(query=QUERY, documents=[haystack.Document(content=content) for content in DOCUMENTS])
    check_ranks([(DOCUMENTS.index(hit.content), hit.score) for hit in found["documents"]], ranks)
    sparse = embedders.HuggingFaceTEISparseTextEmbedder(api_base_url=address, token=secret)
    row = sparse.run(text=DOCUMENTS[1])["sparse_embedding"]
    dense = np.zeros(64, np.float32)
    dense[row.indices] = row.values
    expected_row = SparseEncoder(bundles["sparse"]).encode([DOCUMENTS[1]])
    check(dense, np.asarray(expected_row.todense())[0])


def test_tritonclient(address: str, bundles: dict[str, Path], expected: np.ndarray) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(address.removeprefix("http://"))
    headers = {"authorization": f"Bearer {KEY}"}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("minilm", headers=headers)
    metadata = client.get_model_metadata("minilm", headers=headers)
    (text,), (output,) = metadata["inputs"], metadata["outputs"]
    data = np.array([t.encode() for t in TEXTS], np.object_).reshape(-1, 1)
    given = http.InferInput(text["name"], list(data.shape), text["datatype"])
    # Binary data is an extension of Triton's; its client sends JSON when told so.
    given.set_data_from_numpy(data, binary_data=False)
    wanted = http.InferRequestedOutput(output["name"], binary_data=False)
    reply = client.infer("minilm", [given], outputs=[wanted], headers=headers)
    check(reply.as_numpy(output["name"]), expected)
