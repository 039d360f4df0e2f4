"""Which tokens' vectors are the result of late interaction: the mask of rows, as part of the graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import tokenizers

from stonnx_export.checkpoint.modules import Module, MultiVectorMask
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import QUERY_ROWS, input_named

logger = logging.getLogger("stonnx")

_IS_QUERY = "is_query"


@dataclass(frozen=True)
class RowMask:
    """A mask module with the ids of its words.

    Attributes:
        skipped: Ids whose vectors are not in the result.
        skipped_tasks: The tasks that this is for.
        kept: Only these ids are in the result of a document, if there are any.
    """

    skipped: tuple[int, ...] = ()
    skipped_tasks: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()


def row_mask_of(chain: tuple[Module, ...], backend: tokenizers.Tokenizer, unknown: int | None) -> RowMask:
    """The mask of a chain. ``unknown`` is the id of unknown words.

    As in the original, a word that is not one token of the vocabulary is not skipped.
    """
    module = next((module for module in chain if isinstance(module, MultiVectorMask)), None)
    if module is None:
        return RowMask()
    ids = {word: backend.token_to_id(word) for word in module.skiplist_words}
    dropped = [
        word
        for word, index in ids.items()
        if index is None or (index == unknown and word != backend.id_to_token(index))
    ]
    if dropped:
        logger.warning(
            "These words of the skiplist are not tokens of the vocabulary and are not skipped, as in "
            "sentence-transformers: %s",
            " ".join(dropped),
        )
    skipped = tuple(sorted({index for word, index in ids.items() if index is not None and word not in dropped}))
    return RowMask(skipped, module.skiplist_tasks, module.keep_only_token_ids)


def add_query_rows(model: ir.Model, chain: tuple[Module, ...]) -> None:
    """Add the input ``query_rows`` if rows after the end of a text are results, so that every pass can see it.

    It is the number of rows that a query has at least; -1, its default, says that the texts are not queries.
    """
    expansion = getattr(chain[0], "query_expansion", None)
    if expansion is not None and not expansion.attend and any(isinstance(m, MultiVectorMask) for m in chain):
        GraphBuilder(model.graph).optional_input(QUERY_ROWS, np.array(-1, dtype=np.int64), ())


def row_mask(op: GraphBuilder, mask: RowMask, name: str) -> ir.Value:
    """The mask of rows, int64 [B, S], from the ids, the attention mask and what the texts are called."""
    ids, attention = (input_named(op.graph, value) for value in ("input_ids", "attention_mask"))
    assert ids is not None
    assert attention is not None
    rows = op.Cast(attention, to=ir.DataType.BOOL)
    query_rows = input_named(op.graph, QUERY_ROWS)
    if query_rows is not None:
        positions = op.Range(op.scalar(0), op.Squeeze(op.Shape(ids, start=1, end=2)), op.scalar(1))
        rows = op.Or(rows, op.Less(positions, query_rows))
    is_query = _is_query(op, query_rows)
    if mask.skipped and not {"query", "document"}.isdisjoint(mask.skipped_tasks):
        skipped = _is_one_of(op, ids, mask.skipped)
        if "query" not in mask.skipped_tasks:
            skipped = op.And(skipped, op.Not(is_query()))
        elif "document" not in mask.skipped_tasks:
            skipped = op.And(skipped, is_query())
        rows = op.And(rows, op.Not(skipped))
    if mask.kept:
        rows = op.And(rows, op.Or(_is_one_of(op, ids, mask.kept), is_query()))
    result = op.Cast(rows, to=ir.DataType.INT64)
    op.name_output(result, name, ("batch", "sequence"))
    result.type = ir.TensorType(ir.DataType.INT64)
    return result


def _is_query(op: GraphBuilder, query_rows: ir.Value | None) -> Callable[[], ir.Value]:
    """Whether the texts are queries, a bool scalar. Graphs that do not ask that do not have an input for it."""
    made: list[ir.Value] = []

    def value() -> ir.Value:
        if not made and query_rows is not None:
            made.append(op.GreaterOrEqual(query_rows, op.scalar(0)))
        elif not made:
            given = op.optional_input(_IS_QUERY, np.array(0, dtype=np.int64), ())
            made.append(op.Cast(given, to=ir.DataType.BOOL))
        return made[0]

    return value


def _is_one_of(op: GraphBuilder, ids: ir.Value, some: Sequence[int]) -> ir.Value:
    """Which ids [B, S] are among some: bool [B, S]."""
    same = op.Equal(op.Unsqueeze(ids, op.vector([2])), op.vector(some))
    return op.Cast(op.ReduceMax(op.Cast(same, to=ir.DataType.INT32), op.vector([2]), keepdims=0), to=ir.DataType.BOOL)
