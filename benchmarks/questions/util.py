"""How fast are the functions of stonnx.util, beside those of sentence-transformers on PyTorch?

    OMP_NUM_THREADS=1 python -m benchmarks.questions.util [--rounds 7] [NAME ...]

The inputs are 10,000 vectors of 384 dimensions, 1,000 of them as queries, of unit length and in clusters, as texts give
them, and as many sparse ones. For MaxSim, 10,000 documents have 180 vectors of 128 dimensions, and a query has 32: 0.9
GB, made only if it is measured. Each side gets its own kind of array. Both take turns for several rounds. If a ratio is
over 1, stonnx is faster. `ratio` is the median of the rounds, `best` the ratio of each side's shortest time: calls of
few milliseconds mostly wait for memory, which can triple the time of either side. The script compares results too.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sentence_transformers import util
from sentence_transformers.util import quantization

import stonnx.util

ROWS, QUERIES, DIMENSION, CLUSTERS = 10_000, 1_000, 384, 250
VOCABULARY, ACTIVE = 30_522, 120
QUERY_TOKENS, DOCUMENT_TOKENS, TOKEN_DIMENSION = 32, 180, 128
# Relative to the largest value, or to 1: either side may be wrong by 1e-6 when it rounds a sum in float32.
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Inputs:
    """The inputs of both sides, each as its own kind of array."""

    rows: Any
    others: Any
    queries: Any
    sparse_rows: Any
    sparse_queries: Any


@dataclass(frozen=True)
class LateInputs:
    """A query and documents as lists of vectors of tokens."""

    query: list[Any]
    documents: list[Any]


@dataclass(frozen=True)
class Case:
    """A call, the same on both sides except for the module, and how to turn its result into numbers to compare."""

    name: str
    call: Callable[[Any, Any], Any]
    numbers: Callable[[Any], Any] = np.asarray
    is_late: bool = False


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds, ratios as the module describes them, and the largest difference."""

    name: str
    original: float
    stonnx: float
    ratio: float
    best: float
    difference: float


def scores_of_hits(results: Any) -> Any:
    """The scores in the hits of several queries, with or without the seconds that a search took."""
    hits = results[0] if isinstance(results, tuple) else results
    return np.array([[hit["score"] for hit in row] for row in hits])


def scores_of_pairs(pairs: Any) -> Any:
    return np.array([score for score, _, _ in pairs])


def memberships(communities: Any) -> Any:
    """For each row, the number of its community; 0 if it does not have one."""
    result = np.zeros(ROWS)
    for number, community in enumerate(sorted(map(sorted, communities)), 1):
        result[community] = number
    return result


def dense(tensor: Any) -> Any:
    return tensor.to_dense().numpy() if isinstance(tensor, torch.Tensor) and tensor.is_sparse else np.asarray(tensor)


ALL = ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim")
BY_ROW = tuple(f"pairwise_{name}" for name in (*ALL, "angle_sim"))


def cases() -> list[Case]:
    """All calls that the script measures."""

    def function(name: str, *names: str, **options: Any) -> Callable[[Any, Any], Any]:
        return lambda module, inputs: getattr(module, name)(*(getattr(inputs, n) for n in names), **options)

    return [
        *(Case(name, function(name, "rows", "queries"), numbers_of(name)) for name in ALL),
        *(Case(name, function(name, "rows", "others")) for name in BY_ROW),
        Case("normalize_embeddings", function("normalize_embeddings", "rows")),
        Case("truncate_embeddings", function("truncate_embeddings", "rows", truncate_dim=128)),
        Case("semantic_search", function("semantic_search", "queries", "rows"), scores_of_hits),
        Case("semantic_search, top 100", function("semantic_search", "queries", "rows", top_k=100), scores_of_hits),
        Case("paraphrase_mining_embeddings", function("paraphrase_mining_embeddings", "rows"), scores_of_pairs),
        Case("community_detection", function("community_detection", "rows"), memberships),
        *(
            Case(f"quantize_embeddings, {precision}", function("quantize_embeddings", "rows", precision=precision))
            for precision in ("int8", "uint8", "binary", "ubinary")
        ),
        *(
            Case(f"{name}, {precision}", search_codes(name, precision), scores_of_hits)
            for name, precision in (
                ("semantic_search_faiss", "uint8"),
                ("semantic_search_faiss", "ubinary"),
                ("semantic_search_usearch", "int8"),  # not binary: it takes any of equally near ones
            )
        ),
        *(Case(f"{name}, sparse", function(name, "sparse_rows", "sparse_queries"), dense) for name in ALL[:2]),
        *(Case(f"{name}, sparse", function(name, "sparse_rows", "sparse_rows"), dense) for name in BY_ROW[:2]),
        Case("normalize_embeddings, sparse", function("normalize_embeddings", "sparse_rows"), stored),
        Case("semantic_search, sparse", function("semantic_search", "sparse_queries", "sparse_rows"), scores_of_hits),
        Case("maxsim", function("maxsim", "query", "documents"), is_late=True),
    ]


def numbers_of(name: str) -> Callable[[Any], Any]:
    # The distance of two equal vectors is the root of the rounding error of 0. Its square is that error.
    return (lambda distances: np.square(np.asarray(distances))) if name == "euclidean_sim" else np.asarray


