"""Embeddings in fewer bits: int8, uint8 and binary, and int8 and uint8 back again."""

from __future__ import annotations

import logging
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
import numpy.typing as npt

from stonnx._arguments import described
from stonnx._arrays import Embeddings, FloatArray, check_finite, is_sparse, to_array
from stonnx._errors import InvalidArgumentError
from stonnx.util._matrix import blocks

logger = logging.getLogger(__name__)

Precision: TypeAlias = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_FEWEST_ROWS_FOR_RANGES = 100


@overload
def quantize_embeddings(
    embeddings: npt.NDArray[Any],
    precision: Precision,
    ranges: Embeddings | None = None,
    calibration_embeddings: Embeddings | None = None,
) -> npt.NDArray[Any]: ...
@overload
def quantize_embeddings(
    embeddings: Embeddings,
    precision: Precision,
    ranges: Embeddings | None = None,
    calibration_embeddings: Embeddings | None = None,
) -> npt.NDArray[Any] | list[npt.NDArray[Any]]: ...
def quantize_embeddings(
    embeddings: Embeddings,
    precision: Precision,
    ranges: Embeddings | None = None,
    calibration_embeddings: Embeddings | None = None,
) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
    """Store embeddings in fewer bits.

    int8 and uint8 cut the range of each dimension into 255 equal steps and keep the number of the step; binary and
    ubinary keep the sign, eight dimensions to a byte, the first in the highest bit. Source:
    https://huggingface.co/blog/embedding-quantization

    Args:
        embeddings: [rows, dimension] or [dimension] of floats; or a list of matrices [tokens, dimension] that share
            their ranges.
        precision: "float32", "int8" (-128 to 127), "uint8" (0 to 255), "binary" (packed, as int8) or "ubinary"
            (packed, as uint8).
        ranges: [2, dimension], the minimum and the maximum of each dimension, for int8 and uint8. Values outside
            become the first or the last step. Keep them: queries and corpus need the same ranges.
        calibration_embeddings: [rows, dimension] to take the ranges from if ``ranges`` is None. If both are None, the
            ranges come from ``embeddings``.

    Returns:
        A numpy array [rows, dimension] of that dtype, packed [rows, ceil(dimension / 8)], also for tensors; or a list
        of them for a list of matrices.

    Raises:
        InvalidArgumentError: An unknown precision, sparse or already quantized embeddings, an embedding with a value
            that is NaN or infinite (the message names its row), ranges of another shape, or a single embedding to take
            ranges from.

    Example:
        >>> import numpy as np
        >>> quantize_embeddings(np.array([[0.5, 1.0], [-7.0, 2.6]]), "uint8", ranges=[[0.0, 0.0], [127.5, 255.0]])
        array([[1, 1],
               [0, 2]], dtype=uint8)
        >>> quantize_embeddings(np.array([[0.3, -0.1, 0.2, 0.4]]), "ubinary")
        array([[176]], dtype=uint8)
    """
    if not isinstance(precision, str) or precision not in get_args(Precision):
        raise InvalidArgumentError(
            f"Precision {described(precision)} is not supported; use {', '.join(get_args(Precision))}."
        )
    if isinstance(embeddings, list | tuple):
        if not embeddings:
            return []
        embeddings = [_dense(item) for item in embeddings]
        if embeddings[0].ndim == 2:
            if precision in ("int8", "uint8") and ranges is None:
                rows = np.concatenate(embeddings)
                if len(rows):
                    ranges = quantization_ranges(rows, precision, calibration_embeddings)
            return [quantize_embeddings(matrix, precision, ranges, calibration_embeddings) for matrix in embeddings]
    values = _dense(embeddings)
    if not values.ndim or values.dtype.kind not in "fiu" or values.dtype in (np.int8, np.uint8):
        raise InvalidArgumentError(
            f"The embeddings to quantize have the dtype {values.dtype} and the shape {values.shape}; vectors of "
            "floats are needed. Pass them as encode returns "
            'them with precision="float32".'
        )
    if precision == "float32":
        return values.astype(np.float32)
    check_finite("embeddings", values)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(values > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)  # the same as subtracting 128
    if values.ndim == 2 and not len(values):
        return np.zeros(values.shape, precision)
    starts, steps = _starts_and_steps(
        quantization_ranges(values, precision, calibration_embeddings) if ranges is None else ranges, values.shape[-1]
    )
    codes = np.empty(values.shape, np.uint8)
    rows, code_rows = np.atleast_2d(values), np.atleast_2d(codes)
    for block in blocks(rows):
        numbers = (rows[block] - starts) / steps
        np.floor(numbers, out=numbers)
        code_rows[block] = np.clip(numbers, 0, 255, out=numbers)
    return codes if precision == "uint8" else (codes ^ 0x80).view(np.int8)  # the same as subtracting 128


