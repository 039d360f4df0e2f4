"""Qdrant: dense and sparse vectors in the form of its client. Qdrant has no place for a model of one's own.

Example:
    >>> from stonnx.integrations.qdrant import dense_vectors, sparse_vectors
    >>> model, splade = SentenceTransformer("..."), SparseEncoder("...")  # doctest: +SKIP
    >>> dense = dense_vectors(model.encode_document(texts))  # doctest: +SKIP
    >>> sparse = sparse_vectors(splade.encode_document(texts))  # doctest: +SKIP
    >>> points = [  # doctest: +SKIP
    ...     PointStruct(id=index, vector={"dense": dense[index], "sparse": sparse[index]}, payload={"text": text})
    ...     for index, text in enumerate(texts)
    ... ]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client.models import Distance, SparseVector, VectorParams

from stonnx._errors import InvalidArgumentError
from stonnx.integrations._sparse import csr_rows
from stonnx.sentence_transformer import SentenceTransformer

_DISTANCES = {
    "cosine": Distance.COSINE,
    "dot": Distance.DOT,
    "euclidean": Distance.EUCLID,
    "manhattan": Distance.MANHATTAN,
}


def vector_params(model: SentenceTransformer, **options: Any) -> VectorParams:
    """The size and the distance of a collection for a model's vectors.

    Args:
        model: Its dimensions and its similarity are taken.
        **options: Further fields of ``VectorParams``, as ``on_disk``.
    """
    size = model.truncate_dim or model.get_embedding_dimension()
    return VectorParams(size=size, distance=_DISTANCES[str(model.similarity_fn_name)], **options)


def dense_vectors(embeddings: npt.NDArray[Any]) -> list[list[float]]:
    """Rows of an array as lists of floats.

    Args:
        embeddings: [texts, dimensions], of ``encode``.

    Raises:
        InvalidArgumentError: The array does not have two dimensions.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2:
        raise InvalidArgumentError(f"embeddings must be an array [texts, dimensions], got shape {list(rows.shape)}.")
    vectors: list[list[float]] = rows.astype(np.float32, copy=False).tolist()
    return vectors


def sparse_vectors(embeddings: Any) -> list[SparseVector]:
    """Rows of a sparse matrix as Qdrant's sparse vectors: the indices and values that are not zero.

    Args:
        embeddings: scipy CSR [texts, vocabulary], of ``SparseEncoder.encode``.

    Raises:
        InvalidArgumentError: It is not a scipy CSR matrix or array.
    """
    if not all(hasattr(embeddings, name) for name in ("indptr", "indices", "data")):
        raise InvalidArgumentError(
            f"embeddings must be the scipy CSR of SparseEncoder.encode, got {type(embeddings).__name__}."
        )
    return [SparseVector(indices=indices, values=values) for indices, values in csr_rows(embeddings)]
