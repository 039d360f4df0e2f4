"""Turns root mean square normalization that arrives in pieces into the ``RMSNormalization`` operator.

Requires: ``w * (x / sqrt(mean(x^2) + epsilon))`` over the last dimension, with a constant vector w, as in traces of
networks; the division may be a product with the reciprocal. Ensures: one node with the weight w. Exact in real numbers.
It makes one pass over the tokens instead of four, and gives values that a static scale can hold (``int8``). It is for
CPU recipes only: TensorRT has the operator since 10.15, and not every onnxruntime has it for CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array, constant_number, only_use

_NAME = "fuse_rms_norm"


@dataclass(frozen=True)
class RmsNorm:
    """``gamma * (input / sqrt(mean(input^2) + epsilon))`` over the last dimension."""

    input: ir.Value
    gamma: ir.Value
    epsilon: float


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the normalizations."""
    fired = 0
    for node in [node for node in model.graph if node.op_type == "Mul"]:
        old = node.outputs[0]
        found = rms_norm_of(old)
        if found is None or old.is_graph_output():
            continue
        op = GraphBuilder(model.graph, before=node)
        result = op.RMSNormalization(found.input, found.gamma, axis=-1, epsilon=found.epsilon)
        result.shape, result.type = old.shape, old.type
        old.replace_all_uses_with(result)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def rms_norm_of(value: ir.Value | None) -> RmsNorm | None:
    """The normalization, in pieces that nothing else reads, that a value is the result of; else None."""
    weighted = value.producer() if value is not None else None
    if weighted is None or weighted.op_type != "Mul":
        return None
    for divided, gamma in (weighted.inputs, reversed(weighted.inputs)):
        array = constant_array(gamma)
        found = _divided(divided) if divided is not None and only_use(divided) is not None else None
        if found is None or gamma is None or array is None or array.dtype != np.float32:
            continue
        x, epsilon = found
        if x.shape is not None and array.shape == (x.shape[-1],):
            return RmsNorm(x, gamma, epsilon)
    return None


def _divided(value: ir.Value) -> tuple[ir.Value, float] | None:
    """x and epsilon, if a value is ``x / sqrt(mean(x^2) + epsilon)``, or the product with the reciprocal; else None."""
    node = value.producer()
    if node is None or node.op_type not in ("Div", "Mul"):
        return None
    x, root = node.inputs
    if node.op_type == "Mul":
        roots = [other for other in node.inputs if _is_result_of(other, "Reciprocal")]
        if len(roots) != 1:
            return None
        x = next(other for other in node.inputs if other is not roots[0])
        reciprocal = roots[0].producer() if roots[0] is not None else None
        assert reciprocal is not None
        root = reciprocal.inputs[0]
    if root is None or not _is_result_of(root, "Sqrt"):
        return None
    sqrt = root.producer()
    assert sqrt is not None
    found = _mean_square(sqrt.inputs[0])
    return found if found is not None and found[0] is x else None


def _is_result_of(value: ir.Value | None, operator: str) -> bool:
    """Whether an operator computes a value for a single reader."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == operator and value is not None and only_use(value) is not None


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
