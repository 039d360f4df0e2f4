"""Residual connections without the biases of the results that they add.

Requires: ``LayerNormalization`` x of tokens, read by products ``x W`` and by one residual connection ``x + (y + b)``
with a constant b. Ensures: the normalization gives ``x + b``, its own bias being larger by b, so that nothing adds b
later; ``b W`` is subtracted from the biases of the products. The product of attention's keys does not need that:
softmax does not see the bias. This saves one addition over all tokens in int8, in which few products add their bias at
no cost. Exact in real numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder, add_to_bias
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import bias_behind, caps_scores, constant_array, only_use, vector_added

_NAME = "residual_biases"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the biases that are gone."""
    fired = 0
    for node in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        fired += _move(model.graph, node)
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def _move(graph: ir.Graph, norm: ir.Node) -> bool:
    normalized = norm.outputs[0]
    readers = [use.node for use in normalized.uses()]
    products = [node for node in readers if node.op_type == "MatMul" and node.inputs[0] is normalized]
    others = [node for node in readers if node not in products]
    weights = [constant_array(node.inputs[1]) for node in products]
    beta = constant_array(norm.inputs[2]) if len(norm.inputs) > 2 else None
    if normalized.is_graph_output() or len(others) != 1 or others[0].op_type != "Add" or beta is None:
        return False
    residual = others[0]
    place = 1 if residual.inputs[0] is normalized else 0
    added = vector_added(residual.inputs[place])
    bias = constant_array(added[1]) if added is not None else None
    if added is None or bias is None or bias.shape != beta.shape or added[0] is normalized:
        return False
    if any(weight is None or weight.ndim != 2 for weight in weights):
        return False
    # A product without a bias gets one. At most one may: the pass saves one addition.
    if sum(bias_behind(node) is None and not _is_of_keys(node) for node in products) > 1:
        return False
    residual.replace_input_with(place, added[0])
    norm.replace_input_with(2, GraphBuilder(graph, before=norm).constant(beta + bias, "bias"))
    for product, weight in zip(products, weights, strict=True):
        assert weight is not None
        _add(graph, product, -(bias.astype(np.float64) @ weight.astype(np.float64)))
    return True


def _add(graph: ir.Graph, product: ir.Node, vector: npt.NDArray[np.float64]) -> None:
    """Add a vector [N] to the result of a product, through its bias if it has one."""
    biased = bias_behind(product)
    if biased is not None:
        add_to_bias(biased, vector)
    elif not _is_of_keys(product):
        result = product.outputs[0]
        uses = list(result.uses())
        nodes = list(graph)
        op = GraphBuilder(graph, before=nodes[nodes.index(product) + 1])
        shifted = op.Add(result, op.constant(vector.astype(np.float32), "bias"))
        shifted.shape, shifted.type = result.shape, result.type
        for use in uses:
            use.node.replace_input_with(use.idx, shifted)


def _is_of_keys(product: ir.Node) -> bool:
    attention = only_use(product.outputs[0])
    return (
        attention is not None
        and attention.op_type == "Attention"
        and attention.inputs[1] is product.outputs[0]
        and len(attention.outputs) == 1
        and not caps_scores(attention)
    )
