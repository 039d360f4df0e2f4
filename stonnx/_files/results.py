"""The results that an output file holds, as data: dense vectors, sparse vectors, or scores of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stonnx._tasks import ResultKind

OutputFormat = Literal["npy", "jsonl", "safetensors", "npz", "parquet"]


@dataclass(frozen=True)
class DType:
    """A dtype of results under its names in npy and safetensors headers. All are written little-endian."""

    npy: str
    safetensors: str


DTYPES: Mapping[str, DType] = {
    "float32": DType("<f4", "F32"),
    "int8": DType("|i1", "I8"),
    "uint8": DType("|u1", "U8"),
}


@dataclass(frozen=True)
class Kind:
    """One kind of results.

    Attributes:
        shape: The results for n texts, for messages.
        fields: The fields that a JSONL record gets, and the columns of Parquet.
        tensor: The name of the tensor in safetensors; empty if it cannot hold the results.
        formats: The formats that can hold them, the default for many files first.
    """

    shape: str
    fields: tuple[str, ...]
    tensor: str
    formats: tuple[OutputFormat, ...]


EMBEDDING = Kind("an array [n, dim]", ("embedding",), "embeddings", ("npy", "parquet", "jsonl", "safetensors"))
SCORE = Kind("an array [n] or [n, labels]", ("score",), "scores", ("npy", "parquet", "jsonl", "safetensors"))
SPARSE = Kind("a CSR matrix [n, dim]", ("indices", "values"), "", ("npz", "parquet", "jsonl"))

KINDS: Mapping[ResultKind, Kind] = {"dense": EMBEDDING, "sparse": SPARSE, "scores": SCORE}


@dataclass(frozen=True)
class Shape:
    """The shape of the results of a file: ``width`` is 0 for one score a row."""

    rows: int
    width: int
    dtype: str


def checked(kind: Kind, results: Any, rows: int) -> Shape:
    """The shape of the results for some texts. A missing row would shift every result after it.

    Raises:
        RuntimeError: They are not what the kind says.
    """
    if kind is SPARSE:
        fits = hasattr(results, "indptr") and results.shape[:1] == (rows,) and len(results.shape) == 2
    else:
        fits = isinstance(results, np.ndarray) and results.ndim in ((1, 2) if kind is SCORE else (2,))
        fits = fits and len(results) == rows
    if not fits:
        found = f"shape {list(results.shape)}" if hasattr(results, "shape") else type(results).__name__
        expected = kind.shape.replace("[n", f"[{rows}")
        raise RuntimeError(f"Internal error: encode returned {found} for {rows} texts, not {expected}.")
    if results.dtype.name not in DTYPES:
        raise RuntimeError(
            f"Internal error: encode returned dtype {results.dtype.name}; allowed are {', '.join(DTYPES)}."
        )
    return Shape(rows, results.shape[1] if len(results.shape) == 2 else 0, results.dtype.name)
