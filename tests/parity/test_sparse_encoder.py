"""SparseEncoder against sentence-transformers: the same toy network on both sides, so results are equal to the bit."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Router
from toy_bundles import VOCABULARY, sparse_graph, toy_table, wide_sparse_graph, write_bundle
from toy_networks import sparse_network

import stonnx
from stonnx._bundle.manifest import ModuleSpec
from stonnx._results.sparse import SparseRows

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:Sparse CSR")

WIDTH = len(VOCABULARY)
DOCUMENT_TABLE, QUERY_TABLE = toy_table(WIDTH, 1), toy_table(WIDTH, 2)
PROMPTS = {"query": "question : ", "passage": "document : ", "shout": "zzz "}
TEXTS = [
    "the river flows",
    "",
    "bread rises and the sun shines where the river flows and the city is of bread and " * 3,
    "Straße 42 ?",
    "a",
    "what is the city of bread ?",
]
FACTS: dict[str, Any] = {"task": "sparse", "embedding_dimension": WIDTH}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Path:
    return write_bundle(directory / "plain", {"default": sparse_graph(DOCUMENT_TABLE)}, prompts=PROMPTS, **FACTS)


@pytest.fixture(scope="module")
def routed_bundle(directory: Path) -> Path:
    graphs = {"query": sparse_graph(QUERY_TABLE), "document": sparse_graph(DOCUMENT_TABLE)}
    return write_bundle(directory / "routed", graphs, default_route="document", **FACTS)


@pytest.fixture(scope="module")
def model(bundle: Path) -> stonnx.SparseEncoder:
    return stonnx.SparseEncoder(bundle)


@pytest.fixture(scope="module")
def original() -> Any:
    modules = [sparse_network(DOCUMENT_TABLE)]
    return sentence_transformers.SparseEncoder(modules=modules, device="cpu", prompts=PROMPTS)


@pytest.fixture(scope="module")
def vectors(model: stonnx.SparseEncoder) -> Any:
    return model.encode(TEXTS)


def _assert_equal(expected: torch.Tensor, result: Any) -> None:
    """A tensor of the original and a result of ours: the same shape, and the same numbers to the bit."""
    assert result.shape == tuple(expected.shape)
    assert result.dtype == np.float32
    dense = expected.to_dense().numpy()
    np.testing.assert_array_equal(dense, result if isinstance(result, np.ndarray) else result.toarray())


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("inputs", [TEXTS, tuple(TEXTS), np.array(TEXTS), TEXTS[0], TEXTS[:1], [("a b", "c")]])
def test_vectors_equal_the_original(model: stonnx.SparseEncoder, original: Any, method: str, inputs: Any) -> None:
    expected = getattr(original, method)(inputs)
    result = getattr(model, method)(inputs)
    assert isinstance(result, scipy.sparse.csr_array)
    assert result.nnz == expected.coalesce().values().numel() > 0
    _assert_equal(expected, result)
    _assert_equal(expected, getattr(model, method)(inputs, convert_to_sparse_tensor=False))


@pytest.mark.parametrize("sparse", [True, False])
def test_without_tensor_each_text_has_its_own_vector(model: stonnx.SparseEncoder, original: Any, sparse: bool) -> None:
    options = {"convert_to_tensor": False, "convert_to_sparse_tensor": sparse, "save_to_cpu": True}
    expected, rows = original.encode(TEXTS, **options), model.encode(TEXTS, **options)
    assert isinstance(rows, list)
    for wanted, row in zip(expected, rows, strict=True):
        assert isinstance(row, scipy.sparse.csr_array if sparse else np.ndarray)
        _assert_equal(wanted, row)
    _assert_equal(original.encode("a", **options), model.encode("a", **options))


def test_no_texts(model: stonnx.SparseEncoder, original: Any) -> None:
    # scipy stacks a csr_array only onto others of its width, so it has one where the original's tensor has none.
    assert model.encode([]).shape == (0, WIDTH)
    assert scipy.sparse.vstack([model.encode([]), model.encode(["a"])]).shape == (1, WIDTH)
    _assert_equal(original.encode([], convert_to_sparse_tensor=False), model.encode([], convert_to_sparse_tensor=False))
    assert model.encode([], convert_to_tensor=False) == original.encode([], convert_to_tensor=False) == []


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("encode", {"prompt_name": "shout"}),
        ("encode", {"prompt": "what is "}),
        ("encode", {"prompt": ""}),
        ("encode_query", {"prompt": "what is "}),
        ("encode_document", {"prompt_name": "passage"}),
    ],
)
def test_prompts_equal_the_original(
    model: stonnx.SparseEncoder, original: Any, method: str, options: dict[str, Any]
) -> None:
    _assert_equal(getattr(original, method)(TEXTS, **options), getattr(model, method)(TEXTS, **options))


def test_default_prompt_is_for_encode_only(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = stonnx.SparseEncoder(bundle, prompts={"query": ""}, default_prompt_name="shout")
    plain, shouted = (model.encode(TEXTS, prompt=prompt).toarray() for prompt in ("", "zzz "))
    assert (plain != shouted).any()
    np.testing.assert_array_equal(shouted, model.encode(TEXTS).toarray())
    np.testing.assert_array_equal(plain, model.encode_query(TEXTS).toarray())
    np.testing.assert_array_equal(plain, model.encode_document(TEXTS).toarray())
    model.encode_query(TEXTS, prompt="zzz ")
    assert not caplog.messages  # no complaint about a prompt name that the caller did not give


@pytest.mark.parametrize(
    ("method", "options"),
    [("encode_query", {}), ("encode_document", {}), ("encode", {}), ("encode", {"task": "query"})],
)
def test_routes_equal_the_original(routed_bundle: Path, method: str, options: dict[str, Any]) -> None:
    networks = {"query": [sparse_network(QUERY_TABLE)], "document": [sparse_network(DOCUMENT_TABLE)]}
    original = sentence_transformers.SparseEncoder(modules=[Router(networks, default_route="document")], device="cpu")
    model = stonnx.SparseEncoder(routed_bundle)
    _assert_equal(getattr(original, method)(TEXTS, **options), getattr(model, method)(TEXTS, **options))
    for encode in (original.encode, model.encode):
        with pytest.raises(ValueError, match=r"task.*'passage'"):
            encode(TEXTS, task="passage")


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_max_active_dims_equals_the_original(
    bundle: Path, model: stonnx.SparseEncoder, original: Any, limit: int
) -> None:
    expected = original.encode(TEXTS, max_active_dims=limit)
    assert (np.diff(model.encode(TEXTS, max_active_dims=limit).indptr) <= limit).all()
    _assert_equal(expected, model.encode(TEXTS, max_active_dims=limit))
    _assert_equal(expected, model.encode(TEXTS, max_active_dims=limit, convert_to_sparse_tensor=False))
    limited = stonnx.SparseEncoder(bundle, max_active_dims=limit)
    assert limited.max_active_dims == limit
    _assert_equal(expected, limited.encode(TEXTS))
    _assert_equal(original.encode(TEXTS, max_active_dims=3), limited.encode(TEXTS, max_active_dims=3))


def _strongest(values: np.ndarray, limit: int) -> np.ndarray:
    result = np.zeros_like(values)
    SparseRows.of(values).strongest(limit).write(result, np.arange(len(values)))
    return result


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_the_largest_magnitudes_stay(limit: int) -> None:
    values = np.random.default_rng(5).permutation(np.linspace(-2, 3, 80, dtype=np.float32)).reshape(4, 20)
    values[1, 3:] = 0
    values[2] = 0
    before = values.copy()
    expected = sentence_transformers.util.select_max_active_dims(torch.from_numpy(values), limit)
    np.testing.assert_array_equal(expected.numpy(), _strongest(values, limit))
    np.testing.assert_array_equal(before, values)


def test_of_equal_magnitudes_the_first_stay() -> None:
    values = np.array([[1, -2, 2, 2, -1]], dtype=np.float32)
    np.testing.assert_array_equal(_strongest(values, 2), [[0, -2, 2, 0, 0]])
    np.testing.assert_array_equal(_strongest(values, 4), [[1, -2, 2, 2, 0]])


@pytest.mark.parametrize("chosen", [[], [0], [3, 1, 1, 2], [2, 2]])
def test_rows_of_sparse_rows(chosen: list[int]) -> None:
    values = np.array([[0, 1, 2], [0, 0, 0], [3, 0, -4], [5, 6, 7]], dtype=np.float32)
    rows = np.array(chosen, dtype=np.intp)
    result = np.zeros((len(chosen), 3), dtype=np.float32)
    SparseRows.of(values)[rows].write(result, np.arange(len(chosen)))
    np.testing.assert_array_equal(result, values[rows])


def test_texts_that_occur_many_times(model: stonnx.SparseEncoder) -> None:
    texts = [TEXTS[index % len(TEXTS)] for index in range(500)]
    expected = np.tile(model.encode(TEXTS).toarray(), (84, 1))[:500]
    np.testing.assert_array_equal(model.encode(texts).toarray(), expected)
    np.testing.assert_array_equal(model.encode(texts, convert_to_sparse_tensor=False), expected)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3"])
def test_max_active_dims_must_be_a_positive_integer(bundle: Path, model: stonnx.SparseEncoder, limit: Any) -> None:
    with pytest.raises(stonnx.InvalidArgumentError, match="max_active_dims"):
        model.encode(TEXTS, max_active_dims=limit)
    with pytest.raises(ValueError, match="max_active_dims"):
        stonnx.SparseEncoder(bundle, max_active_dims=limit)


def test_an_auto_encoder_gives_no_more_than_its_k(directory: Path) -> None:
    modules = (ModuleSpec("Transformer"), ModuleSpec("SparseAutoEncoder", {"k": 4}))
    path = write_bundle(directory / "csr", {"default": sparse_graph(DOCUMENT_TABLE)}, modules=modules, **FACTS)
    model = stonnx.SparseEncoder(path)
    assert model.max_active_dims == 4
    assert model.encode(TEXTS, max_active_dims=2).nnz == 2 * len(TEXTS)
    with pytest.raises(stonnx.UnsupportedError, match="more than the 4 values"):
        model.encode(TEXTS, max_active_dims=5)
    with pytest.raises(stonnx.UnsupportedError, match="more than the 4 values"):
        stonnx.SparseEncoder(path, max_active_dims=5)


def test_many_texts_come_back_in_order(model: stonnx.SparseEncoder) -> None:
    texts = [f"{'bread ' * (index % 7)}{'abcdefghij'[index % 10]} {index}" for index in range(1500)]
    vectors = model.encode(texts, batch_size=3)
    assert vectors.has_canonical_format
    for index in (0, 1, 127, 128, 129, 1151, 1152, 1499):
        np.testing.assert_array_equal(vectors[[index]].toarray()[0], model.encode(texts[index]).toarray())
    np.testing.assert_array_equal(vectors.toarray(), model.encode(texts, convert_to_sparse_tensor=False))


# Peak resident memory holds what onnxruntime allocates too, but never falls: hence a process of its own. On Linux,
# ru_maxrss would begin with that of the process that started it.
ENCODE_MORE_AND_MORE = r"""
import json, re, resource, sys
import stonnx
from stonnx._model.model import with_limits


