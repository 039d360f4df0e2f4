"""SparseEncoder against sentence-transformers: the same toy network on both sides, so results are equal to the bit."""

from __future__ import annotations

import json
import logging
import re
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
from sparse_networks import DOCUMENT_TABLE, FACTS, QUERY_TABLE, TEXTS, WIDTH, assert_equal
from toy_bundles import sparse_graph, wide_sparse_graph, write_bundle
from toy_networks import sparse_network

import stonnx
from stonnx._bundle.manifest import ModuleSpec
from stonnx._results.sparse import SparseRows

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:Sparse CSR")


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("inputs", [TEXTS, tuple(TEXTS), np.array(TEXTS), TEXTS[0], TEXTS[:1], [("a b", "c")]])
def test_vectors_equal_the_original(model: stonnx.SparseEncoder, original: Any, method: str, inputs: Any) -> None:
    expected = getattr(original, method)(inputs)
    result = getattr(model, method)(inputs)
    assert isinstance(result, scipy.sparse.csr_array)
    assert result.nnz == expected.coalesce().values().numel() > 0
    assert_equal(expected, result)
    assert_equal(expected, getattr(model, method)(inputs, convert_to_sparse_tensor=False))


@pytest.mark.parametrize("sparse", [True, False])
def test_without_tensor_each_text_has_its_own_vector(model: stonnx.SparseEncoder, original: Any, sparse: bool) -> None:
    options = {"convert_to_tensor": False, "convert_to_sparse_tensor": sparse, "save_to_cpu": True}
    expected, rows = original.encode(TEXTS, **options), model.encode(TEXTS, **options)
    assert isinstance(rows, list)
    for wanted, row in zip(expected, rows, strict=True):
        assert isinstance(row, scipy.sparse.csr_array if sparse else np.ndarray)
        assert_equal(wanted, row)
    assert_equal(original.encode("a", **options), model.encode("a", **options))


def test_no_texts(model: stonnx.SparseEncoder, original: Any) -> None:
    # scipy stacks a csr_array only onto others of its width, so it has one where the original's tensor has none.
    assert model.encode([]).shape == (0, WIDTH)
    assert scipy.sparse.vstack([model.encode([]), model.encode(["a"])]).shape == (1, WIDTH)
    assert_equal(original.encode([], convert_to_sparse_tensor=False), model.encode([], convert_to_sparse_tensor=False))
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
    assert_equal(getattr(original, method)(TEXTS, **options), getattr(model, method)(TEXTS, **options))


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
    assert_equal(getattr(original, method)(TEXTS, **options), getattr(model, method)(TEXTS, **options))
    words = "No route found for task type 'passage'. Available routes: task='query' and task='document'"
    for encode in (original.encode, model.encode):
        with pytest.raises(ValueError, match=re.escape(words)):
            encode(TEXTS, task="passage")


@pytest.mark.parametrize("task", ["query", "document"])
@pytest.mark.parametrize("prompt", [None, "x "])
def test_inputs_that_name_their_task(routed_bundle: Path, task: str, prompt: str | None) -> None:
    networks = {"query": [sparse_network(QUERY_TABLE)], "document": [sparse_network(DOCUMENT_TABLE)]}
    original = sentence_transformers.SparseEncoder(modules=[Router(networks, default_route="document")], device="cpu")
    model = stonnx.SparseEncoder(routed_bundle)
    named = [{task: text} for text in TEXTS]
    actual = model.encode(named, prompt=prompt)
    assert_equal(original.encode(named, prompt=prompt), actual)
    assert_equal(original.encode(TEXTS, prompt=prompt, task=task), actual)
    assert_equal(original.encode(named[0], prompt=prompt), model.encode(named[0], prompt=prompt))
    for encode in (original.encode, model.encode):
        with pytest.raises(ValueError, match="different task types"):
            encode([{"query": "a"}, {"document": "b"}])
        with pytest.raises(ValueError, match="No route found for task type 'passage'"):
            encode([{"passage": "a"}])


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_max_active_dims_equals_the_original(
    bundle: Path, model: stonnx.SparseEncoder, original: Any, limit: int
) -> None:
    expected = original.encode(TEXTS, max_active_dims=limit)
    assert (np.diff(model.encode(TEXTS, max_active_dims=limit).indptr) <= limit).all()
    assert_equal(expected, model.encode(TEXTS, max_active_dims=limit))
    assert_equal(expected, model.encode(TEXTS, max_active_dims=limit, convert_to_sparse_tensor=False))
    limited = stonnx.SparseEncoder(bundle, max_active_dims=limit)
    assert limited.max_active_dims == limit
    assert_equal(expected, limited.encode(TEXTS))
    assert_equal(original.encode(TEXTS, max_active_dims=3), limited.encode(TEXTS, max_active_dims=3))


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


def test_facts_of_the_model(model: stonnx.SparseEncoder, original: Any) -> None:
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == WIDTH
    assert model.max_seq_length == model.get_max_seq_length() == original.max_seq_length
    assert model.prompts == original.prompts
    assert model.max_active_dims is original.max_active_dims is None


def test_errors_of_a_call(model: stonnx.SparseEncoder) -> None:
    with pytest.raises(TypeError, match="Input 1 is not a text") as raised:
        model.encode(["a", None])
    assert getattr(raised.value, "index", None) == 1
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(["a"], batch_size=0)


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
    with pytest.raises(ImportError, match=r'pip install "stonnx\[sparse\]"'):
        model.encode(TEXTS)
    options = {"convert_to_sparse_tensor": False, "max_active_dims": 5}
    dense = model.encode(TEXTS, **options)
    assert model.similarity(dense, dense).shape == (len(TEXTS), len(TEXTS))
    assert (dense != 0).sum() == 5 * len(TEXTS)
