"""Models that are a table: static embeddings, dense and sparse. They do not have a network before the head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.heads.pooling import mean


def static_embedding(weight: npt.NDArray[np.float32]) -> ir.Model:
    """A graph without a network: the mean of the rows of a table [V, H]; zero for a text without tokens."""
    model, op, ids, mask = _empty_graph()
    tokens = op.Gather(op.constant(weight, "embeddings"), ids, axis=0)
    vector = mean(op, tokens, mask)
    op.name_output(vector, "vector", ("batch", weight.shape[1]))
    model.graph.outputs.append(vector)
    return model


def sparse_static_embedding(weight: npt.NDArray[np.float32]) -> ir.Model:
    """A graph without a network: the weights [V] of the tokens that occur in a text, zero elsewhere."""
    model, op, ids, mask = _empty_graph()
    table = op.constant(weight, "weights")
    shape = op.Concat(op.Shape(ids, start=0, end=1), op.vector([len(weight)]), axis=0)
    zeros = op.Expand(op.constant(np.zeros(1, dtype=np.float32)), shape)
    # The maximum, because the id of padding may also be that of a token in the text.
    present = op.ScatterElements(zeros, ids, op.Cast(mask, to=ir.DataType.FLOAT), axis=1, reduction="max")
    vector = op.Mul(present, table)
    op.name_output(vector, "vector", ("batch", len(weight)))
    model.graph.outputs.append(vector)
    return model


def _empty_graph() -> tuple[ir.Model, GraphBuilder, ir.Value, ir.Value]:
    inputs = [
        ir.Value(name=name, shape=ir.Shape(("batch", "sequence")), type=ir.TensorType(ir.DataType.INT64))
        for name in ("input_ids", "attention_mask")
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET}, name="main_graph")
    return ir.Model(graph, ir_version=11), GraphBuilder(graph), inputs[0], inputs[1]