def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) * 1024


# As many runs at a time as there are threads, from the first text on.
model = with_limits(stonnx.SparseEncoder, tokens_before_second_session=0)(sys.argv[1], threads=8)
model.encode("river")
loaded = peak()
for count in (1000, 10000):
    # All of them different, and short: the budget of tokens would allow 128 of them in a run.
    texts = ["the sun " * (index % 2) + f"{chr(97 + index % 26)} {index}" for index in range(count)]
    # As many runs for either count: the more there are, the more of them are at their largest at the same time.
    for _ in range(10000 // count):
        vectors = model.encode(texts, max_active_dims=5)
    result = vectors.data.nbytes + vectors.indices.nbytes + vectors.indptr.nbytes
    print(json.dumps({"texts": vectors.shape[0], "result": result, "peak": peak(), "loaded": loaded}))
"""


def test_dense_vectors_are_only_where_they_are_made(
    model: stonnx.SparseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits to be taken from the threads that run is sparse."""
    threads, original = set(), SparseRows.of

    def of(batch: np.ndarray) -> SparseRows:
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return original(batch)

    monkeypatch.setattr(SparseRows, "of", of)
    for sparse in (True, False):
        model.encode([f"river {index}" for index in range(300)], convert_to_sparse_tensor=sparse)
    assert threads == {"stonnx-run"}


def test_memory_does_not_grow_with_texts_times_vocabulary(directory: Path) -> None:
    width = 30522
    graph = wide_sparse_graph(width, 3)
    path = write_bundle(directory / "wide", {"default": graph}, task="sparse", embedding_dimension=width)
    command = [sys.executable, "-c", ENCODE_MORE_AND_MORE, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(json.loads, ran.stdout.splitlines())
    assert (few["texts"], many["texts"]) == (1000, 10000)
    dense = 10000 * width * 4
    assert 0 < many["result"] < dense / 100
    # The result is there twice while it is put together from its batches; the rest is room for the allocators.
    assert many["peak"] - few["peak"] < 2 * many["result"] + 32e6 < dense / 20
    # Of each of the eight runs at a time the dense vectors, 8 MB, in memory that onnxruntime takes by doubling it, and
    # no more of them in the queue behind: 250 MB without a bound on the texts of a run, 360 MB with a queue of them.
    assert many["peak"] - many["loaded"] - 2 * many["result"] < 8 * 2 * 8e6 + 64e6


def test_a_pool_gives_the_same_vectors(model: stonnx.SparseEncoder, vectors: Any) -> None:
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        pooled = model.encode(TEXTS, pool=pool, chunk_size=2)
        dense = model.encode(TEXTS, pool=pool, chunk_size=4, max_active_dims=3, convert_to_sparse_tensor=False)
        assert model.encode([], pool=pool).shape == (0, WIDTH)
    finally:
        model.stop_multi_process_pool(pool)
    assert isinstance(pooled, scipy.sparse.csr_array)
    np.testing.assert_array_equal(vectors.toarray(), pooled.toarray())
    np.testing.assert_array_equal(model.encode(TEXTS, max_active_dims=3).toarray(), dense)


def _kinds(values: np.ndarray) -> list[Any]:
    """The same embeddings in every form that is accepted."""
    kinds: list[Any] = [values, torch.from_numpy(values), torch.from_numpy(values).to_sparse()]
    kinds.append(scipy.sparse.csr_array(values))
    return kinds if values.ndim == 1 else [*kinds, scipy.sparse.csr_matrix(values), scipy.sparse.coo_array(values)]


def _sample(rows: int | None) -> np.ndarray:
    rng = np.random.default_rng(rows or 0)
    shape = (WIDTH,) if rows is None else (rows, WIDTH)
    values = rng.permutation(np.linspace(-1, 3, int(np.prod(shape)), dtype=np.float32)).reshape(shape)
    values[rng.random(shape) < 0.8] = 0
    if rows and rows > 1:
        values[1] = 0
    return values


@pytest.mark.parametrize("rows", [None, 1, 5, 0])
def test_sparsity_equals_the_original(rows: int | None) -> None:
    values = _sample(rows)
    expected = sentence_transformers.SparseEncoder.sparsity(torch.from_numpy(values))
    for embeddings in _kinds(values):
        result = stonnx.SparseEncoder.sparsity(embeddings)
        assert result == pytest.approx(expected, rel=1e-6)  # the original averages in float32
        assert all(type(value) is float for value in result.values())


def test_sparsity_counts_stored_zeros_as_the_original() -> None:
    tensor = torch.sparse_coo_tensor([[0, 0, 1], [1, 2, 0]], [0.0, 2.0, -3.0], (3, 4))
    stored = scipy.sparse.csr_array((np.array([0.0, 2.0, -3.0]), ([0, 0, 1], [1, 2, 0])), shape=(3, 4))
    assert stonnx.SparseEncoder.sparsity(stored) == sentence_transformers.SparseEncoder.sparsity(tensor)


@pytest.mark.parametrize("rows", [None, 1, 5, 0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 1000])
def test_decode_equals_the_original(
    model: stonnx.SparseEncoder, original: Any, rows: int | None, top_k: int | None
) -> None:
    values = _sample(rows)
    expected = original.decode(torch.from_numpy(values), top_k=top_k)
    for embeddings in _kinds(values):
        assert model.decode(embeddings, top_k=top_k) == expected
    assert model.decode(model.encode(TEXTS), top_k) == original.decode(original.encode(TEXTS), top_k)


def test_decode_orders_equal_weights_and_has_no_token_beyond_the_vocabulary(model: stonnx.SparseEncoder) -> None:
    weights = np.zeros(WIDTH + 5)
    weights[[WIDTH + 4, 9, 7]] = 1.0
    assert model.decode(weights) == [(VOCABULARY[7], 1.0), (VOCABULARY[9], 1.0), (None, 1.0)]


@pytest.mark.parametrize("rows", [None, 1, 5])
def test_intersection_equals_the_original(rows: int | None) -> None:
    first, second = -_sample(None), _sample(rows)
    second[..., :20] = -np.abs(first[:20])
    expected = sentence_transformers.SparseEncoder.intersection(torch.from_numpy(first), torch.from_numpy(second))
    assert 0 < expected.coalesce().values().numel() < second.size
    for one, other in zip(_kinds(first), _kinds(second), strict=False):
        result = stonnx.SparseEncoder.intersection(one, other)
        if isinstance(one, torch.Tensor):
            assert result.is_sparse
            torch.testing.assert_close(expected.to_dense(), result.to_dense(), rtol=0, atol=0)
        else:
            assert isinstance(result, scipy.sparse.csr_array)
            _assert_equal(expected, result)


def test_intersection_of_different_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="single vector"):
        stonnx.SparseEncoder.intersection(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        stonnx.SparseEncoder.intersection(np.zeros(3), np.zeros((2, 4)))


@pytest.mark.parametrize("method", ["sparsity", "decode"])
@pytest.mark.parametrize(
    ("embeddings", "error"),
    [([1.0, 2.0], TypeError), ("a", TypeError), (None, TypeError), (np.zeros((1, 2, 3)), ValueError)],
)
def test_what_is_no_embedding_is_refused(
    model: stonnx.SparseEncoder, original: Any, method: str, embeddings: Any, error: type[Exception]
) -> None:
    theirs = torch.from_numpy(embeddings) if isinstance(embeddings, np.ndarray) else embeddings
    with pytest.raises(error):
        getattr(original, method)(theirs)
    with pytest.raises(error) as raised:
        getattr(model, method)(embeddings)
    assert isinstance(raised.value, stonnx.StonnxError)


@pytest.mark.parametrize("top_k", [0, -1, 1.5])
def test_decode_refuses_a_top_k(model: stonnx.SparseEncoder, vectors: Any, top_k: Any) -> None:
    with pytest.raises(stonnx.InvalidArgumentError, match="top_k"):
        model.decode(vectors, top_k)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_equal_the_original(bundle: Path, original: Any, vectors: Any, name: str) -> None:
    model = stonnx.SparseEncoder(bundle, similarity_fn_name=name)
    tensor, others = original.encode(TEXTS), TEXTS[::-1]
    original.similarity_fn_name = name
    try:
        expected = original.similarity(tensor, original.encode(others[1:])).to_dense().numpy()
        pairwise = original.similarity_pairwise(tensor, original.encode(others)).to_dense().numpy()
    finally:
        original.similarity_fn_name = None
    # A Euclidean distance of 0 is a square root of what float32 leaves of a difference of squares of about 100.
    tolerance = {"rtol": 1e-5, "atol": 0.03 if name == "euclidean" else 1e-5}
    np.testing.assert_allclose(model.similarity(vectors, model.encode(others[1:])), expected, **tolerance)
    np.testing.assert_allclose(model.similarity_pairwise(vectors, model.encode(others)), pairwise, **tolerance)
    assert np.ptp(expected) > 0.2


def test_similarity_is_the_dot_product_unless_named(directory: Path, model: stonnx.SparseEncoder) -> None:
    assert model.similarity_fn_name == "dot"
    graphs = {"default": sparse_graph(DOCUMENT_TABLE)}
    named = stonnx.SparseEncoder(write_bundle(directory / "cosine", graphs, similarity_fn_name="cosine", **FACTS))
    assert named.similarity_fn_name == "cosine"
    named.similarity_fn_name = sentence_transformers.SimilarityFunction.EUCLIDEAN
    assert named.similarity_fn_name == "euclidean"
    named.similarity_fn_name = None
    assert named.similarity_fn_name == "dot"
    with pytest.raises(ValueError, match="got 'maxsim'"):
        named.similarity_fn_name = "maxsim"


def test_facts_of_the_model(model: stonnx.SparseEncoder, original: Any) -> None:
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == WIDTH
    assert model.max_seq_length == model.get_max_seq_length() == original.max_seq_length
    assert model.prompts == original.prompts
    assert model.max_active_dims is original.max_active_dims is None


def test_errors_of_a_call(model: stonnx.SparseEncoder) -> None:
    with pytest.raises(TypeError, match="Input 1 is not a text") as raised:
        model.encode(["a", None])
    assert getattr(raised.value, "index", None) == 1
    with pytest.raises(ValueError, match="does not take the argument normalize_embeddings"):
        model.encode(["a"], normalize_embeddings=True)
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(["a"], batch_size=0)
    with pytest.raises(ValueError, match="prompt_name 'absent'"):
        model.encode(["a"], prompt_name="absent")


def test_old_names_still_work(model: stonnx.SparseEncoder, vectors: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="stonnx"):
        np.testing.assert_array_equal(vectors.toarray(), model.encode(sentences=TEXTS).toarray())
        model.encode(sentences=TEXTS[:1])
    assert [record.message for record in caplog.records].count(
        "SparseEncoder.encode takes inputs, which is the new name of sentences."
    ) <= 1


def test_a_bundle_for_another_task_is_refused(bundle: Path, directory: Path) -> None:
    with pytest.raises(ValueError, match=r"stonnx\.SparseEncoder"):
        stonnx.SentenceTransformer(bundle)
    path = write_bundle(directory / "no-width", {"default": sparse_graph(DOCUMENT_TABLE)}, task="sparse")
    with pytest.raises(stonnx.BundleFormatError, match="embedding_dimension"):
        stonnx.SparseEncoder(path)


def test_scipy_is_needed_for_sparse_vectors_only(
    model: stonnx.SparseEncoder, vectors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scipy.__version__", "1.14.1")
    with pytest.raises(stonnx.MissingDependencyError, match=r"scipy 1\.15 or newer, found 1\.14\.1"):
        model.encode(TEXTS)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"pip install 'stonnx\[sparse\]'"):
        model.encode(TEXTS)
    options = {"convert_to_sparse_tensor": False, "max_active_dims": 5}
    dense = model.encode(TEXTS, **options)
    assert model.similarity(dense, dense).shape == (len(TEXTS), len(TEXTS))
    assert (dense != 0).sum() == 5 * len(TEXTS)
