"""Embedding tables in 8 bits, with a scale for each row.

Requires: ``Gather`` of rows of a float32 table. Ensures: the table is int8, and a row is multiplied by its scale after
it is read. Products with the same table, as in SPLADE's vocabulary, share it (``products``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array

_NAME = "quantize_tables"

# Smaller tables, such as those of positions and token types, stay as they are.
_SMALLEST = 1 << 18


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts tables."""
    graph, tables = model.graph, set()
    for node in list(graph):
        table = node.inputs[0] if node.inputs else None
        if node.op_type != "Gather" or table is None or not is_quantizable(table):
            continue
        if "axis" in node.attributes and node.attributes["axis"].as_int() != 0:
            continue
        op = GraphBuilder(graph, before=node)
        codes, scale = quantized_table(op, table)
        ids = node.inputs[1]
        rows = op.Cast(op.Gather(codes, ids), to=int(ir.DataType.FLOAT))
        result = op.Mul(rows, op.Gather(scale, ids))
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        old.replace_all_uses_with(result)
        tables.add(table)
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, len(tables))


def is_quantizable(table: ir.Value) -> bool:
    """Whether a value is a float32 table that is large enough to matter."""
    array = constant_array(table) if table.is_initializer() else None
    return array is not None and array.ndim == 2 and array.dtype == np.float32 and array.size >= _SMALLEST


def quantized_table(op: GraphBuilder, table: ir.Value) -> tuple[ir.Value, ir.Value]:
    """int8 codes [V, H] of a table and the scale [V, 1] of each row. They are made once for a table."""
    name = str(table.name)
    if f"{name}_codes" not in op.graph.initializers:
        array = constant_array(table)
        assert array is not None
        codes, scale = quantize_rows(array)
        op.named_constant(f"{name}_codes", codes)
        op.named_constant(f"{name}_scale", scale)
    return op.graph.initializers[f"{name}_codes"], op.graph.initializers[f"{name}_scale"]


def quantize_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 codes [V, H] and the scale [V, 1] of each row, which is never 0."""
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / np.float32(127), np.float32(1e-30))
    return np.rint(table / scale).astype(np.int8), scale.astype(np.float32)
