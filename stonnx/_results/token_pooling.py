"""Fewer vectors for a text that has one for each token: ``stonnx.multi_vector_encoder.modules`` has these names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._arguments import as_integer, check_callable, check_integer, check_number
from stonnx._arrays import is_tensor, result_like, to_array
from stonnx._errors import InvalidArgumentError, MissingDependencyError

Rows = npt.NDArray[np.floating[Any]]
"""The vectors of a text's tokens: [rows, dimension]."""

_SIDES = ("left", "right")


class BaseTokenPooling(ABC):
    """A way to make fewer vectors of a text's. A subclass has :meth:`pool_one`.

    Args:
        tasks: What texts are pooled: ``"query"``, ``"document"`` or both. Texts that are called neither count as
            documents. None: documents.
    """

    def __init__(self, *, tasks: str | Sequence[str] | None = None) -> None:
        self.tasks = ["document"] if tasks is None else [tasks] if isinstance(tasks, str) else list(tasks)

    def applies_to(self, task: str | None) -> bool:
        """Whether texts of a task are pooled. None counts as ``"document"``."""
        return (task or "document") in self.tasks

    @abstractmethod
    def pool_one(self, embedding: Any, **kwargs: Any) -> Any:
        """The vectors of one text [rows, dimension] to fewer of them."""

    def pool(
        self,
        embeddings: Any,
        *,
        task: str | None = None,
        attention_mask: Any = None,
        padding_side: str = "right",
    ) -> Any:
        """Pool texts that are encoded already.

        Args:
            embeddings: A list of arrays [rows, dimension], or an array [texts, rows, dimension] with padding.
            task: What the texts were encoded as. If it is not among :attr:`tasks`, they stay as they are.
            attention_mask: Which rows of a padded array count, bool [texts, rows]. None: rows of zeros at the side of
                the padding do not.
            padding_side: ``"right"`` or ``"left"``: where a padded array has its padding.

        Returns:
            A list for a list, a padded array for an array.

        Raises:
            InvalidArgumentError: The embeddings have another number of axes, or ``padding_side`` is another one.
        """
        if not self.applies_to(task):
            return embeddings
        if isinstance(embeddings, list):
            if embeddings and embeddings[0].ndim != 2:
                raise InvalidArgumentError(
                    f"list entries must be 2D: arrays [rows, dimension], got the shape {tuple(embeddings[0].shape)}."
                )
            return [self.pool_one(rows) for rows in embeddings]
        if not (isinstance(embeddings, np.ndarray) or is_tensor(embeddings)):
            raise InvalidArgumentError(
                "embeddings must be a list of arrays [rows, dimension] or a padded array [texts, rows, dimension], "
                f"got {type(embeddings).__name__}."
            )
        if embeddings.ndim != 3:
            raise InvalidArgumentError(
                f"Tensor input must be 3D: an array or tensor [texts, rows, dimension], got the shape "
                f"{tuple(embeddings.shape)}."
            )
        if padding_side not in _SIDES:
            raise InvalidArgumentError(f"padding_side must be 'left' or 'right', got {padding_side!r}.")
        array = to_array(embeddings)
        kept = _real_rows(array, padding_side) if attention_mask is None else to_array(attention_mask).astype(bool)
        parts = [embeddings[number][_indices(mask, embeddings)] for number, mask in enumerate(kept)]
        pooled = [to_array(self.pool_one(rows)) for rows in parts]
        width = max(map(len, pooled), default=0)
        result = np.zeros((len(pooled), width, array.shape[2]), dtype=array.dtype)
        for number, rows in enumerate(pooled):
            start = 0 if padding_side == "right" else width - len(rows)
            result[number, start : start + len(rows)] = rows
        return result_like(embeddings)(result)


