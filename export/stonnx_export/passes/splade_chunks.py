"""Computes SPLADE's maximum over tokens in pieces of the vocabulary.

Requires: ReduceMax(Where(mask, x W + b, -inf)) over the tokens, as ``heads.sparse`` builds it. Ensures: logits of
[batch, sequence, vocabulary] never exist; at most ``CHUNK`` columns of them do. The bias is added after the maximum,
on one row for each text: the same number for all tokens does not change which is the largest. The first token replaces
padding before the product. That does not change any maximum, and costs a hundredth of a mask after it. Exact.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult

_NAME = "splade_chunks"
# Columns of the vocabulary at a time: 512 tokens of these are 4 MB. Larger pieces leave the processor's caches; smaller
# pieces mean more operators for one short text.
CHUNK = 2048


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the maxima that are taken in pieces."""
    graph, fired, declined = model.graph, 0, []
    for node in [node for node in graph if node.op_type == "ReduceMax"]:
        where = _producer(node.inputs[0], "Where")
        add = _producer(where.inputs[1], "Add") if where is not None else None
        if where is None or add is None:
            continue
        product, bias = add.inputs[0], add.inputs[1]
        multiply = _producer(product, "MatMul")
        transpose = _producer(multiply.inputs[1], "Transpose") if multiply is not None else None
        table = transpose.inputs[0] if transpose is not None else None
        states = multiply.inputs[0] if multiply is not None else None
        if states is None or table is None or table.const_value is None or bias is None or bias.const_value is None:
            declined.append(f"{node.name}: its logits are not a product with a constant table")
            continue
        vocabulary = table.const_value.shape[0]
        if not isinstance(vocabulary, int) or vocabulary <= CHUNK:
            continue
        op = GraphBuilder(graph, before=node)
        kept, lowest = where.inputs[0], where.inputs[2]
        first = [op.vector([0]), op.vector([1]), op.vector([1])]
        filled = op.Where(kept, states, op.Slice(states, *first))
        filled.shape, filled.type = states.shape, states.type
        pieces = []
        for start in range(0, vocabulary, CHUNK):
            # These are rows of the table that most models share with the word embeddings, so the file does not grow.
            # onnxruntime takes the rows out and transposes them once, when it loads the graph.
            rows = op.Slice(table, op.vector([start]), op.vector([start + CHUNK]), op.vector([0]))
            logits = op.MatMul(filled, op.Transpose(rows, perm=[1, 0]))
            pieces.append(op.ReduceMax(logits, node.inputs[1], keepdims=0))
        # Padding is on the right: a text whose first token does not count does not have any token.
        any_token = op.Squeeze(op.Slice(kept, *first), op.vector([2]))
        result = op.Where(any_token, op.Add(op.Concat(*pieces, axis=-1), bias), lowest)
        node.outputs[0].replace_all_uses_with(result)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None
