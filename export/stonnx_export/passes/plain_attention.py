"""Attention in plain operators, for execution providers without a kernel for lengths.

Requires: ``Attention`` with ``nonpad_kv_seqlen`` or ``is_causal``, as ``attention_lengths`` makes it.
Ensures: products, a sum with a mask, and softmax. Every provider has these operators, and TensorRT and CUDA fuse them
by themselves.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import caps_scores, is_causal, last_dimension

_NAME = "plain_attention"
# Far below every score. Half precision can hold this number, and the sum of two of them if two masks are added.
_LOWEST = np.float32(-10000.0)


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the attentions."""
    graph, fired, declined = model.graph, 0, []
    masks: dict[tuple[ir.Value | None, bool], ir.Value | None] = {}
    for node in [node for node in graph if node.op_type == "Attention"]:
        if len(node.outputs) > 1 or any(value is not None for value in node.inputs[4:6]):
            declined.append(f"{node.name}: it has past keys or further outputs")
            continue
        if caps_scores(node):
            declined.append(f"{node.name}: its scores are capped")
            continue
        if is_causal(node) and _lengths(node) is not None:
            # Together, the two have another meaning: lengths move the diagonal to the last key.
            declined.append(f"{node.name}: it is causal and has lengths")
            continue
        _replace(graph, node, masks)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _replace(graph: ir.Graph, node: ir.Node, masks: dict[tuple[ir.Value | None, bool], ir.Value | None]) -> None:
    query, key, value, bias, *_ = [*node.inputs, None]
    lengths, causal = _lengths(node), is_causal(node)
    assert query is not None
    assert key is not None
    assert value is not None
    op = GraphBuilder(graph, before=node)
    flat = "q_num_heads" in node.attributes
    heads = [node.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads")] if flat else None
    if heads is None:
        sizes = [part.shape[1] for part in (query, key) if part.shape is not None]
        width = last_dimension(query)
        groups = int(sizes[0]) // int(sizes[1])  # type: ignore[arg-type]
    else:
        width = last_dimension(query) // heads[0]
        groups = heads[0] // heads[1]
        query = _split(op, query, heads[0])
        key, value = _split(op, key, heads[1]), _split(op, value, heads[1])
    if groups > 1:
        key, value = _repeat(op, key, groups), _repeat(op, value, groups)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / math.sqrt(width)
    # The scale goes to the queries first: scores themselves may be too large for half precision.
    scores = op.MatMul(op.Mul(query, op.constant(np.array(scale, np.float32))), op.Transpose(key, perm=[0, 1, 3, 2]))
    if bias is not None:
        scores = op.Add(scores, _numbers(op, bias) if bias.dtype == ir.DataType.BOOL else bias)
    if (lengths, causal) not in masks:
        masks[lengths, causal] = _mask(op, scores, lengths, causal)
    mask = masks[lengths, causal]
    if mask is not None:
        scores = op.Add(scores, mask)
    result = op.MatMul(op.Softmax(scores, axis=-1), value)
    if heads is not None:
        result = op.Reshape(op.Transpose(result, perm=[0, 2, 1, 3]), op.vector([0, 0, -1]))
    old = node.outputs[0]
    result.shape, result.type = old.shape, old.type
    old.replace_all_uses_with(result)


def _lengths(node: ir.Node) -> ir.Value | None:
    return node.inputs[6] if len(node.inputs) > 6 else None


def _split(op: GraphBuilder, value: ir.Value, heads: int) -> ir.Value:
    """[B, S, H] to [B, heads, S, H / heads]."""
    return op.Transpose(op.Reshape(value, op.vector([0, 0, heads, -1])), perm=[0, 2, 1, 3])


def _repeat(op: GraphBuilder, value: ir.Value, times: int) -> ir.Value:
    """[B, heads, S, D] to [B, heads * times, S, D], each head ``times`` times in a row."""
    shape = op.Shape(value)
    wide = op.Concat(
        op.Slice(shape, op.vector([0]), op.vector([2])),
        op.vector([times]),
        op.Slice(shape, op.vector([2]), op.vector([4])),
        axis=0,
    )
    repeated = op.Expand(op.Unsqueeze(value, op.vector([2])), wide)
    flat = op.Concat(
        op.Slice(shape, op.vector([0]), op.vector([1])),
        op.vector([-1]),
        op.Slice(shape, op.vector([2]), op.vector([4])),
        axis=0,
    )
    return op.Reshape(repeated, flat)


def _mask(op: GraphBuilder, scores: ir.Value, lengths: ir.Value | None, causal: bool) -> ir.Value | None:
    """0 if a query may look at a key, else a large negative number: [B or 1, 1, S or 1, S]."""
    if lengths is None and not causal:
        return None
    size = op.Squeeze(op.Shape(scores, start=3, end=4), op.vector([0]))
    keys = op.Range(op.scalar(0), size, op.scalar(1))
    if causal:
        rows = op.Unsqueeze(keys, op.vector([1]))
        allowed = op.Unsqueeze(op.LessOrEqual(op.Unsqueeze(keys, op.vector([0])), rows), op.vector([0, 1]))
    else:
        assert lengths is not None
        allowed = op.Less(op.Unsqueeze(keys, op.vector([0, 1, 2])), op.Unsqueeze(lengths, op.vector([1, 2, 3])))
    return _numbers(op, allowed)


def _numbers(op: GraphBuilder, allowed: ir.Value) -> ir.Value:
    mask = op.Where(allowed, op.constant(np.array(0, np.float32)), op.constant(np.array(_LOWEST)))
    mask.dtype = ir.DataType.FLOAT
    return mask
