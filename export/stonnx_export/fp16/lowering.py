"""Half precision for a network, in the form that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from stonnx_export.calibration.measure import Sample
from stonnx_export.fp16 import float16, half_range
from stonnx_export.graph.pass_result import PassResult


def to_float16(network: ir.Model, samples: Sequence[Sample]) -> PassResult:
    """Make a network float16, except the operators whose values would overflow.

    Args:
        network: Rewritten in place.
        samples: Texts or images whose values are measured.
    """
    return float16.run(network, half_range.largest_values(network, samples))
