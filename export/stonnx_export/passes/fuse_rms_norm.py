"""Turns root mean square normalization that arrives in pieces into the ``RMSNormalization`` operator.

Requires: ``w * (x / sqrt(mean(x^2) + epsilon))`` over the last dimension, with a constant vector w, as in traces of
networks; the division may be a product with the reciprocal. Ensures: one node with the weight w. Exact in real numbers.
It makes one pass over the tokens instead of four, and gives values that a static scale can hold (``int8``). It is for
CPU recipes only: TensorRT has the operator since 10.15, and not every onnxruntime has it for CUDA.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array, constant_number, only_use

_NAME = "fuse_rms_norm"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the normalizations."""
    fired = 0
    for node in [node for node in model.graph if node.op_type == "Sqrt"]:
        fired += _fuse(model.graph, node)
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def _fuse(graph: ir.Graph, root: ir.Node) -> bool:
    found = _mean_square(root.inputs[0])
    divided = _only_reader(root.outputs[0], "Reciprocal", "Div")
    if divided is not None and divided.op_type == "Reciprocal":
        divided = _only_reader(divided.outputs[0], "Mul")
    elif divided is not None and divided.inputs[1] is not root.outputs[0]:
        return False
    if found is None or divided is None or found[0] not in divided.inputs:
        return False
    x, epsilon = found
    weighted = _only_reader(divided.outputs[0], "Mul")
    if weighted is None or weighted.outputs[0].is_graph_output() or x.shape is None:
        return False
    weight = next((value for value in weighted.inputs if value is not divided.outputs[0]), None)
    array = constant_array(weight)
    if array is None or array.dtype != np.float32 or array.shape != (x.shape[-1],):
        return False
    old = weighted.outputs[0]
    result = GraphBuilder(graph, before=weighted).RMSNormalization(x, weight, axis=-1, epsilon=epsilon)
    result.shape, result.type = old.shape, old.type
    old.replace_all_uses_with(result)
    return True


def _mean_square(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x and epsilon, if a value is ``mean(x^2) + epsilon`` over the last dimension, which is kept; else None."""
    add = value.producer() if value is not None else None
    if add is None or add.op_type != "Add":
        return None
    mean, epsilon = add.inputs if constant_array(add.inputs[1]) is not None else reversed(add.inputs)
    number = constant_number(epsilon)
    node = mean.producer() if mean is not None else None
    if number is None or node is None or node.op_type != "ReduceMean":
        return None
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    square = node.inputs[0].producer() if node.inputs[0] is not None else None
    if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() == 0:
        return None
    x = square.inputs[0] if square is not None and _is_square(square) else None
    if x is None or x.shape is None or axes is None or axes.tolist() not in ([-1], [len(x.shape) - 1]):
        return None
    return x, number


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        return constant_number(node.inputs[1]) == 2
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _only_reader(value: ir.Value, *operators: str) -> ir.Node | None:
    node = only_use(value)
    return node if node is not None and node.op_type in operators else None
