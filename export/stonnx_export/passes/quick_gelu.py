"""Turns the quick GELU of CLIP, ``x * sigmoid(c x)``, into SiLU, by moving c into the weights around it.

Requires: ``x = t W + b``, and ``x * Sigmoid(x * c)`` with a constant c, read by nothing but products with constant
weights V. Ensures: ``W c`` and ``b c`` in the place of W and b, SiLU (``y * Sigmoid(y)``), and ``V / c`` in the place
of V. Native kernels have SiLU, and stock operators save a multiplication. Exact in real numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array, constant_number, only_use

_NAME = "quick_gelu"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the activations."""
    fired, declined = 0, []
    for node in [node for node in model.graph if node.op_type == "Sigmoid"]:
        found = _factor(node)
        if found is None:
            continue
        reason = _rewrite(model.graph, node, *found)
        if reason:
            declined.append(f"{node.outputs[0].name}: {reason}")
        else:
            fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _factor(sigmoid: ir.Node) -> tuple[ir.Value, float, ir.Node] | None:
    """x, c and the product ``x * sigmoid``, if the sigmoid is that of ``x * c``; else None."""
    scaled = sigmoid.inputs[0]
    multiply = scaled.producer() if scaled is not None else None
    if scaled is None or multiply is None or multiply.op_type != "Mul" or only_use(scaled) is not sigmoid:
        return None
    for x, factor in (multiply.inputs, reversed(multiply.inputs)):
        number = constant_number(factor)
        active = only_use(sigmoid.outputs[0])
        if x is not None and number is not None and active is not None and active.op_type == "Mul":
            return (x, number, active) if x in active.inputs else None
    return None


def _rewrite(graph: ir.Graph, sigmoid: ir.Node, x: ir.Value, factor: float, active: ir.Node) -> str:
    """Move the factor of a quick GELU into weights. Returns the reason if that cannot be done, or an empty text."""
    add = x.producer()
    biased = add is not None and add.op_type == "Add"
    product: ir.Node | None = add
    place, bias = 0, None
    if add is not None and biased:
        for index in (0, 1):
            array = constant_array(add.inputs[index])
            other = add.inputs[1 - index]
            if array is not None and array.ndim == 1 and other is not None:
                place, bias, product = index, array, other.producer()
    up = _weight(product)
    readers = [use.node for use in active.outputs[0].uses()]
    downs = [_weight(reader) for reader in readers]
    if product is None or up is None or (biased and (bias is None or only_use(product.outputs[0]) is not add)):
        return "it is not the activation of a product with a constant weight"
    if {use.node for use in x.uses()} != {sigmoid.inputs[0].producer(), active}:  # type: ignore[union-attr]
        return "another operator reads the product before it"
    if not factor > 0 or active.outputs[0].is_graph_output() or not readers or any(down is None for down in downs):
        return "something else than products with constant weights reads it"
    op = GraphBuilder(graph, before=product)
    product.replace_input_with(1, op.constant(_times(up, factor), "weight"))
    if add is not None and bias is not None:
        add.replace_input_with(place, op.constant(_times(bias, factor), "bias"))
    sigmoid.replace_input_with(0, x)
    for reader, down in zip(readers, downs, strict=True):
        assert down is not None
        reader.replace_input_with(1, op.constant(_times(down, 1 / factor), "weight"))
    return ""


def _weight(product: ir.Node | None) -> npt.NDArray[np.float32] | None:
    """The constant matrix that a product multiplies with; else None."""
    if product is None or product.op_type != "MatMul":
        return None
    weight = constant_array(product.inputs[1])
    return weight if weight is not None and weight.ndim == 2 else None


def _times(array: npt.NDArray[np.float32], factor: float) -> npt.NDArray[np.float32]:
    return (array.astype(np.float64) * factor).astype(array.dtype)
