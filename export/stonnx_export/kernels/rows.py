"""Lets all blocks, from the first to the last, read and give rows of tokens [B * S, H].

Quantized products work on rows already (``flat_tokens``). Requires: that pass. Ensures: the first block starts with
rows too, and the last normalization ends with them, even if its result is an output of the graph. Exact: a Reshape
changes places with an operator that works on each token by itself.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import IMAGE_INPUT, NORMALIZATIONS, constant_array, input_named
from stonnx_export.int8.flat_tokens import rows_of
from stonnx_export.kernels.functions import counts_all_tokens, span_of, take_place
from stonnx_export.kernels.products import vector_factor


def run(model: ir.Model) -> None:
    """Rewrite a model in place."""
    graph = model.graph
    for node in list(graph):
        if node.op_type in NORMALIZATIONS and rows_of(node.inputs[0]) is not None:
            _normalize_rows(graph, node)
        elif node.op_type == "Reshape":
            _scale_rows(graph, node)
            _start_with_rows(graph, node)
        elif node.op_type == "Shape":
            _count_tokens(graph, node)


def _normalize_rows(graph: ir.Graph, node: ir.Node) -> None:
    """``norm(Reshape(rows))`` becomes ``Reshape(norm(rows))``."""
    reshape = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert reshape is not None
    old = node.outputs[0]
    op = GraphBuilder(graph, before=node)
    rows = getattr(op, node.op_type)(reshape.inputs[0], *node.inputs[1:], **_attributes(node))
    new = op.Reshape(rows, reshape.inputs[1])
    rows.type = new.type = old.type
    new.shape = old.shape
    take_place(old, new)


def _start_with_rows(graph: ir.Graph, reshape: ir.Node) -> None:
    """``Reshape(norm(x))`` to rows becomes ``norm(Reshape(x))``, if the residual connection has the rows of x too."""
    value = reshape.inputs[0]
    norm = value.producer() if value is not None else None
    target = _rows_target(reshape)
    if value is None or norm is None or target is None or norm.op_type not in NORMALIZATIONS:
        return
    tokens = norm.inputs[0]
    others = [use.node for use in value.uses() if use.node is not reshape]
    rows = _rows(tokens, target)
    if rows is None or any(other.op_type != "Shape" or other.inputs[0] is not value for other in others):
        return
    for other in others:
        other.replace_input_with(0, tokens)
    op = GraphBuilder(graph, before=reshape)
    new = getattr(op, norm.op_type)(rows, *norm.inputs[1:], **_attributes(norm))
    new.type = value.type
    take_place(reshape.outputs[0], new)


def _scale_rows(graph: ir.Graph, reshape: ir.Node) -> None:
    """``Reshape(x * s)`` to rows becomes ``Reshape(x) * s``."""
    value, target = reshape.inputs[0], _rows_target(reshape)
    scaled = vector_factor(value)
    if value is None or target is None or scaled is None or len(value.uses()) > 1:
        return
    tokens, factor = scaled
    op = GraphBuilder(graph, before=reshape)
    rows = _rows(tokens, target) or op.Reshape(tokens, reshape.inputs[1])
    new = op.Mul(rows, factor)
    rows.type = new.type = value.type
    take_place(reshape.outputs[0], new)


def _count_tokens(graph: ir.Graph, shape: ir.Node) -> None:
    """Take the numbers of texts and tokens from the ids, not from a value that a block computes.

    The number of the first tokens comes from the ids too, if attention is computed for those alone.
    """
    ids, images = input_named(graph, "input_ids"), input_named(graph, IMAGE_INPUT)
    value = shape.inputs[0]
    if value is None or value is ids or value is images:
        return
    op = GraphBuilder(graph, before=shape)
    if images is not None:
        _count_images(op, shape, images)
    if ids is None:
        return
    if counts_all_tokens(shape):
        take_place(shape.outputs[0], op.Shape(ids, **_attributes(shape)))
        return
    attention = value.producer()
    query = attention.inputs[0] if attention is not None and attention.op_type == "Attention" else None
    cut = query.producer() if query is not None else None
    if cut is not None and cut.op_type == "Slice" and "end" in shape.attributes:
        first = op.Slice(ids, op.vector([0]), cut.inputs[2], op.vector([1]))
        take_place(shape.outputs[0], op.Shape(first, **_attributes(shape)))


def _count_images(op: GraphBuilder, shape: ir.Node, images: ir.Value) -> None:
    """Take the number of images from the input. All images have the same number of tokens, which is known."""
    value = shape.inputs[0]
    if value is None or value.shape is None or span_of(shape) != (0, 2):
        return
    sizes = list(value.shape)
    if len(sizes) < 2 or isinstance(sizes[0], int) or not isinstance(sizes[1], int):
        return
    take_place(shape.outputs[0], op.Concat(op.Shape(images, end=1), op.vector([sizes[1]]), axis=0))


def _rows_target(reshape: ir.Node) -> list[int] | None:
    """[-1, H], if a Reshape makes rows; else None."""
    target = constant_array(reshape.inputs[1])
    return target.tolist() if target is not None and target.size == 2 and target[0] == -1 else None


def _rows(tokens: ir.Value | None, target: list[int]) -> ir.Value | None:
    """The rows that the graph makes of tokens somewhere; None if it does not."""
    users = [use.node for use in tokens.uses()] if tokens is not None else []
    reshapes = (user for user in users if user.op_type == "Reshape" and _rows_target(user) == target)
    return next((user.outputs[0] for user in reshapes), None)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
