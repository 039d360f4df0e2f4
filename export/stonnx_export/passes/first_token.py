"""The last layer for the first token alone, where nothing reads the others.

Requires: a value [B, S, H] of which only the first token is read, as a classifier does. Ensures: the reading moves in
front of everything that works on each token by itself, and in front of the queries of attention. Keys and values are
still those of all tokens. Exact.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph import GraphBuilder, constant_array, only_use
from stonnx_export.passes._result import PassResult

_NAME = "first_token"
_TOKEN_WISE = frozenset({"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Tanh", "Sigmoid", "LayerNormalization", "MatMul"})


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators that work on the first token alone now."""
    fired = 0
    for node in list(model.graph):
        if not _reads_first_token(node) or (node.op_type == "Slice" and node.outputs[0].is_graph_output()):
            continue
        states = node.inputs[0]
        assert states is not None
        if only_use(states) is None or not _is_token_wise(states.producer()):
            continue
        op = GraphBuilder(model.graph, before=node)
        count, first = _push(model.graph, states, node)
        if node.attributes.get("axis") is not None and node.op_type == "Gather":
            # Its index may be a scalar, which takes the dimension away.
            node.replace_input_with(0, first)
            index = constant_array(node.inputs[1])
            assert index is not None
            node.replace_input_with(1, op.constant(index * 0, "first"))
        else:
            node.outputs[0].replace_all_uses_with(first)
        fired += count
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def _reads_first_token(node: ir.Node) -> bool:
    """Gather(x, 0, axis=1) or Slice(x, [0], [1], [1]) of three dimensions."""
    states = node.inputs[0] if node.inputs else None
    if states is None or states.shape is None or len(states.shape) != 3:
        return False
    if node.op_type == "Gather":
        index = constant_array(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return axis == 1 and index is not None and index.size == 1 and index.ndim <= 1 and int(index.reshape(())) == 0
    if node.op_type == "Slice" and len(node.inputs) >= 4:
        cut = [constant_array(value) for value in node.inputs[1:]]
        if any(part is None or part.size != 1 for part in cut):
            return False
        start, end, axis, *step = (int(part.reshape(())) for part in cut if part is not None)
        return (start, end, axis) == (0, 1, 1) and step in ([], [1])
    return False


def _is_token_wise(node: ir.Node | None) -> bool:
    if node is None or len(node.outputs) != 1:
        return False
    if node.op_type == "Attention":
        causal = "is_causal" in node.attributes and node.attributes["is_causal"].as_int() == 1
        return "q_num_heads" in node.attributes and not causal
    if node.op_type == "MatMul":
        return constant_array(node.inputs[1]) is not None
    if node.op_type == "LayerNormalization":
        return "axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, 2)
    return node.op_type in _TOKEN_WISE


def _push(graph: ir.Graph, value: ir.Value, reader: ir.Node) -> tuple[int, ir.Value]:
    """The first token [B, 1, H] of a value, computed from the first tokens of what it is computed from."""
    node = value.producer()
    op = GraphBuilder(graph, before=reader)
    tokens = value.shape is not None and len(value.shape) == 3
    if node is None or not tokens or not _is_token_wise(node) or only_use(value) is None:
        return 0, _first(op, value, axis=1)
    count = 1
    inputs: list[ir.Value | None] = []
    for index, operand in enumerate(node.inputs):
        if operand is None or _is_the_same_for_all_tokens(operand):
            inputs.append(operand)
        elif node.op_type == "Attention" and index > 0:
            # A mask or position bias [1, heads, S, S] has a row for each query; the other inputs are about keys.
            inputs.append(_first(op, operand, axis=2) if index == 3 else operand)
        elif node.op_type == "MatMul" and index == 1:
            inputs.append(operand)
        else:
            pushed, first = _push(graph, operand, reader)
            count += pushed
            inputs.append(first)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result = getattr(op, node.op_type)(*inputs, _domain=node.domain, **attributes)
    assert value.shape is not None
    result.shape, result.type = ir.Shape((value.shape[0], 1, value.shape[2])), value.type
    return count, result


def _is_the_same_for_all_tokens(value: ir.Value) -> bool:
    return value.shape is not None and (len(value.shape) < 2 or value.shape[-2] == 1)


def _first(op: GraphBuilder, value: ir.Value, axis: int) -> ir.Value:
    """The first token of a value, whose tokens are in the last dimension but one: ``axis`` where no shape is known."""
    axis = axis if value.shape is None else len(value.shape) - 2
    first = op.Slice(value, op.vector([0]), op.vector([1]), op.vector([axis]))
    if value.shape is not None:
        dimensions = list(value.shape)
        dimensions[axis] = 1
        first.shape = ir.Shape(dimensions)
    first.type = value.type
    return first
