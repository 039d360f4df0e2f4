"""sentence-transformers inference without PyTorch.

Example:
    >>> from stonnx import SentenceTransformer
    >>> model = SentenceTransformer("path/to/bundle")  # doctest: +SKIP
    >>> embeddings = model.encode(["The weather is lovely today."])  # doctest: +SKIP
"""

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
    StonnxError,
    TextTooLongError,
    UnsupportedError,
)
from stonnx._model import ModelInfo
from stonnx._session import DeviceOptions
from stonnx._stats import CallStats
from stonnx.cross_encoder import CrossEncoder
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder

__version__ = "0.1.0"

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
    "SentenceTransformer",
    "SparseEncoder",
    "StonnxError",
    "TextTooLongError",
    "UnsupportedError",
    "__version__",
]
