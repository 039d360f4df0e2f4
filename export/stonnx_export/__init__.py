"""Turns sentence-transformers checkpoints into stonnx bundles.

Example:
    >>> from stonnx_export import export
    >>> export("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2-fp32")  # doctest: +SKIP
"""

from stonnx_export.pipeline import export
from stonnx_export.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "export"]
