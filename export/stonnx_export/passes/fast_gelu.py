"""GELU in its form with tanh, with the bias in front of it: the fastest that the CPU provider has.

Requires: ``Gelu``, of ``x + b`` with a constant b or of anything else. Ensures: ``FastGelu``, which differs from the
exact form by less than 0.0005; the step with which 8 bits hold the result is larger by far, so this belongs to int8
only. One operator instead of two: adding a bias takes a third of the time that GELU takes.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph import GraphBuilder, vector_added
from stonnx_export.passes._result import PassResult

_NAME = "fast_gelu"
_DOMAIN = "com.microsoft"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators."""
    graph, fired = model.graph, 0
    for node in [node for node in graph if node.op_type == "Gelu" and not node.outputs[0].is_graph_output()]:
        op = GraphBuilder(graph, before=node)
        values = node.inputs[0]
        plain, bias = vector_added(values) or (values, None)
        result = op.FastGelu(plain, *([] if bias is None else [bias]), _domain=_DOMAIN)
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        old.replace_all_uses_with(result)
        fired += 1
    if fired:
        model.opset_imports.setdefault(_DOMAIN, 1)
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)
