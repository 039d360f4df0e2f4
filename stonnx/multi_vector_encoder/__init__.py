"""Late interaction: a vector for each token of a text, with the API of sentence-transformers 6."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stonnx.multi_vector_encoder.model import MultiVectorEncoder

if TYPE_CHECKING:
    from stonnx.util.late_interaction import maxsim, maxsim_pairwise

__all__ = ["MultiVectorEncoder", "maxsim", "maxsim_pairwise"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: most programs only encode.
    if name in __all__:
        return getattr(importlib.import_module("stonnx.util.late_interaction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
