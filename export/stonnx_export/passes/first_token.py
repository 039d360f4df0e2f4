"""Computes the last layer for the first token alone, if the result does not need the others.

Requires: a value [B, S, H] of which only the first token is read, as by a classifier or CLS pooling. Ensures: operators
that work on each token by itself, and whose result is read for that token only, work on [B, 1, H]; attention has the
query of that token and the keys and values of all. Exact. The product that makes the queries still does so for all
tokens: it shares its input with the products of keys and values, and that input becomes 8 bits once for all three.

Embedding models also give their tokens as an output, for callers who ask for them. For these models, ``or_all`` keeps
the first ``token_limit`` tokens. ``token_limit`` is an input of the graph; its default keeps all tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import NORMALIZATIONS, constant_array, is_causal, last_dimension

_NAME = "first_token"
_OUTPUT, _LIMIT = "token_embeddings", "token_limit"
_TOKEN_WISE = NORMALIZATIONS | {"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Tanh", "Sigmoid", "MatMul"}


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators that work on the first token alone now."""
    graph, fired = model.graph, 0
    for reader in list(graph):
        if not _reads_first_token(reader) or (reader.op_type == "Slice" and reader.outputs[0].is_graph_output()):
            continue
        states = reader.inputs[0]
        assert states is not None
        graph.sort()
        chosen = _for_first_token_only(graph, reader)
        if not chosen:
            continue
        first = _narrow(graph, chosen, states, reader)
        if reader.op_type == "Gather":
            # Its index may be a scalar, which takes the dimension away.
            reader.replace_input_with(0, first)
        else:
            reader.outputs[0].replace_all_uses_with(first)
        fired += len(chosen)
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def or_all(model: ir.Model) -> PassResult:
    """Rewrite an embedding model in place, so that a caller chooses between the first token and all of them.

    ``fired`` counts as for ``run``. The output ``token_embeddings`` becomes [B, min(S, token_limit), H]. This is for
    the CPU: other providers want to know their shapes in advance.
    """
    graph = model.graph
    tokens = next((value for value in graph.outputs if value.name == _OUTPUT), None)
    reader = next(iter(tokens.uses())).node if tokens is not None and len(tokens.uses()) == 1 else None
    if tokens is None or reader is None or reader.op_type != "Gather" or not _reads_first_token(reader):
        return PassResult(_NAME, 0)
    graph.sort()
    chosen = _for_first_token_only(graph, reader, tokens)
    if chosen:
        op = GraphBuilder(graph, before=reader)
        limit = op.optional_input(_LIMIT, np.array([np.iinfo(np.int64).max]), (1,))
        some = _narrow(graph, chosen, tokens, reader, limit)
        reader.replace_input_with(0, some)
        op.name_output(some, _OUTPUT, ("batch", "tokens", last_dimension(tokens)))
        graph.outputs[list(graph.outputs).index(tokens)] = some
        RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, len(chosen))


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
        return "q_num_heads" in node.attributes and not is_causal(node)
    if node.op_type == "MatMul":
        return constant_array(node.inputs[1]) is not None
    if node.op_type in NORMALIZATIONS:
        return "axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, 2)
    return node.op_type in _TOKEN_WISE


def _for_first_token_only(graph: ir.Graph, reader: ir.Node, output: ir.Value | None = None) -> list[ir.Node]:
    """The operators, in order, whose results only ``reader``, for the first token, and one output need."""
    chosen: set[ir.Node] = set()
    for node in reversed(graph):
        value = node.outputs[0] if len(node.outputs) == 1 else None
        if value is None or value.shape is None or len(value.shape) != 3 or not _is_token_wise(node):
            continue
        if value.is_graph_output() and value is not output:
            continue
        uses = list(value.uses())
        if uses and all(use.node is reader or (use.node in chosen and _is_narrowed(use.node, use.idx)) for use in uses):
            chosen.add(node)
    return [node for node in graph if node in chosen]


def _is_narrowed(node: ir.Node, index: int) -> bool:
    """Whether this input of an operator for the first token can be computed for that token alone."""
    return node.op_type != "Attention" and not (node.op_type == "MatMul" and index == 1)


def _narrow(
    graph: ir.Graph, chosen: list[ir.Node], states: ir.Value, reader: ir.Node, limit: ir.Value | None = None
) -> ir.Value:
    """Build the operators for the first token, or the first ``limit``. Returns these tokens of ``states`` [B, 1, H]."""
    op = GraphBuilder(graph, before=reader)
    count: int | str = 1 if limit is None else "tokens"
    narrow: dict[ir.Value, ir.Value] = {}

    def first(value: ir.Value) -> ir.Value:
        if value not in narrow:
            narrow[value] = value if _is_the_same_for_all_tokens(value) else _first(op, value, limit, count)
        return narrow[value]

    for node in chosen:
        inputs: list[ir.Value | None] = []
        for index, operand in enumerate(node.inputs):
            # Attention reads the query, and the query's row of a mask or position bias [1, heads, S, S].
            needed = _is_narrowed(node, index) or (node.op_type == "Attention" and index in (0, 3))
            inputs.append(first(operand) if needed and operand is not None else operand)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        result = getattr(op, node.op_type)(*inputs, _domain=node.domain, **attributes)
        value = node.outputs[0]
        assert value.shape is not None
        result.shape, result.type = ir.Shape((value.shape[0], count, value.shape[2])), value.type
        narrow[value] = result
    return narrow[states]


def _is_the_same_for_all_tokens(value: ir.Value) -> bool:
    return value.shape is not None and (len(value.shape) < 2 or value.shape[-2] == 1)


def _first(op: GraphBuilder, value: ir.Value, limit: ir.Value | None, count: int | str) -> ir.Value:
    """The first tokens of a value. Its tokens are in the last dimension but one, or in the second of three."""
    axis = 1 if value.shape is None else len(value.shape) - 2
    end = op.vector([1]) if limit is None else limit
    first = op.Slice(value, op.vector([0]), end, op.vector([axis]))
    if value.shape is not None:
        dimensions: list[int | str | ir.SymbolicDim] = list(value.shape)
        dimensions[axis] = count
        first.shape = ir.Shape(dimensions)
    first.type = value.type
    return first
