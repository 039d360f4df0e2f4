"""Poolings of the vectors of a text's tokens: for ``encode(token_pooling=...)``, or for vectors that are there."""

from stonnx._results.token_pooling import BaseTokenPooling, HierarchicalTokenPooling, LambdaTokenPooling

__all__ = ["BaseTokenPooling", "HierarchicalTokenPooling", "LambdaTokenPooling"]
