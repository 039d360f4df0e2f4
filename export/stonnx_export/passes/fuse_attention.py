"""Turns attention that arrives as products and softmax into the ``Attention`` operator.

Requires: ``MatMul(Softmax(q k^T * scale + masks), v)`` over heads [batch, heads, sequence, width]. Traces of networks
with relative positions have this form. Ensures: one ``Attention`` node, with the sum of the masks as its mask;
``attention_lengths`` takes the padding out of that mask. Exact.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array, constant_number, only_use

_NAME = "fuse_attention"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the attentions."""
    fired = 0
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        if _fuse(model.graph, softmax):
            fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    weighted = only_use(softmax.outputs[0])
    scores = softmax.inputs[0]
    if weighted is None or weighted.op_type != "MatMul" or weighted.inputs[0] is not softmax.outputs[0]:
        return False
    values = weighted.inputs[1]
    masks: list[ir.Value] = []
    node = scores.producer() if scores is not None else None
    while node is not None and node.op_type == "Add":
        product = next((value for value in node.inputs if value is not None and _leads_to_product(value)), None)
        if product is None:
            return False
        masks += [value for value in node.inputs if value is not None and value is not product]
        node = product.producer()
    scale = 1.0
    if node is not None and node.op_type in ("Div", "Mul"):
        number = constant_number(node.inputs[1])
        if number is None:
            return False
        scale = 1 / number if node.op_type == "Div" else number
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "MatMul" or not masks:
        return False
    query, keys = node.inputs[0], _untransposed(graph, node.inputs[1], weighted)
    if keys is None or query is None or values is None or any(not _is_heads(value) for value in (query, values)):
        return False
    op = GraphBuilder(graph, before=weighted)
    mask = masks[0]
    for other in masks[1:]:
        mask = op.Add(mask, other)
    if mask.dtype is None:
        mask.dtype = ir.DataType.FLOAT
    result = op.Attention(query, keys, values, mask, scale=scale)
    old = weighted.outputs[0]
    result.shape, result.type = old.shape, old.type
    old.replace_all_uses_with(result)
    return True


def _leads_to_product(value: ir.Value) -> bool:
    """Whether scores are computed from this value alone: products, scaled, with or without masks."""
    node = value.producer()
    if node is None or only_use(value) is None:
        return False
    if node.op_type == "Add":
        return any(operand is not None and _leads_to_product(operand) for operand in node.inputs)
    if node.op_type in ("Div", "Mul") and node.inputs[0] is not None:
        return _leads_to_product(node.inputs[0])
    return node.op_type == "MatMul" and constant_array(node.inputs[1]) is None


def _is_heads(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and isinstance(value.shape[1], int)


def _untransposed(graph: ir.Graph, value: ir.Value | None, before: ir.Node) -> ir.Value | None:
    """The keys [batch, heads, sequence, width], if the value is their transposition."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    source, order = node.inputs[0], list(node.attributes["perm"].as_ints())
    if order == [0, 1, 3, 2]:
        return source if _is_heads(source) else None
    if order != [0, 2, 3, 1] or source.shape is None:  # straight from [batch, sequence, heads, width]
        return None
    keys = GraphBuilder(graph, before=before).Transpose(source, perm=[0, 2, 1, 3])
    keys.shape = ir.Shape([source.shape[axis] for axis in (0, 2, 1, 3)])
    keys.type = source.type
    return keys if _is_heads(keys) else None
