"""Search, paraphrase mining and communities give what sentence_transformers.util gives.

The same rows in the same order, with scores within 1e-6 of the largest one.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sentence_transformers.util as original
import torch

import stonnx.util as util
from stonnx import InvalidArgumentError
from stonnx.util._nearest import nearest

# Both say so once in a process, at the first sparse tensor.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:Sparse CSR")

TOLERANCE = 1e-6

# What stonnx is given, and what the original is given, for the same values.
KINDS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {
    "float32": (np.asarray, np.asarray),
    "float64": (lambda x: x.astype(np.float64), lambda x: x.astype(np.float64)),
    "float16": (lambda x: x.astype(np.float16), lambda x: x.astype(np.float16)),
    "list": (np.ndarray.tolist, np.ndarray.tolist),
    "tensor": (torch.from_numpy, torch.from_numpy),
    "list of tensors": (lambda x: list(torch.from_numpy(x)), lambda x: list(torch.from_numpy(x))),
    "csr": (scipy.sparse.csr_array, lambda x: torch.from_numpy(x).to_sparse()),
    "sparse tensor": (lambda x: torch.from_numpy(x).to_sparse(), lambda x: torch.from_numpy(x).to_sparse()),
}


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread() -> Iterator[None]:
    # On small arrays and busy cores, threads mostly wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_rows(rows: int, dimension: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


def clusters(count: int, size: int, spread: float, seed: int = 0) -> np.ndarray:
    """Groups of ``size`` rows around ``count`` centres, shuffled among as many rows that belong to none."""
    generator = np.random.default_rng(seed)
    grouped = np.repeat(generator.standard_normal((count, 24)), size, axis=0)
    grouped += spread * generator.standard_normal(grouped.shape)
    rows = np.concatenate((grouped, generator.standard_normal(grouped.shape)))
    return generator.permutation(rows).astype(np.float32)


def assert_hits(actual: list[Any], expected: list[Any]) -> None:
    assert [[hit["corpus_id"] for hit in hits] for hits in actual] == [
        [hit["corpus_id"] for hit in hits] for hits in expected
    ]
    actual_scores = np.array([hit["score"] for hits in actual for hit in hits])
    expected_scores = np.array([hit["score"] for hits in expected for hit in hits])
    scale = np.abs(expected_scores).max(initial=0)
    np.testing.assert_allclose(actual_scores, expected_scores, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("cos_sim", "dot_score") for kind in KINDS),
        *((name, kind) for name in ("euclidean_sim", "manhattan_sim") for kind in ("float32", "tensor", "csr")),
    ],
)
@pytest.mark.parametrize("chunks", [{}, {"query_chunk_size": 4, "corpus_chunk_size": 30}])
@pytest.mark.parametrize("top_k", [1, 7, 500])
def test_semantic_search(name: str, top_k: int, chunks: dict[str, int], kind: str) -> None:
    ours, theirs = KINDS[kind]
    queries, corpus = random_rows(10), random_rows(130, seed=1)
    actual = util.semantic_search(
        ours(queries), ours(corpus), top_k=top_k, score_function=getattr(util, name), **chunks
    )
    expected = original.semantic_search(
        theirs(queries), theirs(corpus), top_k=top_k, score_function=getattr(original, name), **chunks
    )
    assert_hits(actual, expected)
    assert {type(value) for value in actual[0][0].values()} == {int, float}


def test_search_with_one_vector_and_with_nothing() -> None:
    corpus = random_rows(30)
    assert_hits(util.semantic_search(corpus[3], corpus), original.semantic_search(corpus[3], corpus))
    assert util.semantic_search(np.array([]), corpus) == []
    assert util.semantic_search(corpus[:2], np.empty((0, 24), np.float32)) == [[], []]
    assert util.semantic_search(corpus[:2], []) == original.semantic_search(corpus[:2], []) == [[], []]


@pytest.mark.parametrize("corpus_chunk_size", [1, 3, 10, 1000])
def test_equal_scores_keep_the_order_of_the_corpus(corpus_chunk_size: int) -> None:
    corpus = np.tile(np.eye(2, dtype=np.float32), (25, 1))
    for rows in (corpus, scipy.sparse.csr_array(corpus)):
        (hits,) = util.semantic_search(rows[:1], rows, top_k=40, corpus_chunk_size=corpus_chunk_size)
        assert [hit["corpus_id"] for hit in hits] == [*range(0, 50, 2), *range(1, 30, 2)]


@pytest.mark.parametrize("columns", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("levels", [1, 5, 100_000])
def test_best_scores_are_those_of_a_full_sort(
    columns: int, k: int, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stonnx.util._nearest._BLOCK_ELEMENTS", 3000)
    scores = np.random.default_rng(0).integers(0, levels, (10, columns)).astype(np.float32)
    scores[:, columns // 2 :] -= np.float32(np.inf) if levels == 5 else 0
    # Every column is an embedding whose dot product with a unit vector is its score.
    found, ids = nearest(
        np.arange(10)[:, None],
        np.arange(columns)[:, None],
        4,
        10_000,
        k,
        lambda queries, corpus: scores[queries[:, 0]],
        lambda rows: rows,
    )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(found, np.take_along_axis(scores, order, axis=1))


def test_score_function_gets_chunks_of_the_callers_kind() -> None:
    shapes = set()

    def score(queries: torch.Tensor, corpus: torch.Tensor) -> torch.Tensor:
        shapes.add((tuple(queries.shape), tuple(corpus.shape), type(queries), type(corpus)))
        return queries @ corpus.T

    queries, corpus = random_rows(5), random_rows(9, seed=1)
    chunks = {"query_chunk_size": 3, "corpus_chunk_size": 8}
    expected = original.semantic_search(queries, corpus, score_function=original.dot_score, **chunks)
    tensors = (torch.from_numpy(queries), torch.from_numpy(corpus))
    assert_hits(util.semantic_search(*tensors, score_function=score, **chunks), expected)
    assert shapes == {((q, 24), (c, 24), torch.Tensor, torch.Tensor) for q in (3, 2) for c in (8, 1)}
    assert_hits(util.semantic_search(queries, corpus, score_function=lambda q, c: np.asarray(q) @ c.T), expected)


@pytest.mark.parametrize("name", ["cos_sim", "dot_score"])
def test_search_memory_stays_within_the_chunks(name: str) -> None:
    queries, corpus = random_rows(1000, 8).astype(np.float16), random_rows(20_000, 8).astype(np.float16)
    tracemalloc.start()
    util.semantic_search(queries, corpus, 10, 2000, top_k=2, score_function=getattr(util, name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All scores take 80 MB, those of all queries and a chunk of the corpus 8 MB, the corpus in float32 0.6 MB.
    assert peak < 2e6


def test_search_errors() -> None:
    corpus = random_rows(30)
    for argument in ("query_chunk_size", "corpus_chunk_size"):
        with pytest.raises(InvalidArgumentError, match=f"{argument} must be a positive integer, got 0"):
            util.semantic_search(corpus, corpus, **{argument: 0})
    with pytest.raises(InvalidArgumentError, match="top_k must be an integer of 0 or more, got -1"):
        util.semantic_search(corpus, corpus, top_k=-1)
    with pytest.raises(InvalidArgumentError, match="24 and 23 dimensions"):
        util.semantic_search(corpus, corpus[:, :23])
    with pytest.raises(InvalidArgumentError, match=r"shape \(30,\) for 30 queries and 30 rows"):
        util.semantic_search(corpus, corpus, score_function=util.pairwise_cos_sim)

    def score(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
        return np.where((queries[:, :1] == 3) & (corpus[:, 0] == 1002), np.nan, 0)

    numbers = np.arange(1003.0)[:, None]
    for corpus_chunk_size in (1003, 16):
        with pytest.raises(InvalidArgumentError, match="query 3 and row 1002 of the corpus is NaN"):
            util.semantic_search(numbers[:5], numbers, 2, corpus_chunk_size, score_function=score)


def assert_pairs(actual: list[Any], expected: list[Any]) -> None:
    assert [pair[1:] for pair in actual] == [pair[1:] for pair in expected]
    np.testing.assert_allclose(
        [pair[0] for pair in actual], [pair[0] for pair in expected], rtol=0, atol=TOLERANCE * expected[0][0]
    )


MINING = [
    {},
    {"top_k": 3},
    {"max_pairs": 25},
    {"max_pairs": 25, "top_k": 2, "query_chunk_size": 7, "corpus_chunk_size": 11},
    {"query_chunk_size": 13, "corpus_chunk_size": 200},
]


@pytest.mark.parametrize("kind", ["float32", "float16", "tensor", "csr"])
@pytest.mark.parametrize("options", MINING)
def test_paraphrase_mining_embeddings(options: dict[str, int], kind: str) -> None:
    rows = clusters(6, 5, 0.5)
    actual = util.paraphrase_mining_embeddings(KINDS[kind][0](rows), **options)
    # The original slices what it is given, which sparse tensors do not support.
    expected = original.paraphrase_mining_embeddings(
        rows.astype(np.float16) if kind == "float16" else torch.from_numpy(rows), **options
    )
    assert_pairs(actual, expected)
    assert [type(value) for value in actual[0]] == [float, int, int]


@pytest.mark.parametrize("name", ["dot_score", "euclidean_sim"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_paraphrase_mining_with_another_score(top_k: int, name: str) -> None:
    # Rows of different lengths: by dot product, few are among the nearest to themselves.
    rows = clusters(6, 5, 0.5) * np.linspace(0.2, 2, 60, dtype=np.float32)[:, None]
    options = {"query_chunk_size": 8, "top_k": top_k}
    actual = util.paraphrase_mining_embeddings(rows, score_function=getattr(util, name), **options)
    expected = original.paraphrase_mining_embeddings(
        torch.from_numpy(rows), score_function=getattr(original, name), **options
    )
    # The matrix form of the distance rounds the squares, so nearly equal distances may change places.
    assert sorted(pair[1:] for pair in actual) == sorted(pair[1:] for pair in expected)


def test_paraphrase_mining_of_equal_rows_is_in_order() -> None:
    rows = np.ones((4, 2), np.float32)
    pairs = [[i, j] for i in range(4) for j in range(i + 1, 4)]
    assert [pair[1:] for pair in util.paraphrase_mining_embeddings(rows)] == pairs
    assert [pair[1:] for pair in util.paraphrase_mining_embeddings(rows, max_pairs=2, query_chunk_size=1)] == pairs[:2]
    assert util.paraphrase_mining_embeddings(rows[:1]) == util.paraphrase_mining_embeddings([]) == []
    with pytest.raises(InvalidArgumentError, match="max_pairs must be an integer of 0 or more, got -1"):
        util.paraphrase_mining_embeddings(rows, max_pairs=-1)


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_nothing_is_wanted(rows: int) -> None:
    """Empty lists, as the original gives."""
    queries = random_rows(5)
    corpus = random_rows(30)[:rows]
    if rows:
        assert util.semantic_search(queries, corpus, top_k=0) == original.semantic_search(queries, corpus, top_k=0)
    assert util.semantic_search(queries, corpus, top_k=0) == [[]] * 5
    for options in ({"top_k": 0}, {"max_pairs": 0}):
        theirs = original.paraphrase_mining_embeddings(torch.from_numpy(queries), **options)
        assert util.paraphrase_mining_embeddings(queries, **options) == theirs == []


class Model:
    """Encodes the sentence "7" as row 7."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.arguments: dict[str, Any] = {}

    def encode(self, sentences: list[str], convert_to_tensor: bool = False, **arguments: Any) -> Any:
        self.arguments = arguments
        rows = self.rows[[int(sentence) for sentence in sentences]]
        return torch.from_numpy(rows) if convert_to_tensor else rows


