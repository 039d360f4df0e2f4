"""Tokens without a row in the network's table: somebody added them to the tokenizer and did not resize the table."""

from __future__ import annotations

import logging

import onnx_ir as ir
import tokenizers

from stonnx_export.checkpoint.modules import Module, SparseStaticEmbedding, StaticEmbedding
from stonnx_export.graph.read import constant_array, input_named

logger = logging.getLogger("stonnx")

# A message names this many tokens. More names would not help more than their number.
_MOST_TOKENS = 8


def token_rows(graph: ir.Graph, first: Module, backend: tokenizers.Tokenizer) -> int | None:
    """The rows of a network's table of tokens if the tokenizer has ids beyond them, else None.

    sentence-transformers loads such a model, and fails for the first text with such a token.
    """
    rows = len(first.weight) if isinstance(first, StaticEmbedding | SparseStaticEmbedding) else _rows(graph)
    if rows is None:
        return None
    beyond = sorted((index, token) for token, index in backend.get_vocab().items() if index >= rows)
    if not beyond:
        return None
    names = ", ".join(repr(token) for _, token in beyond[:_MOST_TOKENS])
    more = f" and {len(beyond) - _MOST_TOKENS} more" if len(beyond) > _MOST_TOKENS else ""
    logger.warning(
        "The tokenizer has %d tokens that the network has no row for (it has %d rows): %s%s. A text with one of them "
        "is a TokenIdError, as it is an IndexError in sentence-transformers.",
        *(len(beyond), rows, names, more),
    )
    return rows


def _rows(graph: ir.Graph) -> int | None:
    """The rows of the table that the ids choose from; None if they go somewhere else first."""
    ids = input_named(graph, "input_ids")
    tables = [
        constant_array(use.node.inputs[0])
        for use in (ids.uses() if ids is not None else ())
        if use.node.op_type == "Gather" and use.idx == 1
    ]
    return min((len(table) for table in tables if table is not None and table.ndim == 2), default=None)
