"""Vectors to results of ``encode``: truncated, normalized, quantized, as numpy or as torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from stonnx._engine.call import BatchResult
from stonnx._engine.request import Request
from stonnx._engine.route import LoadedRoute
from stonnx._errors import MissingDependencyError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

PRECISIONS = get_args(Precision)


@dataclass(frozen=True)
class Rows:
    """Collects the first output, a row of ``width`` numbers for each text, as float32 [texts, width]."""

    width: int

    def collect(
        self, request: Request[npt.NDArray[np.float32]], route: LoadedRoute, batches: Iterator[BatchResult]
    ) -> npt.NDArray[np.float32]:
        """The rows of the texts of a request."""
        result = np.empty((len(request.texts), self.width), dtype=np.float32)
        for batch in batches:
            result[batch.indices] = batch.outputs[0]
        return result

    def join(self, parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The rows of all texts."""
        return join_rows(parts)


def finish_embeddings(
    embeddings: npt.NDArray[np.float32], truncate_dim: int | None, normalize: bool, precision: Precision | None
) -> npt.NDArray[Any]:
    """Truncate, then normalize, then quantize, in the order of sentence-transformers.

    A model that normalizes by itself does so before the truncation. So truncated vectors have unit length only with
    ``normalize``.
    """
    if truncate_dim is not None:
        embeddings = embeddings[:, :truncate_dim]
    if normalize:
        from stonnx.util.tensor import normalize_embeddings

        embeddings = normalize_embeddings(embeddings)
    if precision and precision != "float32" and len(embeddings):
        from stonnx.util.quantization import quantize_embeddings

        quantized: npt.NDArray[Any] = quantize_embeddings(embeddings, precision=precision)
        return quantized
    return np.ascontiguousarray(embeddings)


def finish_token_embeddings(
    embeddings: list[npt.NDArray[np.float32]], precision: Precision | None
) -> list[npt.NDArray[Any]]:
    """Quantize the token embeddings [tokens, hidden] of texts, with ranges that all texts share."""
    if precision and precision != "float32" and embeddings:
        from stonnx.util.quantization import quantize_embeddings

        return list(quantize_embeddings(embeddings, precision=precision))
    return list(embeddings)


def to_torch(array: npt.NDArray[Any]) -> torch.Tensor:
    """A torch tensor of an array. torch is imported here and nowhere else in the runtime.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "convert_to_tensor=True returns a torch tensor, and torch is not installed. Use the numpy array that "
            "convert_to_tensor=False returns, or install torch: pip install torch"
        ) from error
    return torch.from_numpy(array)


def join_rows(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Arrays of the same shape except for their rows, one below the other. Empties the list, to free each at once.

    Example:
        >>> join_rows([np.zeros((2, 3)), np.ones((1, 3))]).shape
        (3, 3)
    """
    if len(parts) == 1:
        return parts.pop()
    end = sum(len(part) for part in parts)
    result = np.empty((end, *parts[0].shape[1:]), dtype=parts[0].dtype)
    while parts:
        part = parts.pop()
        result[end - len(part) : end] = part
        end -= len(part)
    return result
