"""SPLADE's maximum over tokens in pieces of the vocabulary.

Requires: ReduceMax(Where(mask, x W + b, -inf)) over the tokens, as ``heads.splade`` builds it. Ensures: logits of
[batch, sequence, vocabulary] never exist; at most ``CHUNK`` columns of them do. The bias is added after the maximum,
on one row for each text. Exact: adding the same number to all tokens does not change which is the largest.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph import GraphBuilder
from stonnx_export.passes._result import PassResult

_NAME = "splade_chunks"
# Columns of the vocabulary at a time: 1,024 tokens of these are 16 MB.
CHUNK = 4096


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
        if multiply is None or table is None or table.const_value is None or bias is None or bias.const_value is None:
            declined.append(f"{node.name}: its logits are no product with a constant table")
            continue
        vocabulary = table.const_value.shape[0]
        if not isinstance(vocabulary, int) or vocabulary <= CHUNK:
            continue
        op = GraphBuilder(graph, before=node)
        states, kept, lowest = multiply.inputs[0], where.inputs[0], where.inputs[2]
        pieces = []
        for start in range(0, vocabulary, CHUNK):
            # Rows of the table, which most models share with the word embeddings: the file does not grow. onnxruntime
            # takes the rows out and transposes them once, when it loads the graph.
            rows = op.Slice(table, op.vector([start]), op.vector([start + CHUNK]), op.vector([0]))
            logits = op.MatMul(states, op.Transpose(rows, perm=[1, 0]))
            pieces.append(op.ReduceMax(op.Where(kept, logits, lowest), node.inputs[1], keepdims=0))
        node.outputs[0].replace_all_uses_with(op.Add(op.Concat(*pieces, axis=-1), bias))
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None