def test_paraphrase_mining() -> None:
    model, reference = Model(clusters(6, 5, 0.5)), Model(clusters(6, 5, 0.5))
    sentences = [str(row) for row in range(60)]
    arguments: dict[str, Any] = {
        "show_progress_bar": True,
        "batch_size": 3,
        "query_chunk_size": 7,
        "corpus_chunk_size": 9,
        "max_pairs": 20,
        "top_k": 5,
        "truncate_dim": 4,
        "prompt_name": "name",
        "prompt": "prompt",
    }
    actual = util.paraphrase_mining(model, sentences, score_function=util.dot_score, **arguments)
    expected = original.paraphrase_mining(reference, sentences, score_function=original.dot_score, **arguments)
    assert_pairs(actual, expected)
    assert model.arguments == reference.arguments


@pytest.mark.parametrize("kind", ["float32", "float64", "list", "tensor"])
@pytest.mark.parametrize(
    "options",
    [
        {"min_community_size": 3},
        {"min_community_size": 3, "threshold": 0.9},
        {"min_community_size": 5, "threshold": 0.5, "batch_size": 7},
        {"min_community_size": 1, "threshold": 0.7},
        {},
        {"threshold": 0.6},
        {"min_community_size": 2, "threshold": 0.0},
        {"min_community_size": 1000},
    ],
)
def test_community_detection(options: dict[str, Any], kind: str) -> None:
    rows = clusters(8, 12, 0.5)
    expected = original.community_detection(KINDS[kind][1](rows), **options)
    assert util.community_detection(KINDS[kind][0](rows), **options) == expected
    if options == {"threshold": 0.6}:
        assert len(expected) > 3


