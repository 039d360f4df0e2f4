"""Similarity functions, normalization and truncation give what sentence_transformers.util gives.

Tolerance: 1e-6 of the largest score, which is a few float32 roundings.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sentence_transformers.util as original
import torch

import stonnx.util as util
from stonnx import InvalidArgumentError
from stonnx._arrays import to_matrix

TOLERANCE = 1e-6
# Both say so once in a process, at the first sparse tensor.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:Sparse CSR")

MATRIX = ["cos_sim", "dot_score", "euclidean_sim", "manhattan_sim"]
PAIRWISE = [*(f"pairwise_{name}" for name in MATRIX), "pairwise_angle_sim"]


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread() -> Iterator[None]:
    # On small arrays and busy cores, threads mostly wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embeddings(rows: int, dimension: int = 33, seed: int = 0) -> np.ndarray:
    """Half zeros, as sparse embeddings have them, with a row of zeros where there are several rows."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, dimension)) * (generator.random((rows, dimension)) < 0.5)
    if rows > 1:
        values[rows // 2] = 0
    return values.astype(np.float32)


def to_sparse_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to_sparse()


# What stonnx is given, and what the original is given, for the same values.
KINDS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {
    "float32": (np.asarray, np.asarray),
    "float64": (lambda x: x.astype(np.float64), lambda x: x.astype(np.float64)),
    "float16": (lambda x: x.astype(np.float16), lambda x: x.astype(np.float16)),
    "list": (np.ndarray.tolist, np.ndarray.tolist),
    "list of arrays": (list, list),
    "list of float64 arrays": (lambda x: list(x.astype(np.float64)), lambda x: list(x.astype(np.float64))),
    "tensor": (torch.from_numpy, torch.from_numpy),
    "float64 tensor": (lambda x: torch.from_numpy(x).double(), lambda x: torch.from_numpy(x).double()),
    "float16 tensor": (lambda x: torch.from_numpy(x).half(), lambda x: torch.from_numpy(x).half()),
    "bfloat16 tensor": (lambda x: torch.from_numpy(x).bfloat16(), lambda x: torch.from_numpy(x).bfloat16()),
    "tensor with gradient": (lambda x: torch.tensor(x, requires_grad=True), torch.from_numpy),
    "list of tensors": (lambda x: list(torch.from_numpy(x)), lambda x: list(torch.from_numpy(x))),
    "csr_array": (scipy.sparse.csr_array, to_sparse_tensor),
    "float64 csr_array": (lambda x: scipy.sparse.csr_array(x.astype(np.float64)), to_sparse_tensor),
    "coo_matrix": (scipy.sparse.coo_matrix, to_sparse_tensor),
    "list of csr rows": (lambda x: [scipy.sparse.csr_array(row[None]) for row in x], to_sparse_tensor),
    "sparse tensor": (to_sparse_tensor, to_sparse_tensor),
    "sparse tensor, csr": (lambda x: torch.from_numpy(x).to_sparse_csr(), to_sparse_tensor),
    "list of sparse tensors": (lambda x: list(map(to_sparse_tensor, x)), lambda x: list(map(to_sparse_tensor, x))),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, list) and isinstance(value[0], torch.Tensor | scipy.sparse.sparray):
        return np.stack([to_numpy(item) for item in value])
    if isinstance(value, torch.Tensor):
        value = value.detach().to_dense()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value.toarray() if scipy.sparse.issparse(value) else np.asarray(value)


def assert_scores(actual: Any, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    expected_array = expected.numpy()
    assert to_numpy(actual).dtype == expected_array.dtype
    scale = np.abs(expected_array).max(initial=1)
    np.testing.assert_allclose(to_numpy(actual), expected_array, rtol=0, atol=tolerance * scale)


@kinds
@pytest.mark.parametrize("rows", [(1, 1), (7, 5), (40, 30)])
@pytest.mark.parametrize("name", MATRIX)
def test_matrix_scores(name: str, rows: tuple[int, int], kind: str) -> None:
    ours, theirs = KINDS[kind]
    a, b = embeddings(rows[0]), embeddings(rows[1], seed=1)
    expected = getattr(original, name)(theirs(a), theirs(b))
    actual = getattr(util, name)(ours(a), ours(b))
    assert actual.shape == rows
    assert isinstance(actual, torch.Tensor if "tensor" in kind else np.ndarray)
    assert_scores(actual, expected)


@kinds
@pytest.mark.parametrize("dimension", [32, 33])
@pytest.mark.parametrize("name", PAIRWISE)
def test_pairwise_scores(name: str, dimension: int, kind: str) -> None:
    ours, theirs = KINDS[kind]
    a, b = embeddings(9, dimension), embeddings(9, dimension, seed=1)
    expected = getattr(original, name)(theirs(a), theirs(b))
    actual = getattr(util, name)(ours(a), ours(b))
    assert actual.shape == (9,)
    assert isinstance(actual, torch.Tensor if "tensor" in kind else np.ndarray)
    assert_scores(actual, expected)


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("sparse_side", [0, 1])
def test_one_sparse_side(name: str, sparse_side: int) -> None:
    arrays = [embeddings(4), embeddings(6, seed=1)]
    theirs = [to_sparse_tensor(x) if side == sparse_side else x for side, x in enumerate(arrays)]
    ours = [scipy.sparse.csr_array(x) if side == sparse_side else x for side, x in enumerate(arrays)]
    assert_scores(getattr(util, name)(*ours), getattr(original, name)(*theirs))
    one_row = [x[:1] for x in arrays]
    expected = getattr(original, f"pairwise_{name}")(*one_row)
    assert_scores(getattr(util, f"pairwise_{name}")(*(x[:1] for x in ours)), expected)


@pytest.mark.parametrize("name", MATRIX)
def test_vectors_are_one_row(name: str) -> None:
    a, b = embeddings(1)[0], embeddings(5, seed=1)
    function, expected = getattr(util, name), getattr(original, name)
    assert_scores(function(a, b), expected(a, b))
    assert_scores(function(a.tolist(), b[0]), expected(a.tolist(), b[0]))
    assert_scores(function(scipy.sparse.coo_array(a), b), expected(a, b))
    assert function(torch.from_numpy(a).to_sparse(), b).shape == (1, 5)


@pytest.mark.parametrize("name", PAIRWISE[:4])
def test_pairwise_vectors(name: str) -> None:
    a, b = embeddings(1)[0], embeddings(5, seed=1)
    function, expected = getattr(util, name), getattr(original, name)
    assert_scores(function(a, b[0]), expected(a, b[0]))
    assert function(a, b[0]).shape == ()
    assert function(to_sparse_tensor(a), to_sparse_tensor(b[0])).shape == ()
    assert_scores(function(a, b), expected(a, b))
    assert_scores(function(scipy.sparse.csr_array(a[None]), scipy.sparse.csr_array(b)), expected(a, b))


def test_zero_rows_score_zero() -> None:
    zeros, ones = np.zeros((1, 4)), np.ones((1, 4))
    for make in (np.asarray, scipy.sparse.csr_array):
        assert util.cos_sim(make(zeros), make(ones)) == 0
        assert util.pairwise_cos_sim(make(zeros), make(zeros)) == 0


def test_euclidean_of_near_rows() -> None:
    # The squares are what the matrix form computes; the root would magnify their rounding near zero.
    a = embeddings(60, 384)
    b = a + np.float32(1e-3)
    expected, actual = original.euclidean_sim(a, b).numpy() ** 2, util.euclidean_sim(a, b) ** 2
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * 2 * (a**2).sum(1).max())
    # Of equal rows some squares come out below zero.
    assert np.abs(util.euclidean_sim(a, a).diagonal()).max() < 3e-3 * np.sqrt((a**2).sum(1).max())
    # Up to 25 rows it is exact.
    np.testing.assert_allclose(util.euclidean_sim(a[:5], b[:5]).diagonal(), -1e-3 * 384**0.5, rtol=1e-4)


def test_manhattan_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stonnx.util.similarity._BLOCK_ELEMENTS", 100)
    a, b = embeddings(8), embeddings(50, seed=1)
    assert_scores(util.manhattan_sim(a, b), original.manhattan_sim(a, b))


def test_sparse_product_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stonnx.util._matrix._BLOCK_ELEMENTS", 100)
    a, b = embeddings(8), embeddings(30, seed=1)
    sparse_scores = util.dot_score(scipy.sparse.csr_array(a), scipy.sparse.csr_array(b))
    assert_scores(sparse_scores, original.dot_score(a, b))


def test_repeated_sparse_entries_are_summed_and_input_stays() -> None:
    matrix = scipy.sparse.csr_array((np.float32([-1, 4, 4]), [1, 1, 0], [0, 3]), shape=(1, 3))
    assert util.dot_score(matrix, [4.0, 3.0, 0.0]) == 25
    assert util.pairwise_cos_sim(matrix, [4.0, 3.0, 0.0]) == 1
    assert util.manhattan_sim(matrix, [[4.0, 3.0, 0.0], [0.0, 0.0, 0.0]]).tolist() == [[0, -7]]
    assert to_matrix(matrix).data.tolist() == [4, 3]
    assert matrix.data.tolist() == [-1, 4, 4]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
def test_integers_are_computed_in_float32(dtype: type) -> None:
    # The original multiplies integers as they are: int8 products wrap around.
    a = np.full((1, 64), 100).astype(dtype)
    assert_scores(util.dot_score(a, a), original.dot_score(a.astype(np.float32), a.astype(np.float32)))


def test_mixed_precision_is_float64() -> None:
    a, b = embeddings(3), embeddings(30, seed=1)
    for name in MATRIX:
        actual = getattr(util, name)(a, b.astype(np.float64))
        assert_scores(actual, getattr(original, name)(a.astype(np.float64), b.astype(np.float64)))


def test_a_tensor_on_either_side_gives_a_tensor() -> None:
    a = embeddings(3)
    assert isinstance(util.cos_sim(a, torch.from_numpy(a)), torch.Tensor)
    assert isinstance(util.cos_sim(list(torch.from_numpy(a)), a), torch.Tensor)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list of sparse tensors"])
def test_normalize(kind: str) -> None:
    ours, theirs = KINDS[kind]
    values = embeddings(5)
    reference = theirs(values)
    if isinstance(reference, list):
        reference = np.asarray(reference, np.float64 if "float64" in kind else np.float32)
    # The original takes tensors only, and computes halves as halves.
    expected = original.normalize_embeddings(
        torch.as_tensor(reference).to(torch.promote_types(torch.as_tensor(reference).dtype, torch.float32))
    )
    given = ours(values)
    actual = util.normalize_embeddings(given)
    assert_scores(actual, expected.to_dense())
    assert np.all(to_numpy(actual)[2] == 0)
    if "list" not in kind:
        assert scipy.sparse.issparse(actual) == scipy.sparse.issparse(given)
        assert isinstance(actual, torch.Tensor) == isinstance(given, torch.Tensor)
    np.testing.assert_array_equal(to_numpy(given), to_numpy(ours(values)))


def test_normalize_keeps_the_shape() -> None:
    tokens = embeddings(6).reshape(2, 3, 33)
    expected = original.normalize_embeddings(torch.from_numpy(tokens))
    assert_scores(util.normalize_embeddings(tokens), expected)
    vector = embeddings(1)[0]
    for make in (np.asarray, torch.from_numpy, to_sparse_tensor, scipy.sparse.coo_array):
        assert util.normalize_embeddings(make(vector)).shape == (33,)
    assert util.normalize_embeddings(np.empty((0, 4), np.float32)).shape == (0, 4)


@kinds
@pytest.mark.parametrize("count", [None, 1, 5, 33, 100])
def test_select_max_active_dims(kind: str, count: int | None) -> None:
    values = embeddings(7)
    actual = util.select_max_active_dims(KINDS[kind][0](values), count)
    expected = original.select_max_active_dims(torch.from_numpy(values), count)
    # What is given may have been rounded to half precision.
    np.testing.assert_allclose(to_numpy(actual).reshape(7, 33), expected.numpy(), rtol=1e-2)
    assert (to_numpy(actual) != 0).sum() == (expected != 0).sum()


def test_select_max_active_dims_of_other_shapes() -> None:
    values = embeddings(6).reshape(2, 3, 33)
    expected = original.select_max_active_dims(torch.from_numpy(values), 4).numpy()
    np.testing.assert_array_equal(util.select_max_active_dims(values, 4), expected)
    vector = values[0, 0]
    for make in (np.asarray, scipy.sparse.coo_array, to_sparse_tensor):
        assert util.select_max_active_dims(make(vector), 4).shape == (33,)
    for make in (np.asarray, scipy.sparse.csr_array):
        assert util.select_max_active_dims(make(np.zeros((0, 33), np.float32)), 4).shape == (0, 33)
    # Of equal values the first, whatever the order in which a sparse array has them.
    unsorted = scipy.sparse.csr_array((np.ones(3), [2, 0, 1], [0, 3]), shape=(1, 3))
    np.testing.assert_array_equal(util.select_max_active_dims(unsorted, 2).toarray(), [[1, 1, 0]])
    np.testing.assert_array_equal(util.select_max_active_dims(np.ones((1, 3)), 2), [[1, 1, 0]])
    with pytest.raises(InvalidArgumentError, match="max_active_dims must be a positive integer or None, got 0"):
        util.select_max_active_dims(values, 0)


def test_truncate() -> None:
    values = embeddings(5)
    for truncate_dim in (None, 1, 8, 33, 100):
        expected = original.truncate_embeddings(values, truncate_dim)
        for kind, (ours, _) in KINDS.items():
            actual = util.truncate_embeddings(ours(values), truncate_dim)
            if "list" not in kind:
                assert str(actual.dtype) == str(ours(values).dtype)
            np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-2 if "16" in kind else 0)
    view = util.truncate_embeddings(values, 4)
    assert np.shares_memory(view, values)
    assert util.truncate_embeddings(to_sparse_tensor(values[0]), 4).shape == (4,)
    with pytest.raises(InvalidArgumentError, match="truncate_dim must be a positive integer or None, got 0"):
        util.truncate_embeddings(values, 0)


