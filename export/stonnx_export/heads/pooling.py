"""Pooling of token embeddings, every mode of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from stonnx._errors import UnsupportedError
from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import GraphBuilder


def weighted_layers(op: GraphBuilder, module: modules.WeightedLayerPooling, states: list[ir.Value]) -> ir.Value:
    """The weighted mean of the hidden states [B, S, H] from one layer on."""
    weights = module.weights / module.weights.sum()
    used = states[module.layer_start :]
    if len(used) != len(weights):
        raise UnsupportedError(f"WeightedLayerPooling has {len(weights)} weights for {len(used)} layers.")
    return op.Sum(*(op.Mul(state, op.constant(np.array(w))) for state, w in zip(used, weights, strict=True)))


def pool(op: GraphBuilder, module: modules.Pooling, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """Token embeddings [B, S, H] and mask [B, S] to vectors [B, modes x H]."""
    used = mask
    if not module.include_prompt:
        # The first `prompt_length` tokens do not count. With 0, the default, every token counts.
        prompt_length = op.optional_input("prompt_length", np.array(0, dtype=np.int64), ())
        width = op.Shape(mask, start=1, end=2)
        positions = op.Range(op.scalar(0), op.Squeeze(width), op.scalar(1))
        kept = op.Cast(op.GreaterOrEqual(positions, prompt_length), to=ir.DataType.INT64)
        used = op.Mul(mask, kept)
    poolings = POOLINGS if used is mask else POOLINGS | {"cls": _first_used}
    vectors = [poolings[mode](op, tokens, used) for mode in module.modes]
    return vectors[0] if len(vectors) == 1 else op.Concat(*vectors, axis=-1)


def weighted_sum(op: GraphBuilder, tokens: ir.Value, weights: ir.Value) -> ir.Value:
    """The weighted sum of tokens: [B, S, H] and weights [B, S] to [B, H]."""
    # A matrix product with the weights as a row reads the tokens only once.
    return op.Squeeze(op.MatMul(op.Unsqueeze(weights, op.vector([1])), tokens), op.vector([1]))


def _weighted_mean(op: GraphBuilder, tokens: ir.Value, weights: ir.Value, square_root: bool = False) -> ir.Value:
    total = op.ReduceSum(weights, op.vector([1]), keepdims=1)
    total = op.Max(total, op.constant(np.array(1e-9, dtype=np.float32)))
    return op.Div(weighted_sum(op, tokens, weights), op.Sqrt(total) if square_root else total)


def mean(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """The mean of the tokens that the mask selects."""
    return _weighted_mean(op, tokens, op.Cast(mask, to=ir.DataType.FLOAT))


def _mean_sqrt_len_tokens(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    return _weighted_mean(op, tokens, op.Cast(mask, to=ir.DataType.FLOAT), square_root=True)


def _position_weighted_mean(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    width = op.Squeeze(op.Shape(mask, start=1, end=2))
    positions = op.Range(op.scalar(1), op.Add(width, op.scalar(1)), op.scalar(1))
    return _weighted_mean(op, tokens, op.Cast(op.Mul(mask, positions), to=ir.DataType.FLOAT))


def maximum(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """The largest value in each dimension, among the tokens that the mask selects."""
    kept = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([2]))
    lowest = op.constant(np.array(-np.inf, dtype=np.float32))
    return op.ReduceMax(op.Where(kept, tokens, lowest), op.vector([1]), keepdims=0)


def _first(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # Padding is on the right.
    return op.Gather(tokens, op.scalar(0), axis=1)


def _first_used(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The first token that counts, after an excluded prompt.
    index = op.ArgMax(op.Cast(mask, to=ir.DataType.INT32), axis=1, keepdims=1)
    return op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))


def _last(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The last token that counts. If none counts, the last of all is taken, times its mask of zero.
    flags = op.Cast(mask, to=ir.DataType.INT32)
    index = op.ArgMax(flags, axis=1, keepdims=1, select_last_index=1)
    picked = op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))
    any_token = op.ReduceMax(op.Cast(mask, to=ir.DataType.FLOAT), op.vector([1]), keepdims=1)
    return op.Mul(picked, any_token)


POOLINGS: dict[str, Callable[[GraphBuilder, ir.Value, ir.Value], ir.Value]] = {
    "cls": _first,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last,
}
