"""sentence-transformers inference without PyTorch.

Example:
    >>> from stonnx import SentenceTransformer
    >>> model = SentenceTransformer("path/to/bundle")  # doctest: +SKIP
    >>> embeddings = model.encode(["The weather is lovely today."])  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from stonnx._device.device_options import DeviceOptions
from stonnx._engine.stats import CallStats
from stonnx._errors import (
    ArgumentTypeError,
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    DeadlineError,
    DeviceError,
    ExportError,
    FidelityError,
    InvalidArgumentError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    OverloadedError,
    PoolError,
    ProbeError,
    RunError,
    StonnxError,
    TextTooLongError,
    TokenIdError,
    TokenizerError,
    TooManyTokensError,
    UnsupportedError,
)
from stonnx._model.info import ModelInfo
from stonnx._version import __version__
from stonnx.cross_encoder import CrossEncoder
from stonnx.multi_vector_encoder.model import MultiVectorEncoder
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder

if TYPE_CHECKING:
    from stonnx import util as util
    from stonnx._batcher.batcher import Batcher
    from stonnx.util import SimilarityFunction, quantize_embeddings


__all__ = [
    "ArgumentTypeError",
    "Batcher",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "CallStats",
    "CrossEncoder",
    "DeadlineError",
    "DeviceError",
    "DeviceOptions",
    "ExportError",
    "FidelityError",
    "InvalidArgumentError",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelInfo",
    "ModelNotFoundError",
    "MultiVectorEncoder",
    "OverloadedError",
    "PoolError",
    "ProbeError",
    "RunError",
    "SentenceTransformer",
    "SimilarityFunction",
    "SparseEncoder",
    "StonnxError",
    "TextTooLongError",
    "TokenIdError",
    "TokenizerError",
    "TooManyTokensError",
    "UnsupportedError",
    "__version__",
    "quantize_embeddings",
]

# Loaded on first use: most programs only encode.
_LATER = {
    "Batcher": "stonnx._batcher.batcher",
    "SimilarityFunction": "stonnx.util",
    "quantize_embeddings": "stonnx.util",
}


def __getattr__(name: str) -> Any:
    if name == "util":
        return importlib.import_module("stonnx.util")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "util"})
