"""The best matches of each query, chunk by chunk: the common part of search and paraphrase mining."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_callable, check_integer
from stonnx._arrays import FloatArray, Matrix, check_same_width, to_array, to_float
from stonnx._errors import InvalidArgumentError
from stonnx.util._matrix import product, transposed, unit_rows
from stonnx.util.similarity import cos_sim, dot_score

ScoreFunction: TypeAlias = Callable[[Any, Any], Any]
IndexArray: TypeAlias = npt.NDArray[np.intp]

_BLOCK_ELEMENTS = 1 << 20


def nearest(
    queries: Matrix,
    corpus: Matrix,
    query_chunk_size: int,
    corpus_chunk_size: int,
    top_k: int,
    score_function: ScoreFunction,
    like_input: Callable[[Any], Any],
) -> tuple[FloatArray, IndexArray]:
    """Scores and corpus rows, [queries, k] each: best first, equal scores in the order of the corpus.

    The matrices may have any real dtype. ``like_input`` converts a chunk to the kind that ``score_function`` expects.
    """
    query_chunk_size = check_integer("query_chunk_size", query_chunk_size)
    corpus_chunk_size = check_integer("corpus_chunk_size", corpus_chunk_size)
    top_k = check_integer("top_k", top_k, least=0)
    check_callable("score_function", score_function)
    if not queries.shape[0] or not corpus.shape[0] or not top_k:
        return np.empty((queries.shape[0], 0)), np.empty((queries.shape[0], 0), np.intp)
    check_same_width(queries, corpus)
    prepare_query, prepare_corpus, score = _steps(score_function, like_input)
    query_starts = range(0, queries.shape[0], query_chunk_size)
    best: list[tuple[FloatArray, IndexArray]] = []
    # The corpus is the outer loop, so that each of its chunks is prepared once.
    for corpus_start in range(0, corpus.shape[0], corpus_chunk_size):
        corpus_chunk = prepare_corpus(corpus[corpus_start : corpus_start + corpus_chunk_size])
        for chunk, query_start in enumerate(query_starts):
            scores = score(prepare_query(queries[query_start : query_start + query_chunk_size]), corpus_chunk)
            found = _top_k(scores, top_k, query_start, corpus_start)
            if corpus_start == 0:
                best.append(found)
            else:
                best[chunk] = _merge(best[chunk], found, top_k)
    scores, ids = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores, ids


def descending(values: FloatArray) -> IndexArray:
    """The order of ``values`` from high to low along the last axis. Equal values keep their order."""
    return np.argsort(-values, axis=-1, kind="stable")


def _steps(
    score_function: ScoreFunction, like_input: Callable[[Any], Any]
) -> tuple[Callable[[Matrix], Any], Callable[[Matrix], Any], Callable[[Any, Any], FloatArray]]:
    """The functions to apply to a chunk of queries, to a chunk of the corpus, and to both."""
    if score_function is cos_sim:
        return lambda rows: unit_rows(to_float(rows)), lambda rows: transposed(unit_rows(to_float(rows))), product
    if score_function is dot_score:
        return to_float, lambda rows: transposed(to_float(rows)), product

    def score(query_chunk: Any, corpus_chunk: Any) -> FloatArray:
        scores: FloatArray = to_float(to_array(score_function(query_chunk, corpus_chunk)))
        expected = (query_chunk.shape[0], corpus_chunk.shape[0])
        if scores.shape != expected:
            raise InvalidArgumentError(
                f"score_function returned the shape {scores.shape} for {expected[0]} queries and {expected[1]} rows of "
                f"the corpus. It has to return {expected}, as cos_sim and dot_score do."
            )
        return scores

    return like_input, like_input, score


def _top_k(scores: FloatArray, k: int, query_start: int, corpus_start: int) -> tuple[FloatArray, IndexArray]:
    k = min(k, scores.shape[1])
    maxima = _stride_maxima(scores, at_least=max(4 * k, 256))
    if np.isnan(maxima).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise InvalidArgumentError(
            f"The score of query {query_start + row} and row {corpus_start + column} of the corpus is NaN, which has "
            "no rank. Look for NaN or infinite values in these two embeddings."
        )
    # k groups have a maximum of at least this, so the k best scores are at least this. Few others are. Finding these
    # takes a tenth of the time of `argpartition` over all scores.
    bounds = np.partition(maxima, -k, axis=1)[:, -k]
    ids = np.empty((len(scores), k), np.intp)
    columns = scores.shape[1]
    step = max(1, _BLOCK_ELEMENTS // columns)  # bounds the memory if most scores are equal, so that all are candidates
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        candidates = np.flatnonzero(block >= bounds[start : start + step, None])
        rows = candidates // columns
        order = np.lexsort((-block.ravel()[candidates], rows))  # stable: equal scores stay in the order of the columns
        first_of_row = np.searchsorted(rows, np.arange(len(block)))
        ids[start : start + step] = candidates[order[first_of_row[:, None] + np.arange(k)]] % columns
    return np.take_along_axis(scores, ids, axis=1), ids + corpus_start


def _stride_maxima(scores: FloatArray, at_least: int) -> FloatArray:
    """Maxima of disjoint groups of columns, [rows, min(at_least, columns) or more]; NaN if a group has one."""
    rows, columns = scores.shape
    members = max(1, columns // at_least)
    groups = columns // members
    covered = members * groups
    # Column c is in group c % groups: `max` runs fastest along the first of two axes, and near duplicates that are
    # neighbours in the corpus count for several groups.
    maxima: FloatArray = scores[:, :covered].reshape(rows, members, groups).max(axis=1)
    return np.column_stack((maxima, scores[:, covered:].max(axis=1))) if covered < columns else maxima


def _merge(
    earlier: tuple[FloatArray, IndexArray], later: tuple[FloatArray, IndexArray], k: int
) -> tuple[FloatArray, IndexArray]:
    scores = np.concatenate((earlier[0], later[0]), axis=1)
    ids = np.concatenate((earlier[1], later[1]), axis=1)
    order = descending(scores)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
