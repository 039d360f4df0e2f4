"""Half precision for a network, in the form that a recipe names."""

from __future__ import annotations

import onnx_ir as ir

from stonnx_export.fp16 import float16, half_range
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.originals.original import OriginalTokenizer


def to_float16(network: ir.Model, tokenizer: OriginalTokenizer, limit: int | None) -> PassResult:
    """Make a network float16, except the operators whose values, for texts of any length, would overflow.

    Args:
        network: Rewritten in place.
        tokenizer: Makes the texts whose values are measured.
        limit: Tokens of the longest text. None: texts have no limit.
    """
    return float16.run(network, half_range.largest_values(network, half_range.sequences(tokenizer, limit)))
