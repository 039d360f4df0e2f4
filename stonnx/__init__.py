"""sentence-transformers inference without PyTorch.

Example:
    >>> from stonnx import SentenceTransformer
    >>> model = SentenceTransformer("path/to/bundle")  # doctest: +SKIP
    >>> embeddings = model.encode(["The weather is lovely today."])  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from stonnx._device.options import DeviceOptions
from stonnx._engine.stats import CallStats
from stonnx._errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    DeviceError,
    ExportError,
    FidelityError,
    InvalidArgumentError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    PoolError,
    ProbeError,
    RunError,
    StonnxError,
    TextTooLongError,
    UnsupportedError,
)
from stonnx._model.model import ModelInfo
from stonnx._version import __version__
from stonnx.cross_encoder import CrossEncoder
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder

if TYPE_CHECKING:
    from stonnx import util as util
    from stonnx.util import SimilarityFunction, quantize_embeddings


__all__ = [
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "CallStats",
    "CrossEncoder",
    "DeviceError",
    "DeviceOptions",
    "ExportError",
    "FidelityError",
    "InvalidArgumentError",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelInfo",
    "ModelNotFoundError",
    "PoolError",
    "ProbeError",
    "RunError",
    "SentenceTransformer",
    "SimilarityFunction",
    "SparseEncoder",
    "StonnxError",
    "TextTooLongError",
    "UnsupportedError",
    "__version__",
    "quantize_embeddings",
]

# Loaded when they are asked for: most programs only encode.
_IN_UTIL = ("SimilarityFunction", "quantize_embeddings")


def __getattr__(name: str) -> Any:
    if name == "util":
        return importlib.import_module("stonnx.util")
    if name in _IN_UTIL:
        return getattr(importlib.import_module("stonnx.util"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_IN_UTIL, "util"})
