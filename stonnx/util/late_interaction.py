"""MaxSim: the score of late-interaction (ColBERT) embeddings, which have a vector for each token.

The score of a query and a document is the sum over the query's rows of the largest dot product with any row of the
document: ``sum_i max_j (a_i . b_j)`` (https://arxiv.org/abs/2004.12832, equation 3). Nothing is normalized.

Embeddings are a list of arrays [rows, dimension], an array [items, rows, dimension] in which rows of zeros are padding,
or one array [rows, dimension], which is one item. Inputs are numpy arrays or torch tensors. The result is an array, or
a torch tensor if an input is one, and is always float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer
from stonnx._arrays import FloatArray, is_tensor, result_like, to_array, to_float
from stonnx._errors import ArgumentTypeError, InvalidArgumentError, UnsupportedError

logger = logging.getLogger("stonnx")

# The score of a document without rows: below every real one. sentence-transformers has the same number.
_EMPTY_DOCUMENT_SCORE = np.float32(-1e9)

# Numbers of documents, or of dot products, at a time: 16 MB. Smaller blocks spend their time on the start of products.
_BLOCK_ELEMENTS = 1 << 22


def maxsim(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: Any = None,
) -> FloatArray:
    """MaxSim of every query with every document.

    Args:
        a: Queries: a list of [rows, dimension], [items, rows, dimension], or one query [rows, dimension].
        b: Documents, in the same forms.
        a_mask: Weight of each query row, bool or float: [items, rows], [rows] for one query, or a list of [rows]. None:
            every row counts, except rows of zeros in [items, rows, dimension].
        b_mask: Which document rows count, in the same forms.
        chunk_elements: The most numbers of documents and of products in memory at a time. The scores do not depend
            on it. None: as many as fit a processor's cache.
        length_normalize: Divide each score by the number of the query's rows that count (at least 1).
        device: None or ``"cpu"``: the function runs there.

    Returns:
        float32 [queries, documents]. The score of a document without rows is -1e9.

    Raises:
        InvalidArgumentError: Dimensions differ, a mask does not fit, or the embeddings have another number of axes.
        UnsupportedError: ``device`` is another device.

    Example:
        >>> query = [[1.0, 0.0], [0.0, 1.0]]
        >>> documents = [np.array([[1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 2.0]])]
        >>> maxsim(np.array(query), documents)
        array([[1. , 2.5]], dtype=float32)
    """
    _check_device(device)
    chunk_elements = check_integer("chunk_elements", chunk_elements, least=None, optional=True)
    queries, documents = _items(a, a_mask, "a"), _items(b, b_mask, "b")
    like_input = _result_like(a, b)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    if not len(queries) or not len(documents):
        return cast(FloatArray, like_input(scores))
    dimension = _check_dimensions(queries, documents)
    rows = np.concatenate([query.rows.reshape(len(query.rows), dimension) for query in queries])
    weights = np.concatenate([query.weights for query in queries])
    starts = np.cumsum([0, *(len(query.rows) for query in queries)])
    for first, last, block, lengths in _blocks(documents, dimension, len(rows), chunk_elements):
        best = _best(rows, block, lengths)
        best *= weights[:, np.newaxis]
        for number in range(len(queries)):
            scores[number, first:last] = best[starts[number] : starts[number + 1]].sum(axis=0, dtype=np.float32)
    _fill_empty(scores, documents)
    if length_normalize:
        scores /= np.array([[query.count] for query in queries], dtype=np.float32)
    return cast(FloatArray, like_input(scores))


def maxsim_pairwise(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: Any = None,
) -> FloatArray:
    """MaxSim of each query with the document of the same index.

    Args:
        a: Queries, as :func:`maxsim` takes them.
        b: As many documents.
        a_mask, b_mask, chunk_elements, length_normalize, device: As for :func:`maxsim`.

    Returns:
        float32 [pairs].

    Raises:
        InvalidArgumentError: There are not as many queries as documents, or as for :func:`maxsim`.

    Example:
        >>> query, document = np.eye(2), np.array([[0.5, 0.5], [0.0, 2.0]])
        >>> maxsim_pairwise([query], [document])
        array([2.5], dtype=float32)
    """
    _check_device(device)
    chunk_elements = check_integer("chunk_elements", chunk_elements, least=None, optional=True)
    queries, documents = _items(a, a_mask, "a"), _items(b, b_mask, "b")
    if len(queries) != len(documents):
        raise InvalidArgumentError(
            f"a and b, queries and documents, must hold the same number of items to score as pairs, got {len(queries)} "
            f"and {len(documents)}. maxsim() scores every query with every document."
        )
    scores = np.zeros(len(queries), dtype=np.float32)
    if len(queries):
        dimension = _check_dimensions(queries, documents)
        for number, (query, document) in enumerate(zip(queries, documents, strict=True)):
            rows = query.rows.reshape(len(query.rows), dimension)
            if len(document.rows):
                best = _best(rows, document.rows, np.array([len(document.rows)]))[:, 0]
                scores[number] = (best * query.weights).sum(dtype=np.float32)
        _fill_empty(scores, documents)
        if length_normalize:
            scores /= np.array([query.count for query in queries], dtype=np.float32)
    return cast(FloatArray, _result_like(a, b)(scores))


def mean_maxsim(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: Any = None,
) -> FloatArray:
    """:func:`maxsim` divided by the number of the query's rows: comparable across queries of different length.

    Example:
        >>> mean_maxsim(np.eye(2), [np.array([[0.5, 0.5], [0.0, 2.0]])])
        array([[1.25]], dtype=float32)
    """
    return maxsim(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def mean_maxsim_pairwise(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: Any = None,
) -> FloatArray:
    """:func:`maxsim_pairwise` divided by the number of each query's rows.

    Example:
        >>> mean_maxsim_pairwise([np.eye(2)], [np.array([[0.5, 0.5], [0.0, 2.0]])])
        array([1.25], dtype=float32)
    """
    return maxsim_pairwise(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


@dataclass(frozen=True)
class _Item:
    """A query or a document: its rows that count, [rows, dimension], their weights, [rows], and how many there are."""

    rows: npt.NDArray[Any]
    weights: npt.NDArray[np.float32]
    count: int


def _items(embeddings: Any, mask: Any, name: str) -> list[_Item]:
    """Queries or documents one by one, without the rows that do not count."""
    padded = False
    if isinstance(embeddings, list | tuple):
        arrays = [_float(item) for item in embeddings]
    else:
        whole = _float(embeddings)
        if whole.ndim == 2:
            arrays = [whole]
        elif whole.ndim == 3:
            arrays, padded = list(whole), True
        else:
            raise InvalidArgumentError(
                f"{name} must be a list of arrays [rows, dimension], an array [items, rows, dimension] or one item "
                f"[rows, dimension], got shape {list(whole.shape)}."
            )
    for index, array in enumerate(arrays):
        if array.ndim != 2 and array.size:
            raise InvalidArgumentError(f"{name}[{index}] must have the shape [rows, dimension], got {[*array.shape]}.")
    if mask is not None:
        masks = _masks(mask, arrays, f"{name}_mask")
        return [_masked(array, weights) for array, weights in zip(arrays, masks, strict=True)]
    if padded:
        return [_masked(array, np.asarray(array.any(axis=1), np.float32)) for array in arrays]
    return [_Item(array, np.ones(len(array), np.float32), max(len(array), 1)) for array in arrays]


def _masked(array: npt.NDArray[Any], weights: npt.NDArray[np.float32]) -> _Item:
    kept = np.flatnonzero(weights)
    if len(weights) > len(array):
        # A mask may also count rows after an item's own: the zeros of the padding.
        array = np.concatenate([array, np.zeros((len(weights) - len(array), array.shape[1]), array.dtype)])
    return _Item(array if len(kept) == len(array) else array[kept], weights[kept], max(len(kept), 1))


def _masks(mask: Any, arrays: Sequence[npt.NDArray[Any]], name: str) -> list[npt.NDArray[np.float32]]:
    """The weights of each item, [width]."""
    width = max((len(array) for array in arrays), default=0)
    rows: list[Any]
    if isinstance(mask, list | tuple):
        rows = [np.asarray(_float(one), dtype=np.float32).reshape(-1) for one in mask]
        widest = max((len(row) for row in rows), default=0)
        rows = [np.pad(row, (0, widest - len(row))) for row in rows]
    elif isinstance(mask, np.ndarray) or is_tensor(mask):
        whole = np.asarray(_float(mask), dtype=np.float32)
        rows = list(np.atleast_2d(whole))
        widest = whole.shape[-1] if whole.ndim else 0
    else:
        raise ArgumentTypeError(
            f"{name} must be an array, a tensor, or a list of masks for each item, got {type(mask).__name__}."
        )
    if widest != width:
        raise InvalidArgumentError(f"{name} covers {widest} tokens, and the longest item has {width} rows.")
    if len(rows) == 1:
        rows *= len(arrays)
    if len(rows) != len(arrays):
        raise InvalidArgumentError(f"{name} has {len(rows)} items for {len(arrays)} embeddings.")
    return rows


def _float(value: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.asarray(to_float(to_array(value)))
    return array


def _result_like(a: Any, b: Any) -> Callable[[Any], Any]:
    given = [*(a if isinstance(a, list | tuple) else [a]), *(b if isinstance(b, list | tuple) else [b])]
    # Documents come before queries because the result is on their device.
    return result_like(*reversed(given)) if given else lambda scores: scores


def _check_device(device: Any) -> None:
    if device is not None and str(device) != "cpu":
        raise UnsupportedError(f"MaxSim is computed on the CPU, not on {str(device)!r}. Leave device out.")


def _check_dimensions(queries: Sequence[_Item], documents: Sequence[_Item]) -> int:
    sizes = {item.rows.shape[1] for item in (*queries, *documents) if item.rows.ndim == 2 and len(item.rows)}
    if len(sizes) > 1:
        raise InvalidArgumentError(f"All rows must have the same dimension, got {sorted(sizes)}.")
    return int(next(iter(sizes), 1))


def _blocks(
    documents: Sequence[_Item], dimension: int, query_rows: int, budget: int | None
) -> Iterator[tuple[int, int, npt.NDArray[Any], npt.NDArray[np.intp]]]:
    """Some documents at a time: their first and last number, their rows in one array, and how many each has."""
    most = max(1, (budget or _BLOCK_ELEMENTS) // max(dimension, query_rows))
    lengths = np.array([len(document.rows) for document in documents])
    first = 0
    while first < len(documents):
        last, rows = first + 1, int(lengths[first])
        while last < len(documents) and rows + lengths[last] <= most:
            rows += int(lengths[last])
            last += 1
        some = [document.rows for document in documents[first:last] if len(document.rows)]
        block = some[0] if len(some) == 1 else np.concatenate(some) if some else np.zeros((0, dimension), np.float32)
        yield first, last, block, lengths[first:last]
        first = last


def _best(rows: npt.NDArray[Any], block: npt.NDArray[Any], lengths: npt.NDArray[np.intp]) -> Any:
    """The largest product of each query row with the rows of each document, [query rows, documents]; 0 for no rows."""
    best = np.zeros((len(rows), len(lengths)), dtype=np.float32)
    there = np.flatnonzero(lengths)
    if len(there) and len(rows):
        products = rows @ block.T
        sizes = lengths[there]
        if (sizes == sizes[0]).all():
            found = products.reshape(len(rows), len(there), sizes[0]).max(axis=2)
        else:
            found = np.maximum.reduceat(products, np.cumsum(sizes) - sizes, axis=1)
        best[:, there] = found
    return best


def _fill_empty(scores: npt.NDArray[np.float32], documents: Sequence[_Item]) -> None:
    empty = np.array([not len(document.rows) for document in documents])
    if empty.any():
        logger.warning(
            "%d documents have no row that counts, the first at index %d. Their score is %.0e. Usual causes: a mask "
            "that excludes everything, or skiplist_words or keep_only_token_ids of the model that leave no token.",
            int(empty.sum()),
            int(empty.argmax()),
            _EMPTY_DOCUMENT_SCORE,
        )
        scores[..., empty] = _EMPTY_DOCUMENT_SCORE