@pytest.mark.parametrize("name", original.SimilarityFunction.possible_values())
def test_similarity_function(name: str) -> None:
    ours, theirs = util.SimilarityFunction, original.SimilarityFunction
    assert ours(name).name == theirs(name).name
    for function in (name, ours(name)):
        assert ours.to_similarity_fn(function).__name__ == theirs.to_similarity_fn(name).__name__
        assert ours.to_similarity_pairwise_fn(function).__name__ == theirs.to_similarity_pairwise_fn(name).__name__


def test_similarity_function_values() -> None:
    assert util.SimilarityFunction.possible_values() == original.SimilarityFunction.possible_values()
    assert util.SimilarityFunction.DOT is util.SimilarityFunction.DOT_PRODUCT
    with pytest.raises(InvalidArgumentError, match=r"'minsim' is not .*Use one of: cosine, dot, euclidean, manhattan"):
        util.SimilarityFunction.to_similarity_fn("minsim")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "3 and 4 dimensions"),
        (np.ones((2, 3, 4)), np.ones((2, 4)), r"shape \(2, 3, 4\)"),
        (1.0, np.ones((2, 4)), r"shape \(\)"),
        ([[1.0, 2.0], [3.0]], np.ones((2, 4)), "different shapes"),
        ([np.ones(2), torch.ones(3)], np.ones((2, 4)), "different shapes"),
        ([scipy.sparse.csr_array(np.ones((1, 2))), scipy.sparse.csr_array(np.ones((1, 3)))], [1.0], "different shapes"),
        (["text"], np.ones((2, 4)), "Encode texts first"),
        (np.ones((2, 3), complex), np.ones((2, 3)), "complex"),
        ([], np.ones((2, 4)), "0 and 4 dimensions"),
    ],
)
def test_errors(a: Any, b: Any, message: str) -> None:
    for name in MATRIX + PAIRWISE:
        with pytest.raises(InvalidArgumentError, match=message):
            getattr(util, name)(a, b)


