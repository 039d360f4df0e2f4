"""Channels of a value evened out before it becomes 8 bits (SmoothQuant, arXiv:2211.10438).

Channel k of x is divided by ``s_k = r_k^a``, with r the channel's largest magnitude in calibration and the geometric
mean of s 1. Row k of the products that read x is multiplied by it. Without that, a channel that is a hundred times
as large as the others takes all steps of a token's scale. Trained networks have such channels.

Requires: a value [B, S, K] of which the products are known. Ensures: it is divided if that costs nothing, in the
constants that it is computed from: the parameters of a normalization; the columns of the product that a gate multiplies
(SwiGLU, GeGLU); the columns of the values that attention mixes. Exact in real numbers. After a bare activation there is
nothing to divide.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import NORMALIZATIONS, constant_array, only_use, vector_added

Scales = npt.NDArray[np.float32]

# The exponent a: with a larger one, the weights lose more and the activations less. With 0.65 everywhere, the queries,
# keys and values of all-MiniLM-L6-v2 lose 0.3e-4 of the cosine by the weights and 0.8e-4 by the activations.
_EXPONENT, _OF_ATTENTION = 0.65, 0.95
# Operators between a product and what reads it: biases, heads, rotations, norms of queries and keys.
_BETWEEN = frozenset({
    "Add", "Concat", "Expand", "Mul", "Neg", "Reshape", "RMSNormalization", "RotaryEmbedding", "Slice", "Split",
    "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip


def smooth(
    graph: ir.Graph, value: ir.Value, products: Collection[ir.Node], peak: npt.NDArray[np.floating]
) -> Scales | None:
    """Divide a value by scales of its channels; the caller multiplies the rows of the products by them.

    Args:
        graph: The graph. It is rewritten in place.
        value: The value [B, S, K].
        products: The products that read it.
        peak: The largest magnitude of each channel, [K].

    Returns:
        The scales [K]; None if the value cannot be divided at no cost, and is left alone.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or not peak.max() > 0:
        return None
    others = [(use.node, use.idx) for use in value.uses() if use.node not in products]
    exponent = exponent_of(products)
    scales = _scales(peak, exponent)
    if _divide_parameters(graph, node, scales):
        if others:
            _restore(graph, value, node, others, scales)
        return scales
    if others:
        return None
    if node.op_type == "Mul":
        for factor in node.inputs:
            if factor is not None and _divide_product(graph, factor, scales):
                return scales
    if node.op_type == "Attention":
        return _divide_values(graph, node, peak, exponent)
    return None


def exponent_of(products: Collection[ir.Node]) -> float:
    """The exponent for a value: a larger one if attention reads the products of it."""
    return _OF_ATTENTION if any(_reaches_attention(product) for product in products) else _EXPONENT


def _reaches_attention(product: ir.Node) -> bool:
    """Whether attention reads a product, maybe after some of ``_BETWEEN``."""
    waiting, seen = list(product.outputs), set(product.outputs)
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type == "Attention":
                return True
            if use.node.op_type in _BETWEEN:
                waiting += set(use.node.outputs) - seen
                seen |= set(use.node.outputs)
    return False


def _scales(peak: npt.NDArray[np.floating], exponent: float) -> Scales:
    wide = peak.astype(np.float64)
    scales = np.maximum(wide, wide.max() * 1e-4) ** exponent
    result: Scales = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    return result


def _divide_parameters(graph: ir.Graph, node: ir.Node, scales: Scales) -> bool:
    """Divide the weight and the bias of a normalization, which may be written as a multiplication by its weight."""
    if node.op_type == "Mul":
        indices = [index for index, operand in enumerate(node.inputs) if _is_vector_of(operand, len(scales))]
    elif node.op_type in NORMALIZATIONS:
        indices = [index for index, operand in enumerate(node.inputs) if index > 0 and operand is not None]
    else:
        return False
    if not indices or any(not _is_vector_of(node.inputs[index], len(scales)) for index in indices):
        return False
    op = GraphBuilder(graph, before=node)
    for index in indices:
        array = constant_array(node.inputs[index])
        assert array is not None
        node.replace_input_with(index, op.constant(array / scales, "smoothed"))
    return True


def _restore(
    graph: ir.Graph, value: ir.Value, node: ir.Node, others: list[tuple[ir.Node, int]], scales: Scales
) -> None:
    """Give other readers of a divided value the value as it was, by one multiplication."""
    nodes = list(graph)
    op = GraphBuilder(graph, before=nodes[nodes.index(node) + 1])
    restored = op.Mul(value, op.constant(scales, "smoothing"))
    restored.shape, restored.type = value.shape, value.type
    for reader, index in others:
        reader.replace_input_with(index, restored)


def _divide_values(
    graph: ir.Graph, attention: ir.Node, peak: npt.NDArray[np.floating], exponent: float
) -> Scales | None:
    """Divide the values that attention mixes; heads that share values share their scales."""
    if "q_num_heads" not in attention.attributes or len(attention.outputs) > 1:
        return None
    heads, shared = (attention.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
    of_values = peak.reshape(shared, heads // shared, -1).max(axis=1)
    scales = _scales(of_values.reshape(-1), exponent)
    values = attention.inputs[2]
    if values is None or not _divide_product(graph, values, scales):
        return None
    return np.repeat(scales.reshape(shared, 1, -1), heads // shared, axis=1).reshape(-1)


def _divide_product(graph: ir.Graph, value: ir.Value, scales: Scales) -> bool:
    """Divide the columns, and the bias, of the product that a value is the result of, or is some columns of."""
    if only_use(value) is None:
        return False
    split, start, end = value.producer(), 0, len(scales)
    if split is not None and split.op_type == "Split" and split.inputs[0] is not None:
        sizes = [part.shape[-1] if part.shape is not None else None for part in split.outputs]
        if any(not isinstance(size, int) for size in sizes):
            return False
        start = sum(sizes[: list(split.outputs).index(value)])  # type: ignore[arg-type]
        end = start + len(scales)
        value = split.inputs[0]
    add = value.producer()
    plain, bias = vector_added(value) or (value, None)
    product = plain.producer() if only_use(plain) is not None else None
    if product is None or product.op_type != "MatMul" or product.inputs[1] is None:
        return False
    weight = constant_array(product.inputs[1]) if product.inputs[1].is_initializer() else None
    if weight is None or weight.ndim != 2 or weight.shape[1] < end:
        return False
    divisor = np.ones(weight.shape[1], np.float32)
    divisor[start:end] = scales
    op = GraphBuilder(graph, before=product)
    product.replace_input_with(1, op.constant(weight / divisor, "weight"))
    array = constant_array(bias)
    if add is not None and array is not None:
        add.replace_input_with(list(add.inputs).index(bias), op.constant(array / divisor, "bias"))
    return True


def _is_vector_of(value: ir.Value | None, size: int) -> bool:
    array = constant_array(value)
    return array is not None and array.ndim == 1 and array.dtype == np.float32 and array.size == size
