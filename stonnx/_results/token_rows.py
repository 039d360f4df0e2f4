"""The vectors of each text's tokens as results: one array [rows, dimension] for each text, of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._engine.call import BatchResult
from stonnx._engine.request import Request
from stonnx._engine.route import LoadedRoute
from stonnx._results.features import Features
from stonnx._results.token_pooling import BaseTokenPooling

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ragged:
    """The rows of several texts, one text below the other: float32 [rows of all, dimension].

    Attributes:
        rows: All rows.
        counts: The number of rows of each text, int64 [texts].

    Example:
        >>> batch = np.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]], dtype=np.float32)
        >>> ragged = Ragged.of(batch, np.array([[1, 0, 1], [1, 1, 0]]))
        >>> [part.ravel().tolist() for part in ragged[np.array([1, 0, 1])].split()]
        [[4.0, 5.0], [1.0, 3.0], [4.0, 5.0]]
    """

    rows: FloatArray
    counts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, batch: FloatArray, mask: npt.NDArray[Any]) -> Ragged:
        """The rows that a mask [texts, tokens] keeps of a batch [texts, tokens, dimension]."""
        kept = mask.astype(np.bool_)
        return cls(batch[kept], kept.sum(axis=1))

    def __getitem__(self, texts: npt.NDArray[np.intp]) -> Ragged:
        """Some of the texts, in any order, any of them several times."""
        parts = self.split()
        some = [parts[text] for text in texts]
        return Ragged(np.concatenate(some) if some else self.rows[:0], self.counts[texts])

    def split(self) -> list[FloatArray]:
        """The rows of each text."""
        return np.split(self.rows, np.cumsum(self.counts)[:-1])


@dataclass(frozen=True)
class KeptRows:
    """Keeps of a run only the rows that its mask selects: ``Request.reduce``."""

    def __call__(self, outputs: list[npt.NDArray[Any]]) -> list[Any]:
        return [Ragged.of(outputs[0], outputs[1])]


@dataclass(frozen=True)
class Finish:
    """What is done to the rows of each text, in the order of sentence-transformers.

    Attributes:
        own: The poolings of the model itself.
        normalize: Whether rows get the length 1, between these and the next one.
        pooling: The pooling of the call.
    """

    own: Sequence[BaseTokenPooling] = ()
    normalize: bool = False
    pooling: BaseTokenPooling | None = None

    def __call__(self, rows: FloatArray, task: str | None) -> FloatArray:
        """The result for the rows of one text, [rows, dimension]."""
        for pooling in self.own:
            if pooling.applies_to(task):
                rows = pooling.pool_one(rows)
        if self.normalize:
            from stonnx.util.tensor import normalize_embeddings

            rows = normalize_embeddings(rows)
        if self.pooling is not None and self.pooling.applies_to(task):
            rows = self.pooling.pool_one(rows)
        return rows


@dataclass(frozen=True)
class TokenRows:
    """Collects :class:`Ragged` batches as a list with an array [rows, dimension] for each text."""

    finish: Finish

    def collect(
        self, request: Request[list[FloatArray]], route: LoadedRoute, batches: Iterator[BatchResult]
    ) -> list[FloatArray]:
        """The rows of the texts of a request."""
        result: list[FloatArray] = [np.empty((0, 0), np.float32)] * len(request.texts)
        for batch in batches:
            for index, rows in zip(batch.indices, batch.outputs[0].split(), strict=True):
                result[index] = self.finish(rows, request.task)
        return result

    def join(self, parts: list[list[FloatArray]]) -> list[FloatArray]:
        """The rows of all texts."""
        return [rows for part in parts for rows in part]


@dataclass(frozen=True)
class RowFeatures:
    """Collects everything about each text: its ids, the vectors of its tokens, and which of them count."""

    finish: Finish

    def collect(
        self, request: Request[list[Features]], route: LoadedRoute, batches: Iterator[BatchResult]
    ) -> list[Features]:
        """The features of the texts of a request, without the padding of their batch."""
        result: list[Features] = [{} for _ in request.texts]
        prompt_length = route.tokenizer.prompt_length(request.prompt) if request.prompt else None
        expands = request.task == "query" and route.spec.tokenizer.expansion is not None
        pooled = [*self.finish.own, *([self.finish.pooling] if self.finish.pooling else [])]
        pools = any(pooling.applies_to(request.task) for pooling in pooled)
        for batch in batches:
            tokens, (embeddings, mask) = batch.tokens, batch.outputs
            for row, index in enumerate(batch.indices):
                kept = mask[row].astype(np.bool_)
                own = int(tokens.attention_mask[row].sum() if tokens.own is None else tokens.own[row])
                length = max(own, route.query_rows(request.task) or 0)
                item = result[index]
                item["input_ids"] = tokens.input_ids[row, :length]
                if "token_type_ids" in route.session.inputs:
                    types = tokens.token_type_ids
                    item["token_type_ids"] = np.zeros(length, np.int64) if types is None else types[row, :length]
                item["attention_mask"] = kept[:length]
                item["modality"] = "text"
                if prompt_length is not None:
                    item["prompt_length"] = prompt_length
                if expands:
                    item["query_expansion_positions"] = np.arange(length) >= own
                item["token_embeddings"] = embeddings[row, :length]
                if pools:
                    item["token_embeddings"] = self.finish(embeddings[row][kept], request.task)
                    item["attention_mask"] = np.ones(len(item["token_embeddings"]), np.bool_)
        return result

    def join(self, parts: list[list[Features]]) -> list[Features]:
        """The features of all texts."""
        return [item for part in parts for item in part]
