"""Take every batch size and sequence length from ``input_ids``, and make ``token_type_ids`` optional.

Requires: inputs of shape [batch, sequence]. Ensures: ``input_ids`` and ``attention_mask`` are the only required inputs.
The tracer reads sizes from any of the inputs, which would tie the graph to inputs that it hardly needs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import input_named

_NAME = "shapes"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the size computations that moved and the inputs made optional."""
    graph = model.graph
    ids = input_named(graph, "input_ids")
    if ids is None:
        return PassResult(_NAME, 0, ("the graph has no input 'input_ids'",))
    fired = 0
    for name in ("attention_mask", "token_type_ids"):
        value = input_named(graph, name)
        for node in [use.node for use in value.uses()] if value is not None else []:
            if node.op_type == "Shape":
                node.replace_input_with(0, ids)
                fired += 1
    types = input_named(graph, "token_type_ids")
    if types is not None and types.const_value is None:
        # A single text has segment 0 for every token. The default is one zero, spread over the batch. Its dimensions
        # have names of their own, because onnxruntime shares buffers between values of equal shape.
        op = GraphBuilder(graph, before=graph[0])
        spread = op.Expand(types, op.Shape(ids))
        spread.shape, spread.type = ids.shape, types.type
        for node, index in [use for use in types.uses() if use.node is not spread.producer()]:
            node.replace_input_with(index, spread)
        types.shape = ir.Shape(("token_type_batch", "token_type_sequence"))
        types.const_value = ir.tensor(np.zeros((1, 1), dtype=np.int64), name="token_type_ids")
        graph.register_initializer(types)
        fired += 1
    return PassResult(_NAME, fired)