def quantization_ranges(
    embeddings: Embeddings, precision: Precision, calibration_embeddings: Embeddings | None = None
) -> npt.NDArray[Any]:
    """The ``ranges`` [2, dimension] that :func:`quantize_embeddings` uses if its caller passes none.

    Args:
        embeddings: [rows, dimension].
        precision: For the message.
        calibration_embeddings: [rows, dimension] to use instead.

    Returns:
        The minimum and the maximum of each dimension.

    Raises:
        InvalidArgumentError: A single embedding, and no ``calibration_embeddings``.

    Example:
        >>> quantization_ranges(None, "int8", [[0.0, 3.0], [2.0, 1.0]])
        array([[0., 1.],
               [2., 3.]])
    """
    name = "embeddings" if calibration_embeddings is None else "calibration_embeddings"
    source = _to_dense(embeddings if calibration_embeddings is None else calibration_embeddings, name)
    if calibration_embeddings is not None and (source.ndim != 2 or not len(source)):
        raise InvalidArgumentError(
            f"calibration_embeddings have the shape {source.shape}; a matrix [rows, dimension] with at least one row "
            "is needed."
        )
    check_finite(name, source)
    if calibration_embeddings is None:
        if source.ndim == 1 or len(source) == 1:
            raise InvalidArgumentError(
                f"One embedding has no range to divide into {precision} steps. Pass ranges, or calibration_embeddings "
                "of a few hundred typical texts."
            )
        if len(source) < _FEWEST_ROWS_FOR_RANGES:
            logger.warning(
                "The %s ranges come from %d embeddings only, so values of other texts may fall outside. Pass ranges, "
                "or calibration_embeddings of %d or more typical texts.",
                precision,
                len(source),
                _FEWEST_ROWS_FOR_RANGES,
            )
    return np.stack((source.min(axis=0), source.max(axis=0)))


def dequantize(codes: npt.NDArray[Any], ranges: Embeddings) -> FloatArray:
    """int8 or uint8 codes [..., dimension] as float64 values, each at the lower end of its step."""
    starts, steps = _starts_and_steps(ranges, codes.shape[-1])
    return (codes.astype(np.float64) + (128 if codes.dtype == np.int8 else 0)) * steps + starts


def _starts_and_steps(ranges: Embeddings, dimension: int) -> tuple[FloatArray, FloatArray]:
    limits = _to_dense(ranges, "ranges").astype(np.float32, copy=False)
    check_finite("ranges", limits)
    if limits.shape != (2, dimension):
        raise InvalidArgumentError(
            f"ranges have the shape {limits.shape}; the minimum and the maximum of each dimension are needed: "
            f"(2, {dimension})."
        )
    steps = (limits[1] - limits[0]) / 255
    return limits[0], np.where(steps == 0, 1, steps)  # a constant dimension has no steps


def _to_dense(value: Embeddings, name: str) -> npt.NDArray[Any]:
    """A value as a dense array of numbers. ``name`` is the name of the argument, for messages."""
    dense = _dense(value)
    if not dense.ndim or dense.dtype.kind not in "fiub":
        raise InvalidArgumentError(
            f"{name} must hold numbers, as encode returns them, got {described(value)} with the dtype {dense.dtype} "
            f"and the shape {dense.shape}."
        )
    return dense


def _dense(value: Embeddings) -> npt.NDArray[Any]:
    if isinstance(value, list | tuple):
        # Not `to_array`, which makes Python floats float32. Some of them fall in another step than in float64.
        try:
            return np.asarray(value)
        except ValueError as error:
            raise InvalidArgumentError("The embeddings have different dimensions; all rows need the same.") from error
    array = to_array(value)
    if is_sparse(array):
        raise InvalidArgumentError("Sparse embeddings cannot be quantized; pass a dense array.")
    dense: npt.NDArray[Any] = array
    return dense
