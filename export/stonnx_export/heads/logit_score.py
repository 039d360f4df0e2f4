"""The score of a causal language model: its answer to the question whether two texts belong together."""

from __future__ import annotations

import onnx_ir as ir

from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.heads.pooling import POOLINGS


def logit_score(op: GraphBuilder, module: modules.LogitScore, logits: ir.Value, mask: ir.Value) -> ir.Value:
    """The logits of the answers [B, S, tokens] and the mask [B, S] to the score [B, 1] after the last token."""
    last = POOLINGS["lasttoken"](op, logits, mask)
    if module.false_token_id is None:
        return last
    return op.Sub(
        op.Slice(last, op.vector([0]), op.vector([1]), op.vector([1])),
        op.Slice(last, op.vector([1]), op.vector([2]), op.vector([1])),
    )
