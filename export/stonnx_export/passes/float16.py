"""The network in half precision, for GPUs.

Requires: a network before its heads are grafted on. Ensures: what is computed from embedding tables is float16,
weights included; positions, masks and rotary angles, which are computed from the inputs alone, stay float32, and so do
the sums of squares of RMS normalization, which overflow half precision. The outputs are float32, so that pooling and
everything behind it is computed as in every other bundle.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from stonnx_export.graph import GraphBuilder, constant_array
from stonnx_export.passes._result import PassResult

_NAME = "float16"
_LARGEST = float(np.finfo(np.float16).max)
# Parts of a normalization that is spelled out: in half precision they overflow, or lose what they are about.
_WIDE = frozenset({"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Rsqrt", "Reciprocal", "Sin", "Cos", "CumSum"})


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the operators that compute in half precision now."""
    ShapeInferencePass()(model)  # types of what other passes made
    graph = model.graph
    half = _nodes_in_half(graph)
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
                value.dtype = ir.DataType.FLOAT16
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, len(half))


def _nodes_in_half(graph: ir.Graph) -> set[ir.Node | None]:
    """The nodes that compute on rows of a float table, all but those that need the range of float32."""
    data: set[ir.Value] = set()
    half: set[ir.Node | None] = set()
    for node in graph:
        table = constant_array(node.inputs[0]) if node.op_type == "Gather" else None
        reads_table = table is not None and table.ndim == 2 and table.dtype == np.float32
        if not reads_table and not any(value in data for value in node.inputs if value is not None):
            continue
        data.update(value for value in node.outputs if _is_float(value))
        if node.op_type not in _WIDE and any(_is_float(value) for value in node.outputs):
            half.add(node)
    return half


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _converted(
    graph: ir.Graph, value: ir.Value, half: bool, before: ir.Node, casts: dict[tuple[ir.Value, bool], ir.Value]
) -> ir.Value:
    """A value in the other precision: weights are converted here, everything else when the graph runs."""
    if (value, half) not in casts:
        array = constant_array(value) if value.is_initializer() else None
        if array is not None and half:
            if not np.all(np.abs(array[np.isfinite(array)]) <= _LARGEST):
                # A mask's lowest number is meant to be out of reach, whichever it is.
                array = np.clip(array, -_LARGEST, _LARGEST)
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