class HierarchicalTokenPooling(BaseTokenPooling):
    """The means of clusters of similar vectors take their place.

    Ward's linkage on cosine distances makes the clusters, as in https://arxiv.org/abs/2409.14683. Vectors should have
    the length 1. It needs scipy.

    Args:
        pool_factor: Of so many vectors, about one remains. 1: all do.
        num_protected_tokens: So many vectors at the beginning are not pooled, as that of ``[CLS]``.
        normalize_embeddings: Whether all vectors that remain get the length 1.
        tasks: As for :class:`BaseTokenPooling`.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.1]])
        >>> HierarchicalTokenPooling(2).pool([vectors])[0].shape  # doctest: +SKIP
        (2, 2)
    """

    def __init__(
        self,
        pool_factor: float = 1.0,
        *,
        num_protected_tokens: int = 1,
        normalize_embeddings: bool = True,
        tasks: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks=tasks)
        pool_factor = check_number("pool_factor", pool_factor)
        if pool_factor < 1:
            raise InvalidArgumentError(f"pool_factor must be >= 1, got {pool_factor}.")
        protected = as_integer(num_protected_tokens)
        if protected is not None and protected < 0:
            raise InvalidArgumentError(f"num_protected_tokens must be >= 0, got {protected}.")
        self.pool_factor = pool_factor
        self.num_protected_tokens = check_integer("num_protected_tokens", num_protected_tokens, least=0)
        self.normalize_embeddings = normalize_embeddings

    def pool_one(self, embedding: Any, **kwargs: Any) -> Any:
        """The vectors of one text [rows, dimension] to about ``rows / pool_factor``."""
        like_input = result_like(embedding)
        rows = to_array(embedding)
        free = rows[self.num_protected_tokens :]
        clusters = max(int(len(free) // self.pool_factor), 1)
        if self.pool_factor > 1 and clusters < len(free):
            rows = np.concatenate([rows[: self.num_protected_tokens], _cluster_means(free, clusters)])
        if self.normalize_embeddings:
            wide = rows.astype(np.float32 if rows.dtype.itemsize < 4 else rows.dtype)
            rows = (wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)).astype(rows.dtype)
        return like_input(rows)


class LambdaTokenPooling(BaseTokenPooling):
    """A function pools the vectors of each text.

    Args:
        pool_fn: Gets an array [rows, dimension] and returns one with other rows.
        tasks: As for :class:`BaseTokenPooling`.

    Example:
        >>> LambdaTokenPooling(lambda rows: rows[::2]).pool([np.ones((5, 2))])[0].shape
        (3, 2)
    """

    def __init__(self, pool_fn: Callable[[Any], Any], *, tasks: str | Sequence[str] | None = None) -> None:
        super().__init__(tasks=tasks)
        check_callable("pool_fn", pool_fn)
        self.pool_fn = pool_fn

    def pool_one(self, embedding: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.pool_fn(embedding)


class TensorTokenPooling(BaseTokenPooling):
    """A pooling of sentence-transformers, which takes torch tensors, for arrays."""

    def __init__(self, pooling: Any) -> None:
        super().__init__(tasks=getattr(pooling, "tasks", None))
        self.pooling = pooling

    def applies_to(self, task: str | None) -> bool:
        """What that pooling says."""
        return bool(self.pooling.applies_to(task))

    def pool_one(self, embedding: Any, **kwargs: Any) -> Any:
        """What that pooling returns, as an array."""
        from stonnx._results.dense import to_torch

        return to_array(self.pooling.pool_one(to_torch(embedding)))


def _cluster_means(rows: Rows, count: int) -> Rows:
    """The means of so many clusters of rows, in the order of the clusters' numbers."""
    try:
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise MissingDependencyError(
            'HierarchicalTokenPooling needs scipy, which is not installed: pip install "stonnx[sparse]"'
        ) from error
    wide = rows.astype(np.float32)
    distances = np.clip(1 - wide @ wide.T, 0, 2)
    linkage = hierarchy.linkage(squareform(distances, checks=False), method="ward")
    labels = hierarchy.fcluster(linkage, t=count, criterion="maxclust")
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), rows.shape[1]), dtype=rows.dtype)
    np.add.at(sums, places, rows)
    means: Rows = (sums / counts[:, None]).astype(rows.dtype)
    return means


def _real_rows(array: Rows, side: str) -> npt.NDArray[np.bool_]:
    """All rows but those of zeros at the side of the padding: bool [texts, rows]."""
    nonzero = np.asarray(array.any(axis=-1))
    if side == "right":
        return np.asarray(np.cumsum(nonzero[:, ::-1], axis=1)[:, ::-1] > 0)
    return np.asarray(np.cumsum(nonzero, axis=1) > 0)


def _indices(mask: npt.NDArray[np.bool_], embeddings: Any) -> Any:
    """The places of a mask, in the kind of the embeddings that they index."""
    return result_like(embeddings)(np.flatnonzero(mask))