def test_communities_of_sparse_rows_and_of_none() -> None:
    rows = clusters(8, 12, 0.5)
    assert util.community_detection(scipy.sparse.csr_array(rows)) == original.community_detection(rows)
    assert util.community_detection([]) == original.community_detection([]) == []
    assert util.community_detection(rows[0], min_community_size=1) == [[0]]


def test_threshold_is_inclusive_and_float32() -> None:
    # 0.6 in float32 is above 0.6, and 0.7 below: a float64 cosine of exactly these decides as the original does.
    for cosine in (0.6, 0.7, 0.8):
        rows = np.array([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
        options = {"threshold": cosine, "min_community_size": 2}
        assert util.community_detection(rows, **options) == original.community_detection(rows, **options)
    rows = np.array([[1.0, 0.0], [2.0, 0.0]], np.float32)
    assert util.community_detection(rows, threshold=1.0, min_community_size=2) == [[0, 1]]


def test_centre_comes_first() -> None:
    # The cosines of these rows are all 1 but for rounding, so the centre may not be the nearest to itself.
    rows = np.outer(np.linspace(0.1, 3, 50), random_rows(1)[0]).astype(np.float32)
    (community,) = util.community_detection(rows)
    assert community[0] == 0
    assert sorted(community) == list(range(50))


def test_equal_members_are_in_the_order_of_the_rows() -> None:
    assert util.community_detection(np.ones((60, 2)), min_community_size=2) == [list(range(60))]


def test_communities_progress_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    rows = random_rows(20)
    util.community_detection(rows)
    assert capsys.readouterr().err == ""
    util.community_detection(rows, batch_size=8, show_progress_bar=True)
    assert "20/20" in capsys.readouterr().err
    for argument in ("min_community_size", "batch_size"):
        with pytest.raises(InvalidArgumentError, match=f"{argument} must be a positive integer, got 0"):
            util.community_detection(rows, **{argument: 0})
