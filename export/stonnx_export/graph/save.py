"""Writes a finished graph to its file, after a check for values that are not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from stonnx._errors import ExportError
from stonnx_export.graph.read import constant_array


def check_finite(model: ir.Model) -> None:
    """Raise ExportError if weights are NaN or infinite: a text that meets them does not have a vector."""
    for name, value in model.graph.initializers.items():
        array = constant_array(value)
        if array is None or array.dtype.kind != "f" or array.size == 1:
            continue
        broken = ~np.isfinite(array)
        # An array of zeros and minus infinity is a mask.
        if broken.any() and (array[~broken].any() or not np.isneginf(array[broken]).all()):
            raise ExportError(
                f"{np.count_nonzero(broken):,} of the {array.size:,} weights {name!r} are NaN or infinite: the "
                "checkpoint is damaged. Download it again, or go back to one that was saved before."
            )


# One file holds a protobuf of up to 2 GB; larger weights go beside it.
_MAX_EMBEDDED_BYTES = 1_900_000_000


def save(model: ir.Model, path: Path) -> None:
    """Write a model to a file; weights over 1.9 GB go to a second one, ``PATH.data``."""
    constants = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    large = sum(tensor.nbytes for tensor in constants) > _MAX_EMBEDDED_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)
