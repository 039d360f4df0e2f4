"""Search in an index of faiss or usearch, rescored with the float queries.

The two libraries build, search and read an index differently: each has a :class:`_Library`. They share the rest.
Source: https://huggingface.co/blog/embedding-quantization
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer, described
from stonnx._arrays import Embeddings, as_rows, to_array, to_float
from stonnx._errors import InvalidArgumentError, MissingDependencyError
from stonnx.util._nearest import descending
from stonnx.util.quantization import Precision, dequantize, quantization_ranges, quantize_embeddings
from stonnx.util.retrieval import SearchHit

logger = logging.getLogger(__name__)

_HNSW_LINKS = 16

Array: TypeAlias = npt.NDArray[Any]
_MOST_HITS = 2**31 - 1  # the largest count in both libraries

Found: TypeAlias = tuple[Array, Array, npt.NDArray[np.bool_]]
"""Scores, corpus rows, and which of them are filled: [queries, k] each. Both libraries pad short results."""

SearchResult: TypeAlias = tuple[Any, ...]
"""``(results, seconds)``, or with ``output_index`` ``(results, seconds, index)``."""


@dataclass(frozen=True)
class _Library:
    name: str
    precisions: tuple[Precision, ...]
    build: Callable[[Array, Precision, bool], Any]  # codes of the corpus, precision, exact -> index
    search: Callable[[Any, Array, int, bool], Found]  # index, codes of the queries, k, exact
    read: Callable[[Any, Array], Array]  # index, corpus rows [n] -> their codes [n, width]
    bits_or_width: str  # the attribute of an index that has its width, of packed codes in bits


def semantic_search_faiss(
    query_embeddings: Embeddings,
    corpus_embeddings: Embeddings | None = None,
    corpus_index: Any = None,
    corpus_precision: Literal["float32", "uint8", "ubinary"] = "float32",
    top_k: int = 10,
    ranges: Embeddings | None = None,
    calibration_embeddings: Embeddings | None = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    exact: bool = True,
    output_index: bool = False,
) -> SearchResult:
    """Find the rows of a corpus nearest to each query, with faiss. Needs ``pip install faiss-cpu``.

    With float queries and a quantized corpus, the search finds ``top_k * rescore_multiplier`` rows with quantized
    queries. The dot products of the float queries with these rows then decide.

    Args:
        query_embeddings: [queries, dimension] or one vector; floats, or already quantized as the corpus.
        corpus_embeddings: [corpus, dimension], quantized to ``corpus_precision``. Either this or ``corpus_index``.
        corpus_index: An index from an earlier call with ``output_index=True``, or one that you made.
        corpus_precision: "float32" and "uint8" are compared by dot product, "ubinary" by Hamming distance.
        top_k: Hits per query at most.
        ranges: The ranges that the corpus was quantized with: see :func:`quantize_embeddings`. For "uint8" only.
        calibration_embeddings: Embeddings to take the ranges from if ``ranges`` is None.
        rescore: Whether to rescore.
        rescore_multiplier: How many times ``top_k`` to rescore.
        exact: Compare with every row; otherwise build an approximate (HNSW) index.
        output_index: Whether to return the index too.

    Returns:
        ``(results, seconds)`` or ``(results, seconds, index)``: for each query its hits, best first, as
        :func:`semantic_search` gives them. Rescored scores are dot products. Others are the scores of faiss: for
        "ubinary", the number of different bits.

    Raises:
        InvalidArgumentError: Both or none of ``corpus_embeddings`` and ``corpus_index``, another precision, a size
            below 1, or an argument that :func:`quantize_embeddings` refuses.
        MissingDependencyError: faiss is not installed.

    Example:
        >>> import numpy as np
        >>> corpus = np.array([[0.0, 1.0], [0.6, 0.8]], np.float32)
        >>> semantic_search_faiss(corpus[:1], corpus, top_k=1, rescore=False)[0]  # doctest: +SKIP
        [[{'corpus_id': 0, 'score': 1.0}]]
    """
    return _search(
        _FAISS,
        query_embeddings,
        corpus_embeddings,
        corpus_index,
        corpus_precision,
        top_k,
        ranges,
        calibration_embeddings,
        rescore,
        rescore_multiplier,
        exact,
        output_index,
    )


def semantic_search_usearch(
    query_embeddings: Embeddings,
    corpus_embeddings: Embeddings | None = None,
    corpus_index: Any = None,
    corpus_precision: Literal["float32", "int8", "ubinary", "binary"] = "float32",
    top_k: int = 10,
    ranges: Embeddings | None = None,
    calibration_embeddings: Embeddings | None = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    exact: bool = True,
    output_index: bool = False,
) -> SearchResult:
    """Find the rows of a corpus nearest to each query, with usearch. Needs ``pip install usearch``.

    Arguments, results and errors are those of :func:`semantic_search_faiss`, except for these.

    Args:
        corpus_precision: "float32" is compared by cosine, "int8" by dot product, "binary" and "ubinary" by Hamming
            distance. A score that is not rescored is a distance, so lower is better: for "float32" it is 1 - cosine.
        ranges: For "int8" only.
        exact: Compare with every row; otherwise search approximately (HNSW) in the same index.

    Raises:
        MissingDependencyError: usearch is not installed.

    Example:
        >>> import numpy as np
        >>> corpus = np.array([[0.0, 1.0], [0.6, 0.8]], np.float32)
        >>> semantic_search_usearch(corpus[:1], corpus, top_k=1, rescore=False)[0]  # doctest: +SKIP
        [[{'corpus_id': 0, 'score': 0.0}]]
    """
    return _search(
        _USEARCH,
        query_embeddings,
        corpus_embeddings,
        corpus_index,
        corpus_precision,
        top_k,
        ranges,
        calibration_embeddings,
        rescore,
        rescore_multiplier,
        exact,
        output_index,
    )


def _search(
    library: _Library,
    query_embeddings: Embeddings,
    corpus_embeddings: Embeddings | None,
    index: Any,
    precision: Precision,
    top_k: int,
    ranges: Embeddings | None,
    calibration_embeddings: Embeddings | None,
    rescore: bool,
    rescore_multiplier: int,
    exact: bool,
    output_index: bool,
) -> SearchResult:
    if (corpus_embeddings is None) == (index is None):
        raise InvalidArgumentError("Pass the corpus as one of corpus_embeddings and corpus_index, not as both or none.")
    if precision not in library.precisions:
        raise InvalidArgumentError(
            f"corpus_precision {precision!r} is not supported with {library.name}; use {', '.join(library.precisions)}."
        )
    top_k = check_integer("top_k", top_k, most=_MOST_HITS)
    rescore_multiplier = check_integer("rescore_multiplier", rescore_multiplier, most=_MOST_HITS)
    if index is None:
        codes = as_rows(to_array(corpus_embeddings))
        to_float(codes[:0])  # for its error, if they hold no numbers
        index = library.build(_as_stored(codes, precision), precision, exact)

    floats = queries = as_rows(to_array(query_embeddings))
    to_float(queries[:0])
    is_quantized = queries.dtype in (np.int8, np.uint8)
    if rescore and (is_quantized or precision == "float32"):
        reason = "the queries are quantized already" if is_quantized else "the corpus is not quantized"
        logger.warning("There is nothing to rescore with: %s. Pass rescore=False.", reason)
        rescore = False
    if not is_quantized:
        if precision in ("int8", "uint8") and ranges is None:
            ranges = quantization_ranges(queries, precision, calibration_embeddings)
        queries = quantize_embeddings(queries, precision, ranges)

    stored = _as_stored(queries, precision)
    width = getattr(index, library.bits_or_width, None)
    if width is None:
        raise InvalidArgumentError(f"corpus_index must be an index of {library.name}, got {described(index)}.")
    width //= 8 if precision in ("binary", "ubinary") else 1
    if stored.shape[1] != width:
        raise InvalidArgumentError(
            f"query_embeddings have {stored.shape[1]} columns and the corpus {width}, stored as {precision}. Encode "
            "both with the same model, the same truncate_dim and the same precision."
        )
    start = time.perf_counter()
    scores, rows, filled = library.search(index, stored, top_k * rescore_multiplier if rescore else top_k, exact)
    if rescore and filled.any():
        codes = library.read(index, rows[filled])
        if precision in ("int8", "uint8"):
            values: Array = dequantize(codes, ranges)
        else:
            values = np.unpackbits(codes, axis=-1, count=floats.shape[1])  # the last byte may be filled up
        scores = np.full(rows.shape, -np.inf)
        scores[filled] = np.einsum("ij,ij->i", floats[np.nonzero(filled)[0]], values, dtype=np.float64)
        best = descending(scores)[:, :top_k]
        scores, rows, filled = (np.take_along_axis(array, best, axis=1) for array in (scores, rows, filled))
    seconds = time.perf_counter() - start

    results: list[list[SearchHit]] = [
        [
            {"corpus_id": int(row), "score": float(score)}
            for row, score, is_filled in zip(*hits, strict=True)
            if is_filled
        ]
        for hits in zip(rows, scores, filled, strict=True)
    ]
    return (results, seconds, index) if output_index else (results, seconds)


def _as_stored(codes: Array, precision: Precision) -> Array:
    # An index reads binary codes as bytes, so this restores the bytes from before the subtraction of 128.
    return codes.view(np.uint8) ^ 0x80 if precision == "binary" else codes


def _build_faiss(codes: Array, precision: Precision, exact: bool) -> Any:
    faiss = _import("faiss", "faiss-cpu")
    if precision == "ubinary":
        bits = codes.shape[1] * 8
        index = faiss.IndexBinaryFlat(bits) if exact else faiss.IndexBinaryHNSW(bits, _HNSW_LINKS)
    elif exact:
        index = faiss.IndexFlatIP(codes.shape[1])
    else:
        index = faiss.IndexHNSWFlat(codes.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.add(codes)
    return index


def _search_faiss(index: Any, codes: Array, k: int, exact: bool) -> Found:
    scores, rows = index.search(codes, k)
    return scores, rows, rows != -1


def _read_faiss(index: Any, rows: Array) -> Array:
    return np.array([index.reconstruct(row) for row in rows.tolist()])


def _build_usearch(codes: Array, precision: Precision, exact: bool) -> Any:
    index_class = _import("usearch.index", "usearch").Index
    if precision == "float32":
        index = index_class(ndim=codes.shape[1], metric="cos", dtype="f32")
    elif precision == "int8":
        index = index_class(ndim=codes.shape[1], metric="ip", dtype="i8")
    else:
        index = index_class(ndim=codes.shape[1] * 8, metric="hamming", dtype="b1")
    index.add(np.arange(len(codes)), codes)
    return index


def _search_usearch(index: Any, codes: Array, k: int, exact: bool) -> Found:
    matches = index.search(codes, count=k, exact=exact)
    # One query gives vectors without padding. Several give matrices, and `counts` says how much of each row is filled.
    scores, rows = np.atleast_2d(matches.distances), np.atleast_2d(matches.keys)
    counts = np.asarray(getattr(matches, "counts", rows.shape[1]))
    return scores, rows, np.arange(rows.shape[1]) < counts.reshape(-1, 1)


def _read_usearch(index: Any, rows: Array) -> Array:
    return np.array(index.get(rows))


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingDependencyError(
            f"semantic_search_{name} needs {name}, which is not installed: pip install {package}"
        ) from error


_FAISS = _Library("faiss", ("float32", "uint8", "ubinary"), _build_faiss, _search_faiss, _read_faiss, "d")
_USEARCH = _Library(
    "usearch", ("float32", "int8", "ubinary", "binary"), _build_usearch, _search_usearch, _read_usearch, "ndim"
)
