"""Answers questions about a graph: constants, uses, biases, causality."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from stonnx._errors import ExportError

# An input of graphs whose results include rows after the end of a text: those of tokens that fill up a query, and that
# no other token attends to.
QUERY_ROWS = "query_rows"
# The input of graphs that read images: numbers [B, 3, height, width].
IMAGE_INPUT = "pixel_values"

# These operators work on each token by itself, over its channels.
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


def last_dimension(value: ir.Value) -> int:
    """The number of features of a value, which is always known."""
    size = value.shape[-1] if value.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(f"The network's output {value.name!r} has no fixed number of features.")
    return size


def input_named(graph: ir.Graph, name: str) -> ir.Value | None:
    """The graph input of that name."""
    return next((value for value in graph.inputs if value.name == name), None)


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer, of a constant, or of rows of one, transposed or not; else None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None and not value.is_graph_input() else None
    if tensor is not None:
        return tensor.numpy()
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Transpose", "Slice"):
        return None
    array, *rest = (constant_array(operand) for operand in node.inputs)
    if array is None or any(operand is None for operand in rest):
        return None
    if node.op_type == "Transpose":
        return array.transpose(tuple(node.attributes["perm"].as_ints()))
    starts, ends, axes = (operand.tolist() for operand in rest[:3] if operand is not None)
    cut = {axis: slice(start, end) for start, end, axis in zip(starts, ends, axes, strict=True)}
    result: npt.NDArray[Any] = array[tuple(cut.get(axis, slice(None)) for axis in range(array.ndim))]
    return result


def depends_on_inputs(value: ir.Value) -> bool:
    """Whether a value depends on an input of the graph."""
    waiting, seen = [value], {value}
    while waiting:
        found = waiting.pop()
        if found.is_graph_input() and not found.is_initializer():
            return True
        node = found.producer()
        sources = {source for source in (node.inputs if node is not None else ()) if source is not None} - seen
        seen |= sources
        waiting += sources
    return False


def constant_number(value: ir.Value | None) -> float | None:
    """The number in a constant of one element; None for any other value."""
    array = constant_array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def only_use(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, if no other node does and the value is not an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def vector_added(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """x and b, if a value is ``x + b`` with a constant vector b, and only one node reads it; else None."""
    add = value.producer() if value is not None else None
    if value is None or add is None or add.op_type != "Add" or only_use(value) is None:
        return None
    first, second = add.inputs
    if first is None or second is None:
        return None
    return (first, second) if _is_vector(second) else (second, first) if _is_vector(first) else None


def bias_behind(product: ir.Node) -> tuple[ir.Node, int] | None:
    """The addition that alone reads a product and adds a constant vector, and the vector's input index; else None."""
    add = only_use(product.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    index = 1 if add.inputs[0] is product.outputs[0] else 0
    bias = add.inputs[index]
    return (add, index) if bias is not None and _is_vector(bias) else None


def _is_vector(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.ndim == 1


def is_causal(attention: ir.Node) -> bool:
    """Whether an ``Attention`` node hides from each token those after it."""
    return "is_causal" in attention.attributes and attention.attributes["is_causal"].as_int() == 1


def caps_scores(attention: ir.Node) -> bool:
    """Whether an ``Attention`` node bounds its scores before the softmax."""
    return "softcap" in attention.attributes and attention.attributes["softcap"].as_float() != 0
