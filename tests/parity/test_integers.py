"""Counts are integers of any library: those of numpy and torch, and whatever has ``__index__``. Booleans are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy_bundles import bundles_of_classes

import stonnx
import stonnx.util
from stonnx import InvalidArgumentError
from stonnx.multi_vector_encoder.modules import HierarchicalTokenPooling

TEXTS, VECTORS = ["the city", "bread rises", "river flows", "the river"], np.eye(4, 8, dtype=np.float32) + 0.5


class Index:
    """An integer of a library that this test does not know."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def tensor(value: Any) -> Any:
    return pytest.importorskip("torch").tensor(value)


KINDS: dict[str, Callable[[int], Any]] = {
    "int64": np.int64, "uint8": np.uint8, "array": np.array, "tensor": tensor, "index": Index,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundles = bundles_of_classes(tmp_path_factory.mktemp("bundles"))
    return {
        "dense": stonnx.SentenceTransformer(bundles["SentenceTransformer"]),
        "sparse": stonnx.SparseEncoder(bundles["SparseEncoder"]),
        "pairs": stonnx.CrossEncoder(bundles["CrossEncoder"]),
    }


def with_attribute(model: Any, name: str, value: Any, call: Callable[[], Any]) -> Any:
    before = getattr(model, name)
    setattr(model, name, value)
    try:
        return call()
    finally:
        setattr(model, name, before)


# Each with a number, and what a call with it gives.
CALLS: dict[str, tuple[int, Callable[[dict[str, Any], Any], Any]]] = {
    "max_length": (4, lambda m, n: m["dense"].encode(TEXTS, processing_kwargs={"text": {"max_length": n}})),
    "max_length of pairs": (
        5,
        lambda m, n: m["pairs"].predict([("bread", "rises")], processing_kwargs={"common": {"max_length": n}}),
    ),
    "max_seq_length": (
        4,
        lambda m, n: with_attribute(m["dense"], "max_seq_length", n, lambda: m["dense"].encode(TEXTS)),
    ),
    "batch_size": (255, lambda m, n: m["dense"].encode(TEXTS * 50, batch_size=n)),
    "truncate_dim": (3, lambda m, n: m["dense"].encode(TEXTS, truncate_dim=n)),
    "truncate_dim of the model": (
        3,
        lambda m, n: with_attribute(m["dense"], "truncate_dim", n, lambda: m["dense"].encode(TEXTS)),
    ),
    "threads": (1, lambda m, n: stonnx.SentenceTransformer(m["dense"].info.directory, threads=n).encode(TEXTS)),
    "max_batch_tokens": (
        200,
        lambda m, n: stonnx.SentenceTransformer(m["dense"].info.directory, max_batch_tokens=n).encode(TEXTS),
    ),
    "memory_limit": (200, lambda m, n: stonnx.DeviceOptions(memory_limit=n)),
    "max_active_dims": (2, lambda m, n: m["sparse"].encode(TEXTS, max_active_dims=n, convert_to_sparse_tensor=False)),
    "top_k of decode": (2, lambda m, n: m["sparse"].decode(VECTORS, top_k=n)),
    "top_k of rank": (2, lambda m, n: m["pairs"].rank("bread", TEXTS, top_k=n)),
    "max_queued_tokens": (200, lambda m, n: stonnx.Batcher(m["dense"], max_queued_tokens=n)._scheduler.limit),
    "semantic_search": (
        2,
        lambda m, n: stonnx.util.semantic_search(
            VECTORS, VECTORS, top_k=n, query_chunk_size=n, corpus_chunk_size=n
        ),
    ),
    "paraphrase_mining": (
        2,
        lambda m, n: stonnx.util.paraphrase_mining_embeddings(
            VECTORS, top_k=n, max_pairs=n, query_chunk_size=n, corpus_chunk_size=n
        ),
    ),
    "community_detection": (
        1,
        lambda m, n: stonnx.util.community_detection(VECTORS, threshold=n, min_community_size=n, batch_size=n),
    ),
    "truncate_embeddings": (3, lambda m, n: stonnx.util.truncate_embeddings(VECTORS, n)),
    "select_max_active_dims": (3, lambda m, n: stonnx.util.select_max_active_dims(VECTORS, n)),
    "maxsim": (9, lambda m, n: stonnx.util.maxsim([VECTORS], [VECTORS, VECTORS], chunk_elements=n)),
    "token pooling": (
        2,
        lambda m, n: HierarchicalTokenPooling(n, num_protected_tokens=n).pool_one(VECTORS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_every_integer_is_a_count(call: str, kind: str, models: dict[str, Any]) -> None:
    number, result_of = CALLS[call]
    expected = result_of(models, number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns of an overflow
        result = result_of(models, KINDS[kind](number))
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(result, expected)
    else:
        assert result == expected or all(map(np.array_equal, result, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_chunk_size_of_a_pool(kind: str, models: dict[str, Any]) -> None:
    model = models["dense"]
    pool = model.start_multi_process_pool(["cpu"])
    try:
        result = model.encode(TEXTS, pool=pool, chunk_size=KINDS[kind](2), batch_size=KINDS[kind](2))
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_array_equal(result, model.encode(TEXTS))


@pytest.mark.parametrize("wrong", [True, np.bool_(True), np.array(True), 2.0, np.float32(2), "2", np.array([2]), [2]])
def test_what_is_not_an_integer(wrong: Any, models: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="batch_size must be a positive integer, got "):
        models["dense"].encode(TEXTS, batch_size=wrong)
    with pytest.raises(InvalidArgumentError, match="processing_kwargs must have an integer as max_length; got "):
        models["dense"].encode(TEXTS, processing_kwargs={"text": {"max_length": wrong}})


def test_boolean_tensors_are_not_integers(models: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="batch_size must be a positive integer, got "):
        models["dense"].encode(TEXTS, batch_size=tensor(True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_a_gpu(kind: str, models: dict[str, Any]) -> None:
    with pytest.raises(stonnx.UnsupportedError, match="cannot move to 'cuda:1'"):
        models["dense"].to(KINDS[kind](1))
    with pytest.raises(stonnx.StonnxError, match="cuda:77"):
        stonnx.SentenceTransformer(models["dense"].info.directory, device=KINDS[kind](77))
