"""Weights and embedding tables stored in bfloat16: they take half the size, and kernels multiply them as they are.

Those that change the result most stay in float32 if the tolerance is missed otherwise.

Requires: products ``x W``, lookups in tables, and products with rows of a table (see ``passes/splade_chunks``), in
float32. Ensures: each large W and table is bfloat16, and a ``Cast`` turns it into float32, which onnxruntime computes
once, at load. So all arithmetic stays in float32 unless a kernel runs. Only the weights are rounded, each by at most
1 / 256 of itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.calibration.measure import Sample
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.lower_precision import Lowered, LowerPrecision
from stonnx_export.passes import PassResult
from stonnx_export.stages import Advance, untold

_NAME = "bfloat16"
# Smaller weights are not worth a node each.
_SMALLEST = 4096


class HalfWeights(LowerPrecision):
    """A float32 graph whose weights and tables can be stored in bfloat16."""

    stage = "storing weights in bfloat16"
    search = "finding the weights that lose most in bfloat16"
    calibrates = False

    def __init__(self, model: ir.Model, samples: Sequence[Sample], advance: Advance = untold) -> None:
        super().__init__(model, samples)
        self._names = [str(weight.name) for weight, _, _ in _weights(model.graph)]

    @property
    def names(self) -> Sequence[str]:
        """The weights and tables."""
        return self._names

    def lowered(self, keep: Collection[str]) -> Lowered:
        """The graph in bfloat16, and what the pass did."""
        model = self._model.clone()
        return model, [run(model, keep)], {}


def run(model: ir.Model, keep: Collection[str] = (), *, only: Collection[str] | None = None) -> PassResult:
    """Rewrite a model in place, except for some weights, or only some. ``fired`` counts the weights and tables."""
    graph, fired = model.graph, 0
    for weight, lookups, products in _weights(graph):
        if weight.name in keep or (only is not None and weight.name not in only):
            continue
        stored = _stored(graph, weight)
        for lookup in lookups:
            # Rows become float32 only after they are read: the table stays as small as it is in the file.
            _cast_after(graph, lookup, stored)
        if products:
            op = GraphBuilder(graph, before=min((node for node, _ in products), key=list(graph).index))
            value = op.Cast(stored, to=ir.DataType.FLOAT)
            value.shape, value.type = weight.shape, weight.type
            for node, index in products:
                node.replace_input_with(index, value)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired)


def tables_of(graph: ir.Graph) -> list[ir.Value]:
    """The tables that can be stored in bfloat16 and that nothing but lookups reads."""
    return [weight for weight, lookups, products in _weights(graph) if lookups and not products]


def weights_of_products(graph: ir.Graph) -> frozenset[str]:
    """The names of the weights that can be stored in bfloat16 and that nothing but products reads."""
    return frozenset(str(weight.name) for weight, lookups, products in _weights(graph) if products and not lookups)


def _weights(graph: ir.Graph) -> list[tuple[ir.Value, list[ir.Node], list[tuple[ir.Node, int]]]]:
    """Each weight that can be stored in bfloat16, the lookups of its rows, and the products and their inputs."""
    found = []
    for weight in graph.initializers.values():
        tensor = weight.const_value
        if tensor is None or weight.is_graph_input() or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST:
            continue
        lookups = [use.node for use in weight.uses() if use.node.op_type == "Gather" and use.idx == 0]
        products = [(use.node, use.idx) for use in weight.uses() if _multiplies(use.node, use.idx)]
        if len(tensor.shape) == 2 and 0 < len(products) + len(lookups) == len(weight.uses()):
            found.append((weight, lookups, products))
    return found


def _multiplies(node: ir.Node, index: int) -> bool:
    """Whether a node that reads a weight at an index is a product, or takes rows of a table for products."""
    if node.op_type == "MatMul":
        return index == 1
    if node.op_type not in ("Slice", "Transpose") or index != 0 or node.outputs[0].is_graph_output():
        return False
    return all(_multiplies(use.node, use.idx) for use in node.outputs[0].uses())


def _stored(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """The initializer in bfloat16, rounded to the nearest, under a name of its own."""
    assert weight.const_value is not None
    array = weight.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=ir.DataType.BFLOAT16, name=f"{weight.name}_bfloat16")
    value = ir.Value(name=tensor.name, shape=weight.shape, type=ir.TensorType(ir.DataType.BFLOAT16), const_value=tensor)
    graph.register_initializer(value)
    return value


def _cast_after(graph: ir.Graph, lookup: ir.Node, stored: ir.Value) -> None:
    old = lookup.outputs[0]
    op = GraphBuilder(graph, before=lookup)
    axis = {"axis": lookup.attributes["axis"].as_int()} if "axis" in lookup.attributes else {}
    new = op.Cast(op.Gather(stored, lookup.inputs[1], **axis), to=ir.DataType.FLOAT)
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)
