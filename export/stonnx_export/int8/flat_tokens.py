"""Element-wise work on rows of tokens [B * S, H] instead of [B, S, H].

Quantized products take rows, so each one stands between two Reshapes. Requires: those Reshapes, as ``products`` makes
them. Ensures: a Reshape to [B, S, H] moves after element-wise operators and normalizations, until it cancels a Reshape
back to rows, or an operator needs the text's own dimension. Exact. Reshapes compute nothing, so this saves only the
nodes, which matters for one short text at a time.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import NORMALIZATIONS, constant_array

_NAME = "flat_tokens"
_ACTIVATIONS = frozenset({"Gelu", "FastGelu", "BiasGelu", "Relu", "Tanh", "Sigmoid"})
_ELEMENT_WISE = NORMALIZATIONS | _ACTIVATIONS | {"Add", "Sub", "Mul", "Div"}


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators that work on rows now."""
    graph, fired = model.graph, 0
    shapes: dict[tuple[str, ...], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Reshape":
            _share_shape(node, shapes)
            _cancel(node)
        elif node.op_type in _ELEMENT_WISE and _sink(graph, node):
            fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def rows_of(value: ir.Value | None) -> ir.Value | None:
    """The rows [B * S, H] that a value [B, S, H] was reshaped from; else None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[0] is None:
        return None
    concat = node.inputs[1].producer()
    first = concat.inputs[0] if concat is not None and concat.op_type == "Concat" and len(concat.inputs) == 2 else None
    shape = first.producer() if first is not None else None
    if shape is None or shape.op_type != "Shape" or "end" not in shape.attributes:
        return None
    return node.inputs[0] if shape.attributes["end"].as_int() == 2 else None


def _share_shape(node: ir.Node, shapes: dict[tuple[str, ...], ir.Value]) -> None:
    """Let values with the same symbolic shape take it from one node."""
    value = node.outputs[0]
    if rows_of(value) is None or value.shape is None:
        return
    key = tuple(
        value.shape[axis] if isinstance(value.shape[axis], int) else str(value.shape[axis]) for axis in range(3)
    )
    if "None" in key:
        return
    node.replace_input_with(1, shapes.setdefault(key, node.inputs[1]))  # type: ignore[arg-type]


def _cancel(node: ir.Node) -> None:
    """Replace a Reshape to rows by the rows, if its input was reshaped from them."""
    value = node.inputs[0]
    rows = rows_of(value)
    target = constant_array(node.inputs[1])
    # A scalar, such as a size that the network computes with, does not have a last dimension.
    width = value.shape[-1] if value is not None and value.shape else None
    if rows is not None and target is not None and target.tolist() == [-1, width]:
        node.outputs[0].replace_all_uses_with(rows)


def _sink(graph: ir.Graph, node: ir.Node) -> bool:
    """``f(Reshape(a), ...)`` becomes ``Reshape(f(a, ...))``, if all inputs are tokens or vectors."""
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    if node.op_type in NORMALIZATIONS and "axis" in node.attributes and node.attributes["axis"].as_int() != -1:
        return False
    source = next((value for value in node.inputs if rows_of(value) is not None), None)
    if source is None:
        return False
    flat: list[ir.Value | None] = []
    for value in node.inputs:
        array = constant_array(value)
        if value is None or (array is not None and array.ndim <= 1):
            flat.append(value)
        elif rows_of(value) is not None and _leading(value) == _leading(source):
            flat.append(rows_of(value))
        elif array is None and _leading(value) is not None and _leading(value) == _leading(source):
            op = GraphBuilder(graph, before=node)
            flat.append(op.Reshape(value, op.vector([-1, int(value.shape[2])])))  # type: ignore[index,arg-type]
        else:
            return False
    op = GraphBuilder(graph, before=node)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    rows = getattr(op, node.op_type)(*flat, _domain=node.domain, **attributes)
    old = node.outputs[0]
    reshape = source.producer()
    assert reshape is not None
    back = op.Reshape(rows, reshape.inputs[1])
    back.shape, back.type, rows.type = old.shape, old.type, old.type
    old.replace_all_uses_with(back)
    return True


def _leading(value: ir.Value) -> tuple[str, ...] | None:
    """The first two of three dimensions, if they are known by number or name."""
    if value.shape is None or len(value.shape) != 3:
        return None
    known = tuple(str(dimension) for dimension in value.shape)[:2]
    return None if "None" in known else known
