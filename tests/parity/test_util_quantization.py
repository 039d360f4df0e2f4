"""Quantized embeddings have the bytes of sentence_transformers.util; faiss and usearch find the same rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sentence_transformers.util import quantization as original

import stonnx.util as util
from stonnx import InvalidArgumentError, MissingDependencyError

TOLERANCE = 1e-6
PRECISIONS = ["float32", "int8", "uint8", "binary", "ubinary"]

KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": np.asarray,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "integers": lambda x: (x * 100).astype(np.int64),
    "tensor": torch.from_numpy,
    "bfloat16 tensor": lambda x: torch.from_numpy(x).bfloat16(),
    "list": np.ndarray.tolist,
    "list of arrays": list,
    "list of tensors": lambda x: list(torch.from_numpy(x)),
    "list of matrices": lambda x: [x[:3], x[3:3], x[3:]],
    "list of matrix tensors": lambda x: [torch.from_numpy(x[:3]), torch.from_numpy(x[3:])],
    "list of one matrix": lambda x: [x],
}


def random_rows(rows: int, dimension: int = 20, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    values[:, 3] = 0.25  # a constant dimension has no range
    return values


RANGES = np.stack((np.full(20, -1.0), np.full(20, 2.0)))
SOURCES: dict[str, dict[str, Any]] = {
    "own": {},
    "ranges": {"ranges": RANGES},
    "calibration": {"calibration_embeddings": random_rows(150, seed=2)},
    "both": {"ranges": RANGES, "calibration_embeddings": random_rows(150, seed=2)},
    "calibration of one": {"calibration_embeddings": random_rows(1, seed=2)},
}


def assert_same_bytes(actual: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same_bytes(ours, theirs)
        return
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes(precision: str, kind: str, source: str) -> None:
    values = KINDS[kind](random_rows(120))
    actual = util.quantize_embeddings(values, precision, **SOURCES[source])
    assert_same_bytes(actual, original.quantize_embeddings(values, precision, **SOURCES[source]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_of_one_vector_and_of_none(precision: str) -> None:
    vector = random_rows(1)[0]
    for values in (vector, vector.tolist(), vector[None], [], np.empty((0, 20)), [np.empty((0, 20))]):
        expected = original.quantize_embeddings(values, precision, ranges=RANGES)
        assert_same_bytes(util.quantize_embeddings(values, precision, ranges=RANGES), expected)
    for values in ([], np.empty((0, 20)), [np.empty((0, 20))]):
        expected = original.quantize_embeddings(values, precision)
        assert_same_bytes(util.quantize_embeddings(values, precision), expected)


def test_ranges_as_a_list_and_as_a_tensor() -> None:
    values = random_rows(5)
    expected = original.quantize_embeddings(values, "int8", ranges=RANGES)
    for ranges in (RANGES.tolist(), torch.from_numpy(RANGES)):
        assert_same_bytes(util.quantize_embeddings(values, "int8", ranges=ranges), expected)


@pytest.mark.parametrize("rows", [99, 100])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_rows_are_warned_about(precision: str, rows: int, caplog: pytest.LogCaptureFixture) -> None:
    util.quantize_embeddings(random_rows(rows), precision)
    warned = [record.getMessage() for record in caplog.records]
    if rows == 99 and "int8" in precision:
        assert len(warned) == 1
        assert "99 embeddings" in warned[0]
    else:
        assert warned == []
    caplog.clear()
    util.quantize_embeddings(random_rows(rows), precision, calibration_embeddings=random_rows(50))
    assert not caplog.records


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_one_embedding_has_no_ranges(precision: str) -> None:
    row = random_rows(1)
    for values in (row, row[0], row.tolist(), [row]):
        with pytest.raises(ValueError, match="single embedding"):
            original.quantize_embeddings(values, precision)
        with pytest.raises(InvalidArgumentError, match=f"no range to divide into {precision} steps. Pass ranges"):
            util.quantize_embeddings(values, precision)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (random_rows(3), {"precision": "int4"}, "'int4' is not supported; use float32, int8"),
        (random_rows(3).astype(np.int8), {"precision": "binary"}, "dtype int8 .*; vectors of floats are needed"),
        ([["text"]], {"precision": "binary"}, "vectors of floats are needed"),
        ([[1.0, 2.0], [3.0]], {"precision": "binary"}, "different dimensions"),
        (scipy.sparse.csr_array(random_rows(3)), {"precision": "binary"}, "Sparse embeddings cannot be quantized"),
        (random_rows(3), {"precision": "int8", "ranges": RANGES[:, :5]}, r"shape \(2, 5\).*\(2, 20\)"),
        (random_rows(3), {"precision": "int8", "ranges": RANGES[0]}, r"shape \(20,\)"),
    ],
)
def test_errors(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        util.quantize_embeddings(values, **options)


INDEXES = [
    ("faiss", "float32"),
    ("faiss", "uint8"),
    ("faiss", "ubinary"),
    ("usearch", "float32"),
    ("usearch", "int8"),
    ("usearch", "ubinary"),
    ("usearch", "binary"),
]


def search_functions(library: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    pytest.importorskip(library)
    name = f"semantic_search_{library}"
    return getattr(util, name), getattr(original, name)


def assert_hits(actual: list[Any], expected: list[Any]) -> None:
    assert [len(hits) for hits in actual] == [len(hits) for hits in expected]
    scores = [np.array([hit["score"] for hits in results for hit in hits]) for results in (actual, expected)]
    np.testing.assert_allclose(*scores, rtol=0, atol=TOLERANCE * np.abs(scores[1]).max(initial=0))
    # Hamming distances are often equal, and usearch then chooses differently from run to run.
    for ours, theirs in zip(actual, expected, strict=True):
        last = theirs[-1]["score"]
        assert {hit["corpus_id"] for hit in ours if abs(hit["score"] - last) > 1e-4} == {
            hit["corpus_id"] for hit in theirs if abs(hit["score"] - last) > 1e-4
        }


@pytest.mark.parametrize("rescore", [True, False])
@pytest.mark.parametrize("quantized_queries", [False, True])
@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize(
    ("library", "precision", "rows"),
    [
        (library, precision, rows)
        for library, precision in INDEXES
        for rows in (3, 8, 200)
        # usearch chooses among equally distant rows by chance, so what is rescored differs from run to run.
        if not (library == "usearch" and "binary" in precision and rows == 200)
    ],
)
def test_index_search(
    library: str, precision: str, rows: int, queries: int, quantized_queries: bool, rescore: bool
) -> None:
    ours, theirs = search_functions(library)
    calibration = {"calibration_embeddings": random_rows(300, seed=3)}
    corpus = original.quantize_embeddings(random_rows(rows), precision, **calibration)
    query_rows = random_rows(queries, seed=1)
    if quantized_queries:
        query_rows = original.quantize_embeddings(query_rows, precision, **calibration)
    options = {"corpus_embeddings": corpus, "corpus_precision": precision, "top_k": 5, "rescore": rescore}
    expected = theirs(query_rows, **options, **calibration)
    actual = ours(query_rows, **options, **calibration)
    assert len(actual) == 2
    assert_hits(actual[0], expected[0])
    assert actual[1] > 0
    if not quantized_queries and precision != "float32" and rescore:
        ranges = np.stack((calibration["calibration_embeddings"].min(0), calibration["calibration_embeddings"].max(0)))
        assert_hits(ours(query_rows, **options, ranges=ranges)[0], expected[0])
        assert_hits(ours(torch.from_numpy(query_rows), **options, **calibration)[0], expected[0])


@pytest.mark.parametrize(("library", "precision"), INDEXES)
def test_index_is_returned_and_used_again(library: str, precision: str) -> None:
    ours, theirs = search_functions(library)
    queries, corpus = random_rows(6, seed=1), random_rows(8)
    options = {"corpus_precision": precision, "ranges": RANGES, "exact": False}
    codes = original.quantize_embeddings(corpus, precision, ranges=RANGES)
    results, _, index = ours(queries, codes, output_index=True, **options)
    assert_hits(ours(queries, corpus_index=index, **options)[0], results)
    assert_hits(results, theirs(queries, codes, **options)[0])


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_index_search_of_one_vector(library: str) -> None:
    ours, _ = search_functions(library)
    queries, corpus = random_rows(6, seed=1), random_rows(8)
    codes = util.quantize_embeddings(corpus, "ubinary")
    expected, _ = ours(queries, codes, corpus_precision="ubinary")
    assert ours(queries[2], codes, corpus_precision="ubinary")[0] == [expected[2]]
    # The examples of the docstrings.
    corpus = np.array([[0.0, 1.0], [0.6, 0.8]], np.float32)
    score = {"faiss": 1.0, "usearch": 0.0}[library]
    assert ours(corpus[:1], corpus, top_k=1, rescore=False)[0] == [[{"corpus_id": 0, "score": score}]]


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_index_search_warns_where_it_cannot_rescore(library: str, caplog: pytest.LogCaptureFixture) -> None:
    ours, _ = search_functions(library)
    corpus = random_rows(5)
    codes = util.quantize_embeddings(corpus, "ubinary")
    ours(corpus, corpus)
    ours(codes, codes, corpus_precision="ubinary")
    reasons = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["the corpus is not quantized" in reasons[0], "the queries are quantized" in reasons[1]] == [True, True]
    caplog.clear()
    ours(corpus, codes, corpus_precision="ubinary")
    ours(corpus, corpus, rescore=False)
    assert not caplog.records


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_index_search_errors(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = getattr(util, f"semantic_search_{library}")
    corpus = random_rows(5)
    for options in ({}, {"corpus_embeddings": corpus, "corpus_index": object()}):
        with pytest.raises(InvalidArgumentError, match="one of corpus_embeddings and corpus_index"):
            ours(corpus, **options)
    with pytest.raises(InvalidArgumentError, match=f"'int4' is not supported with {library}; use float32"):
        ours(corpus, corpus, corpus_precision="int4")
    for argument in ("top_k", "rescore_multiplier"):
        with pytest.raises(InvalidArgumentError, match=f"{argument} must be a positive integer"):
            ours(corpus, corpus, **{argument: 0})
    for module in (library, f"{library}.index"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {library}"):
        ours(corpus, corpus)
