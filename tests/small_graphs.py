"""Graphs of a few thousand random weights, written by hand as the tracer and the first passes leave those of BERT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import InlinePass

from stonnx_export.calibration.measure import options
from stonnx_export.graph.builder import OPSET, GraphBuilder

VOCABULARY, HIDDEN, HEADS, INTERMEDIATE = 50, 32, 4, 64
TOKENS = ("batch", "sequence")

# What follows the last layer: from tokens [B, S, H] to the output.
Head = Callable[[GraphBuilder, ir.Value], ir.Value]


def shaped(value: ir.Value, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """A value whose shape is known, as the tracer leaves it."""
    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
    return value


def graph_of(*inputs: tuple[str, ir.DataType, Sequence[int | str]]) -> tuple[ir.Model, GraphBuilder, list[ir.Value]]:
    """A graph with inputs and nothing in it."""
    values = [ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)) for name, dtype, shape in inputs]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": OPSET}, name="small")
    return ir.Model(graph, ir_version=11), GraphBuilder(graph), values


def random(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng.normal(size=shape)).astype(np.float32)


def layer_norm(op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
    """LayerNormalization with weights and biases that differ from channel to channel."""
    assert x.shape is not None
    width = x.shape[2]
    scale, bias = 1 + random(rng, width, scale=0.3), random(rng, width, scale=0.3)
    result = op.LayerNormalization(x, op.constant(scale, "gamma"), op.constant(bias, "beta"), axis=-1, epsilon=1e-6)
    return shaped(result, *x.shape)


def linear(op: GraphBuilder, x: ir.Value, width: int, rng: np.random.Generator, *, bias: bool = True) -> ir.Value:
    """x W + b, with a random W [K, width]."""
    assert x.shape is not None
    *leading, inputs = x.shape
    weight = random(rng, int(inputs), width, scale=1.5 / np.sqrt(int(inputs)))
    product = shaped(op.MatMul(x, op.constant(weight, "weight")), *leading, width)
    return shaped(op.Add(product, op.constant(random(rng, width), "bias")), *leading, width) if bias else product


def every_token(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """The tokens themselves [B, S, H]."""
    return tokens


def encoder(
    head: Head = every_token,
    *,
    layers: int = 2,
    kv_heads: int = HEADS,
    mask: str = "lengths",
    output_bias: bool = True,
    activation: str = "Gelu",
    residuals: bool = True,
    seed: int = 0,
    **attributes: Any,
) -> ir.Model:
    """Embeddings and layers of attention and a feed-forward network, each behind its residual connection and norm.

    Args:
        head: What follows the last layer.
        layers: How many layers.
        kv_heads: Heads of keys and values.
        mask: ``lengths``; ``bias``, which adds a position bias for each head to the scores, as MPNet does; or ``none``.
        output_bias: Whether the product behind attention has a bias.
        activation: The operator in the middle of the feed-forward network.
        residuals: Whether there are residual connections.
        seed: Of the weights.
        attributes: Of the attention, as ``is_causal=1``.
    """
    inputs = [(name, ir.DataType.INT64, TOKENS) for name in ("input_ids", "attention_mask")]
    model, op, (ids, attention_mask) = graph_of(*inputs)
    rng = np.random.default_rng(seed)
    rest: tuple[ir.Value | None, ...] = ()
    if mask != "none":
        bias = _position_bias(op, ids, rng) if mask == "bias" else None
        rest = (bias, None, None, op.ReduceSum(attention_mask, op.vector([1]), keepdims=0))
    table = op.constant(random(rng, VOCABULARY, HIDDEN), "embeddings")
    x = layer_norm(op, shaped(op.Gather(table, ids), *TOKENS, HIDDEN), rng)
    for _ in range(layers):
        query = linear(op, x, HIDDEN, rng)
        key, value = (linear(op, x, HIDDEN // HEADS * kv_heads, rng) for _ in range(2))
        heads = {"q_num_heads": HEADS, "kv_num_heads": kv_heads}
        mixed = shaped(op.Attention(query, key, value, *rest, **heads, **attributes), *TOKENS, HIDDEN)
        mixed = linear(op, mixed, HIDDEN, rng, bias=output_bias)
        x = layer_norm(op, shaped(op.Add(mixed, x), *TOKENS, HIDDEN) if residuals else mixed, rng)
        inner = shaped(getattr(op, activation)(linear(op, x, INTERMEDIATE, rng)), *TOKENS, INTERMEDIATE)
        inner = linear(op, inner, HIDDEN, rng)
        x = layer_norm(op, shaped(op.Add(inner, x), *TOKENS, HIDDEN) if residuals else inner, rng)
    output = head(op, x)
    op.name_output(output, "output", list(output.shape or ()))
    model.graph.outputs.append(output)
    return model


def _position_bias(op: GraphBuilder, ids: ir.Value, rng: np.random.Generator) -> ir.Value:
    """A number for each distance and head, [1, heads, S, S]."""
    width = op.Squeeze(op.Shape(ids, start=1, end=2))
    positions = op.Range(op.scalar(0), width, op.scalar(1))
    distance = op.Abs(op.Sub(op.Unsqueeze(positions, op.vector([0])), op.Unsqueeze(positions, op.vector([1]))))
    table = op.constant(random(rng, 64, HEADS), "position_bias")
    bias = op.Transpose(op.Gather(table, distance), perm=[2, 0, 1])
    return shaped(op.Unsqueeze(bias, op.vector([0])), 1, HEADS, "sequence", "sequence")


def run_as_it_is(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph with nothing fused, as the runtime has them. Feeds without an input are left out."""
    source = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(source, options(), providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in known})


def without_blocks(model: ir.Model) -> ir.Model:
    """A model of a bundle with its blocks as the stock operators that they are made of."""
    return InlinePass()(model).model


def nodes_of(model: ir.Model, operator: str) -> list[ir.Node]:
    """The nodes of an operator, in the order of the graph."""
    return [node for node in model.graph if node.op_type == operator]
