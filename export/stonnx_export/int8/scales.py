"""Chooses the int8 scales of one graph by calibration, and keeps the layers in float32 that int8 hurts most."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._text.batching import consecutive
from stonnx_export.calibration.measure import TOKENS_TOGETHER, Measured, Sample, measure
from stonnx_export.graph.read import NORMALIZATIONS, constant_array, last_dimension
from stonnx_export.int8 import fast_gelu, flat_tokens, products, tables
from stonnx_export.int8.products import Group
from stonnx_export.int8.rounding import compensated
from stonnx_export.lower_precision import Lowered, LowerPrecision
from stonnx_export.passes import PassResult
from stonnx_export.stages import Advance, untold

# A static scale may cost a product this share of its energy: a cosine of 0.9999. In all-MiniLM-L6-v2 it costs 0.0001
# to 0.0002, twice to six times as much as scales of tokens.
_STATIC_NOISE = 2e-4

# Products of more inputs are rounded to the nearest step: computing with their moments would take minutes.
_MOST_INPUTS = 4096

# Bytes of moments and tokens that are held at a time.
_MOMENTS = 1 << 30


class Quantization(LowerPrecision):
    """A float32 graph, with everything that its int8 form is made from.

    Args:
        model: The graph. It stays as it is.
        samples: The texts or images to calibrate with.
        others: Further ones, whose values static scales have to hold as well: larger values are cut off. Rounding takes
            both.
        advance: Is told how many values of how many are measured: up to a minute for each in large models.
    """

    stage = "calibrating"
    search = "finding the layers that lose most"
    calibrates = True

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Sample],
        others: Sequence[Sample] = (),
        advance: Advance = untold,
    ) -> None:
        super().__init__(model, samples)
        self._others = others
        self._names = [group.name for group in products.groups(model)]
        self._ranges: dict[str, npt.NDArray[np.float32]] = {}
        self._static: dict[str, float] = {}
        self._codes: dict[str, npt.NDArray[np.int8]] = {}
        self._round(advance)

    @property
    def names(self) -> Sequence[str]:
        """The groups of products that read the same value."""
        return self._names

    @property
    def has_static_scales(self) -> bool:
        """Whether values have one scale for all tokens. Static scales go first if the tolerance is missed."""
        return bool(self._static)

    def keep_more(self, advance: Advance = untold) -> bool:
        """Give every token a scale of its own, then keep more of the worst layers in float32, up to half of them.

        The result is False if nothing is left to do.
        ``advance`` is told how many of how many layers have been measured.
        """
        if self._static:
            self._static = {}
            return True
        return super().keep_more(advance)

    def lowered(self, keep: Collection[str]) -> Lowered:
        """The int8 graph, what the passes did, and the values that make it safe from saturation."""
        model, first = self._started()
        quantizer = products.Quantizer(self._ranges, keep, self._static, self._codes)
        static = [group.name for group in products.groups(model) if group.name in self._static]
        # Static products have taken in the biases before their GELU.
        results = [*first, quantizer.run(model), fast_gelu.run(model), tables.run(model), flat_tokens.run(model)]
        results.append(PassResult("static_scales", sum(name not in keep for name in static)))
        return model, results, quantizer.saturation_safe

    def _started(self) -> tuple[ir.Model, list[PassResult]]:
        """A copy of the graph, in which everything that is still in float32 becomes int8, and what was done to it."""
        return self._model.clone(), []

    def _round(self, advance: Advance) -> None:
        """Round the weights of all products, and find the values that can have a static scale."""
        # Smoothing divides the parameters of this copy. It also divides a product's columns if they are the values of
        # attention; that does not change any of its codes.
        model = self._model.clone()
        smooth = products.Quantizer(self._ranges).smooth
        copies = {group.name: group for group in products.groups(model)}
        done = 0
        for some in consecutive(products.groups(self._model), _memory, _MOMENTS):
            values = [group.input for group in some]
            rounded = [value for value in values if last_dimension(value) <= _MOST_INPUTS]
            found = measure(self._model, values, self._samples, rounded)
            others = measure(self._model, values, self._others, rounded) if self._others else {}
            for group in some:
                name = str(group.input.name)
                measured = found[name]
                self._ranges[name] = measured.peak
                scale = smooth(model.graph, copies[group.name])
                self._round_group(group, scale, measured.merged(others[name]) if name in others else measured)
                done += 1
                advance(done, len(self._names))

    def _round_group(self, group: Group, scale: npt.NDArray[np.float32] | None, measured: Measured) -> None:
        if measured.moments is None:
            return
        scales = np.ones_like(measured.peak) if scale is None else scale
        moments = measured.moments / scales / scales[:, None]
        weights = [array for product in group.products if (array := constant_array(product.inputs[1])) is not None]
        # Side by side: all products that read a value need the same moments for their rounding.
        weight = np.concatenate(weights, axis=1)
        if scale is not None:
            weight = weight * scale[:, None]
        if not any(products.rows_of_table(product) for product in group.products):  # embeddings read tables too
            _, steps = products.quantize_columns(weight)
            parts = np.cumsum([array.shape[1] for array in weights])[:-1]
            every = np.split(compensated(weight, steps, moments), parts, axis=1)
            for product, codes in zip(group.products, every, strict=True):
                self._codes[str(product.outputs[0].name)] = np.ascontiguousarray(codes)
        if _is_normalized(group.input):
            peak = float((measured.peak / scales).max())
            # Rounding to steps costs a twelfth of a step's square for each value (Bennett, 1948).
            noise = float(np.square(weight).sum()) * (peak / products.range_of(group).steps) ** 2 / 12
            if noise <= _STATIC_NOISE * float(np.sum(weight * (moments @ weight))):
                self._static[group.name] = peak


def _memory(group: Group) -> int:
    """Bytes of the moments of a group, and of the tokens that they are computed from."""
    channels = last_dimension(group.input)
    return 4 * channels * (channels + TOKENS_TOGETHER)


def _is_normalized(value: ir.Value) -> bool:
    """Whether all tokens of a value have one size, so that one scale can serve them."""
    node = value.producer()
    return node is not None and node.op_type in NORMALIZATIONS