def test_pairwise_needs_as_many_rows() -> None:
    for make in (np.asarray, scipy.sparse.csr_array):
        with pytest.raises(InvalidArgumentError, match="2 and 3 rows"):
            util.pairwise_dot_score(make(np.ones((2, 4))), make(np.ones((3, 4))))


def test_numpy_input_imports_neither_torch_nor_scipy() -> None:
    script = (
        "import sys, numpy, stonnx.util as util\n"
        "x = numpy.eye(3, dtype=numpy.float32)\n"
        "util.semantic_search(x, x), util.euclidean_sim(x, x.tolist()), util.quantize_embeddings(x, 'binary')\n"
        "util.community_detection(x), util.paraphrase_mining_embeddings(x)\n"
        "print([name for name in ('torch', 'scipy', 'faiss', 'usearch', 'tqdm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("empty", [[], (), np.zeros(0, np.float32), np.zeros((0, 0), np.float32)], ids=repr)
def test_no_pairs(name: str, empty: Any) -> None:
    """An empty list is no vectors. The original makes one score of 0 of two of them, or ends in an IndexError."""
    scores = getattr(util, name)(empty, empty)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (0,)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("other", [np.ones((0, 4), np.float32), np.ones((1, 4), np.float32)])
def test_no_rows_and_one(name: str, other: Any) -> None:
    none = np.ones((0, 4), np.float32)
    for pair in ((none, other), (other, none)):
        assert getattr(util, name)(*pair).shape == tuple(getattr(original, name)(*pair).shape) == (0,)
    with pytest.raises(InvalidArgumentError, match="0 and 2 rows"):
        getattr(util, name)(none, np.ones((2, 4), np.float32))
