"""What SparseEncoder makes of sparse vectors: sparsity, tokens, intersections, similarities, as the original does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sentence_transformers
import torch
from sparse_networks import DOCUMENT_TABLE, FACTS, TEXTS, WIDTH, assert_equal
from toy_bundles import VOCABULARY, sparse_graph, write_bundle

import stonnx

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:Sparse CSR")


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
            assert_equal(expected, result)


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
