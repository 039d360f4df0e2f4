"""Half precision of a network, as a recipe names it."""

from __future__ import annotations

import onnx_ir as ir

from stonnx_export.fp16 import float16, half_range
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.originals.original import OriginalTokenizer


def to_float16(network: ir.Model, tokenizer: OriginalTokenizer, limit: int | None) -> PassResult:
    """Make a network float16, as far as the values that it has for texts of all lengths have room.

    Args:
        network: Rewritten in place.
        tokenizer: Makes the texts whose values are looked at.
        limit: Tokens of the longest text. None: no such limit.
    """
    return float16.run(network, half_range.largest_values(network, half_range.sequences(tokenizer, limit)))
