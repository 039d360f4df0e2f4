"""SPLADE's maximum over the tokens of a text, of a product with the table of the vocabulary, as one block.

``passes/splade_chunks`` computes it in pieces of the vocabulary, each ``ReduceMax(x W)`` of some rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from stonnx_export.graph.read import constant_array
from stonnx_export.kernels.functions import Part
from stonnx_export.kernels.products import WeightKind, kind_of, stored, unshaped

VOCABULARY_INPUTS = ("x", "lengths", "table", "s_table")
# What turns the mask of tokens, 0 or 1, into one of tokens that count.
_MASKING = ("Cast", "Unsqueeze")


@dataclass(frozen=True)
class _Piece:
    """The maximum of ``x table[start:end]'``. ``scale`` and ``settings`` belong to 8 bits."""

    tokens: ir.Value
    table: ir.Value
    start: int
    end: int
    scale: ir.Value | None = None
    settings: tuple[ir.Value, ...] = ()


def vocabularies(model: ir.Model, lengths: ir.Value | None) -> Iterator[tuple[WeightKind, Part]]:
    """The products with a whole table whose maxima are put together, and how their tables are stored."""
    for node in list(model.graph):
        if node.op_type != "Concat" or len(node.inputs) < 2 or lengths is None:
            continue
        pieces = [_piece(value) for value in node.inputs]
        first = pieces[0]
        if first is None or any(piece is None or not _follows(piece, first) for piece in pieces):
            continue
        ends = [0, *(piece.end for piece in pieces if piece is not None)]
        words = first.table.shape[0] if first.table.shape is not None else None
        if [piece.start for piece in pieces if piece is not None] != ends[:-1] or ends[-1] != words:
            continue
        filled = first.tokens.producer()
        if filled is None or filled.op_type != "Where" or not _is_of_tokens(filled.inputs[0], model.graph):
            continue
        kept, states = filled.inputs[:2]
        assert kept is not None
        kind = kind_of(first.table)
        inputs = dict(zip(VOCABULARY_INPUTS, (states, lengths, first.table, first.scale), strict=True))
        extras = (*first.settings, kept)
        yield kind, Part(f"Vocabulary{kind}", inputs, extras, {}, node.outputs[0], same_rows=False)


def _follows(piece: _Piece, first: _Piece) -> bool:
    return piece.tokens is first.tokens and piece.table is first.table and piece.scale is first.scale


def _piece(value: ir.Value | None) -> _Piece | None:
    reduce = value.producer() if value is not None else None
    if reduce is None or reduce.op_type != "ReduceMax" or "keepdims" not in reduce.attributes:
        return None
    axes = constant_array(reduce.inputs[1]) if len(reduce.inputs) > 1 else None
    if axes is None or axes.tolist() != [1] or reduce.attributes["keepdims"].as_int() != 0:
        return None
    logits = unshaped(reduce.inputs[0])
    product = logits.producer() if logits is not None else None
    if product is None:
        return None
    if product.op_type == "MatMul":
        rows = _rows(product.inputs[1], "Transpose")
        return None if rows is None or product.inputs[0] is None else _Piece(product.inputs[0], *rows)
    if product.op_type != "MatMulIntegerToFloat":
        return None
    codes, weight, token_scale, weight_scale, zero_point = product.inputs[:5]
    rows, scales = _rows(weight, "Transpose"), _rows(weight_scale, "Squeeze")
    quantize = codes.producer() if codes is not None else None
    if rows is None or scales is None or scales[1:] != rows[1:] or quantize is None:
        return None
    tokens = unshaped(quantize.inputs[0]) if quantize.op_type == "QuantizeLinear" else None
    scale = token_scale.producer() if token_scale is not None else None
    if tokens is None or scale is None or scale.op_type != "Mul" or token_scale is not quantize.inputs[1]:
        return None
    settings = (scale.inputs[1], zero_point)
    return _Piece(tokens, *rows, scales[0], tuple(each for each in settings if each is not None))


def _rows(value: ir.Value | None, operator: str) -> tuple[ir.Value, int, int] | None:
    """A table, and which of its rows an operator reads: ``operator(table[start:end])``."""
    node = value.producer() if value is not None else None
    cut = node.inputs[0].producer() if node is not None and node.op_type == operator and node.inputs[0] else None
    table = stored(cut.inputs[0]) if cut is not None and cut.op_type == "Slice" else None
    if cut is None or table is None:
        return None
    bounds = [constant_array(bound) for bound in cut.inputs[1:4]]
    if any(bound is None or bound.size != 1 for bound in bounds) or len(bounds) < 3 or len(cut.inputs) > 4:
        return None
    start, end, axis = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
    words = table.shape[0] if table.shape is not None else None
    if axis != 0 or not isinstance(words, int):
        return None
    return table, start, min(end, words)


def _is_of_tokens(value: ir.Value | None, graph: ir.Graph) -> bool:
    """Whether a mask says which tokens a text has, and nothing else."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _MASKING:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return value is not None and value.is_graph_input() and value.name == "attention_mask"
