"""The network in half precision, for GPUs.

Requires: a network before its heads are grafted on, and the largest magnitude of each of its :func:`values`. Ensures:
everything computed from embedding tables, or from an image, is float16, weights included. Positions, masks and rotary
angles depend on the inputs alone and stay float32. So do the sums of squares of RMS normalization, and every operator
that reads or gives a value too large for half precision. The outputs are float32, so that pooling and everything after
it is computed as in every other bundle.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array

_NAME = "float16"
# Half of the largest number in half precision: texts that were not measured may have larger values.
LIMIT = float(np.finfo(np.float16).max) / 2
# Parts of a normalization that is spelled out: in half precision they overflow, or lose the digits that matter.
_WIDE = frozenset({"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Rsqrt", "Reciprocal", "Sin", "Cos", "CumSum"})


def values(model: ir.Model) -> list[ir.Value]:
    """The values whose largest magnitude the pass needs: all that its operators compute or read, except weights."""
    ShapeInferencePass()(model)
    found: dict[ir.Value, None] = {}
    for node in _candidates(model.graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None and _is_float(value) and not value.is_initializer():
                found[value] = None
    return list(found)


def run(model: ir.Model, largest: Mapping[str, float]) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators that compute in half precision now.

    ``largest`` has the largest magnitude of each of the model's :func:`values`, by its name.
    """
    ShapeInferencePass()(model)  # types of the values that other passes made
    graph = model.graph
    half: set[ir.Node | None] = set()
    declined, kept = [], []
    for node in _candidates(graph):
        reason = _too_large(node, largest)
        if reason:
            declined.append(f"{node.name or node.op_type}: {reason}, and half precision has {2 * LIMIT:,.0f} at most")
            kept.append(str(node.outputs[0].name))
        else:
            half.add(node)
    casts: dict[tuple[ir.Value, bool], ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None or not _is_float(value):
                continue
            wanted, given = node in half, value.producer() in half
            if wanted != given:
                node.replace_input_with(index, _converted(graph, value, wanted, node, casts))
    for index, output in enumerate(graph.outputs):
        if output.producer() in half:
            graph.outputs[index] = _float32_output(graph, output)
    for node in graph:
        if node not in half:
            continue
        for value in node.outputs:
            if _is_float(value):
                # Not its dtype: a copy of the model shares the object that holds it.
                value.type = ir.TensorType(ir.DataType.FLOAT16)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, len(half), tuple(declined), tuple(kept))


def _candidates(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that compute on rows of a float table or on images, except those that need the range of float32."""
    data = {value for value in graph.inputs if _is_float(value)}
    found = []
    for node in graph:
        table = constant_array(node.inputs[0]) if node.op_type == "Gather" else None
        reads_table = table is not None and table.ndim == 2 and table.dtype == np.float32
        read = [value for value in node.inputs if value is not None and value in data]
        if not reads_table and not read:
            continue
        data.update(value for value in node.outputs if _is_float(value))
        if node.op_type in _WIDE or not any(_is_float(value) for value in node.outputs):
            continue
        # The epsilon of a normalization, between its mean and its root.
        if node.op_type == "Add" and all(_operator(value) in _WIDE for value in read):
            continue
        found.append(node)
    return found


def _operator(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node is not None else ""


def _too_large(node: ir.Node, largest: Mapping[str, float]) -> str:
    """The value that a node reads or computes and that half precision cannot hold; empty if it holds all of them."""
    for value in (*node.inputs, *node.outputs):
        if value is None or not _is_float(value):
            continue
        array = constant_array(value) if value.is_initializer() else None
        # NaN and infinity among weights stay what they are, for the check that refuses them.
        peak = largest[str(value.name)] if array is None else float(np.abs(array).max(initial=0))
        if not peak <= LIMIT:
            return f"{'weights' if array is not None else 'values'} {value.name!r} reach {peak:.3g}"
    return ""


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _converted(
    graph: ir.Graph, value: ir.Value, half: bool, before: ir.Node, casts: dict[tuple[ir.Value, bool], ir.Value]
) -> ir.Value:
    """A value in the other precision. Weights are converted here, all other values when the graph runs."""
    if (value, half) not in casts:
        array = constant_array(value) if value.is_initializer() else None
        if array is not None and half:
            casts[value, half] = GraphBuilder(graph).constant(array.astype(np.float16), "half")
        else:
            op = GraphBuilder(graph, before=before)
            kind = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
            cast = op.Cast(value, to=int(kind))
            cast.dtype, cast.shape = kind, value.shape
            casts[value, half] = cast
    return casts[value, half]


def _float32_output(graph: ir.Graph, output: ir.Value) -> ir.Value:
    name = output.name
    output.name = f"{name}_half"
    cast = GraphBuilder(graph).Cast(output, to=int(ir.DataType.FLOAT))
    cast.name, cast.dtype, cast.shape = name, ir.DataType.FLOAT, output.shape
    return cast
