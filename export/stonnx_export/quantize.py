"""int8 of one graph: calibrated, applied, and taken back for the layers that it hurts most."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from stonnx._bundle import Scalar
from stonnx_export.calibration import channel_ranges, feeds, options
from stonnx_export.graph import save
from stonnx_export.passes import PassResult, flat_tokens, quantize_products, quantize_tables

# Shares of the products that stay in float32, one after the other, until the tolerance holds.
_SHARES = (1 / 8, 1 / 4, 1 / 2)
# Sequences on which the error that a layer makes is measured.
_SEQUENCES = 16


class Quantization:
    """A float32 graph and what it takes to make its int8 form.

    Args:
        model: The graph, which is left as it is.
        sequences: Token ids of the texts to calibrate with.
    """

    def __init__(self, model: ir.Model, sequences: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._sequences = sequences
        groups = quantize_products.groups(model)
        self._names = [group.name for group in groups]
        self._ranges = channel_ranges(model, [group.input for group in groups], sequences) if groups else {}
        self._worst_first: list[str] = []
        self.kept: tuple[str, ...] = ()

    def apply(self) -> tuple[ir.Model, list[PassResult], dict[str, Scalar]]:
        """The int8 graph, what the passes did, and the values that make it safe from saturation."""
        return self._quantized(self.kept)

    def keep_more(self, advance: Callable[[int, int], None] = lambda done, total: None) -> bool:
        """Keep more of the worst layers in float32; False where half of them are already kept.

        ``advance`` is told how many of how many layers have been looked at.
        """
        if not self._names:
            return False
        if not self._worst_first:
            errors = self._errors(advance)
            self._worst_first = sorted(errors, key=lambda name: -errors[name])
        counts = sorted({math.ceil(share * len(self._names)) for share in _SHARES})
        count = next((count for count in counts if count > len(self.kept)), None)
        if count is None:
            return False
        self.kept = tuple(self._worst_first[:count])
        return True

    @property
    def worst(self) -> str | None:
        """The layer whose quantization changes the result most, once that has been measured."""
        return self._worst_first[0] if self._worst_first else None

    def _quantized(self, keep: Collection[str]) -> tuple[ir.Model, list[PassResult], dict[str, Scalar]]:
        model = self._model.clone()
        quantizer = quantize_products.Quantizer(self._ranges, keep)
        results = [quantizer.run(model), quantize_tables.run(model), flat_tokens.run(model)]
        return model, results, quantizer.saturation_safe

    def _errors(self, advance: Callable[[int, int], None]) -> dict[str, float]:
        """The error of the result, relative to its variance, with each layer quantized alone."""
        expected = self._run(self._model)
        spread = float(np.square(expected - expected.mean(axis=0)).sum()) or 1.0
        errors = {}
        for number, name in enumerate(self._names, start=1):
            model, _, _ = self._quantized([other for other in self._names if other != name])
            errors[name] = float(np.square(self._run(model) - expected).sum()) / spread
            advance(number, len(self._names))
        return errors

    def _run(self, model: ir.Model) -> npt.NDArray[np.float64]:
        model.graph.sort()
        output = str(model.graph.outputs[0].name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            save(model, path)
            session = onnxruntime.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
        rows = [session.run([output], feeds(session, sequence))[0][0] for sequence in self._sequences[:_SEQUENCES]]
        return np.stack(rows).astype(np.float64)