def stored(matrix: Any) -> Any:
    """The stored values of a sparse matrix: a dense copy would take a gigabyte."""
    return matrix.coalesce().values().numpy() if isinstance(matrix, torch.Tensor) else matrix.data


def search_codes(name: str, precision: str) -> Callable[[Any, Inputs], Any]:
    """Search quantized vectors with the exact index, and rescore. Both sides get numpy arrays."""

    def call(module: Any, inputs: Inputs) -> Any:
        rows, queries = np.asarray(inputs.rows), np.asarray(inputs.queries)
        ranges = {"ranges": np.stack((rows.min(axis=0), rows.max(axis=0)))} if precision.endswith("int8") else {}
        codes = module.quantize_embeddings(rows, precision, **ranges)
        return getattr(module, name)(queries, corpus_embeddings=codes, corpus_precision=precision, exact=True, **ranges)

    return call


class Original:
    """sentence-transformers' functions, under their names in stonnx.util."""

    def __getattr__(self, name: str) -> Any:
        return getattr(quantization if hasattr(quantization, name) else util, name)


def make_inputs() -> tuple[Inputs, Inputs]:
    """The same vectors for the original and for stonnx."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, DIMENSION))
    rows = centres[rng.integers(0, CLUSTERS, ROWS)] + 0.5 * rng.normal(size=(ROWS, DIMENSION))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    columns = np.argpartition(rng.random((ROWS, 2000)), ACTIVE, axis=1)[:, :ACTIVE] * (VOCABULARY // 2000)
    values = rng.random((ROWS, ACTIVE), dtype=np.float32) / 10
    sparse = scipy.sparse.csr_array(
        (values.ravel(), columns.ravel(), np.arange(ROWS + 1) * ACTIVE), shape=(ROWS, VOCABULARY)
    )
    sparse.sort_indices()
    arrays, matrices = (rows, rows[::-1].copy(), rows[:QUERIES]), (sparse, sparse[:QUERIES])
    return Inputs(*map(torch.from_numpy, arrays), *map(to_coo, matrices)), Inputs(*arrays, *matrices)


def make_late_inputs() -> tuple[LateInputs, LateInputs]:
    """The same query and documents for the original and for stonnx, in one piece of memory."""
    rng = np.random.default_rng(0)
    documents = rng.random((ROWS, DOCUMENT_TOKENS, TOKEN_DIMENSION), dtype=np.float32)
    documents -= 0.5
    query = rng.standard_normal((QUERY_TOKENS, TOKEN_DIMENSION), dtype=np.float32)
    # Unit length, nearly: the sum of so many squares hardly varies.
    documents /= (TOKEN_DIMENSION / 12) ** 0.5
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    theirs = LateInputs([torch.from_numpy(query)], list(torch.from_numpy(documents)))
    return theirs, LateInputs([query], list(documents))


def to_coo(matrix: Any) -> Any:
    coo = matrix.tocoo()
    indices = torch.from_numpy(np.stack((coo.row, coo.col)).astype(np.int64))
    return torch.sparse_coo_tensor(indices, torch.from_numpy(coo.data), coo.shape, check_invariants=False).coalesce()


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(case: Case, theirs: Any, ours: Any, rounds: int) -> Row:
    """Compare the results of both, then time them in turns."""
    original = Original()
    expected = case.numbers(case.call(original, theirs)).astype(np.float64)
    result = case.numbers(case.call(stonnx.util, ours)).astype(np.float64)
    assert expected.shape == result.shape, (case.name, expected.shape, result.shape)
    difference = float(np.abs(expected - result).max() / max(1.0, np.abs(expected).max()))
    times = [
        (seconds(lambda: case.call(original, theirs)), seconds(lambda: case.call(stonnx.util, ours)))
        for _ in range(rounds)
    ]
    peer, own = zip(*times, strict=True)
    return Row(
        name=case.name,
        original=1000 * statistics.median(peer),
        stonnx=1000 * statistics.median(own),
        ratio=statistics.median(a / b for a, b in times),
        best=min(peer) / min(own),
        difference=difference,
    )


def line(row: Row) -> str:
    times = f"{row.original:>11.2f}{row.stonnx:>11.2f}{row.ratio:>8.2f}x{row.best:>8.2f}x"
    return f"{row.name:<34}{times}{row.difference:>12.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="only what starts with one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=1, help="of both (default: 1, which a busy machine disturbs least)"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Sparse invariant", UserWarning)
    chosen = [case for case in cases() if not options.names or case.name.startswith(tuple(options.names))]
    usual = make_inputs() if any(not case.is_late for case in chosen) else None
    late = make_late_inputs() if any(case.is_late for case in chosen) else None
    print(f"{'milliseconds':<34}{'original':>11}{'stonnx':>11}{'ratio':>9}{'best':>9}{'difference':>12}")
    too_different = []
    for case in chosen:
        inputs = late if case.is_late else usual
        assert inputs is not None
        theirs, ours = inputs
        row = measure(case, theirs, ours, options.rounds)
        print(line(row), flush=True)
        if row.difference > TOLERANCE:
            too_different.append(row.name)
    if too_different:
        raise SystemExit(f"differ by more than {TOLERANCE}: {', '.join(too_different)}")


if __name__ == "__main__":
    main()
