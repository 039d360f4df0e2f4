"""Heads of sparse encoders: SPLADE pooling and the sparse autoencoder."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.heads.dense import linear
from stonnx_export.heads.pooling import maximum, weighted_sum


def splade(op: GraphBuilder, module: modules.SpladePooling, logits: ir.Value, mask: ir.Value) -> ir.Value:
    """Logits [B, S, V] to term weights [B, V]: log1p(relu(x)), once or twice, then the maximum or sum over tokens.

    ReLU and log1p are monotone, so the maximum is taken before them: on V numbers instead of S x V.
    """

    def saturate(x: ir.Value) -> ir.Value:
        x = _log1p(op, op.Relu(x))
        return _log1p(op, x) if module.twice else x

    if module.strategy == "max":
        # For a text without tokens the maximum is -inf; ReLU turns it into 0.
        return saturate(maximum(op, logits, mask))
    return weighted_sum(op, saturate(logits), op.Cast(mask, to=ir.DataType.FLOAT))


def _log1p(op: GraphBuilder, x: ir.Value) -> ir.Value:
    # ONNX has no log1p, and log(1 + x) loses small x. With u, the rounded 1 + x, log(u) x / (u - 1) does not lose it:
    # W. Kahan's formula; Higham, "Accuracy and Stability of Numerical Algorithms", section 1.14.1.
    one = op.constant(np.array(1.0, dtype=np.float32))
    rounded = op.Add(x, one)
    difference = op.Sub(rounded, one)
    lost = op.Equal(difference, op.constant(np.array(0.0, dtype=np.float32)))
    return op.Where(lost, x, op.Div(op.Mul(op.Log(rounded), x), op.Where(lost, one, difference)))


def sparse_auto_encoder(op: GraphBuilder, module: modules.SparseAutoEncoder, vector: ir.Value) -> ir.Value:
    """The k largest latents of a vector [B, H], after a ReLU; the others are zero."""
    if module.normalize:
        centred = op.Sub(vector, op.ReduceMean(vector, op.vector([-1]), keepdims=1))
        squares = op.ReduceSumSquare(centred, op.vector([-1]), keepdims=1)
        # torch's std divides by H - 1.
        degrees = op.constant(np.array(module.weight.shape[1] - 1, dtype=np.float32))
        std = op.Sqrt(op.Div(squares, degrees))
        vector = op.Div(centred, op.Add(std, op.constant(np.array(1e-5, dtype=np.float32))))
    latents = linear(op, op.Sub(vector, op.constant(module.pre_bias)), module.weight, module.latent_bias)
    values, indices = op.multiple("TopK", latents, op.vector([module.k]), outputs=2, axis=-1)
    zeros = op.Sub(latents, latents)
    return op.Relu(op.ScatterElements(zeros, indices, values, axis=1))
