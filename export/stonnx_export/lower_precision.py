"""A graph in a lower precision, of which parts return to float32 until the result is close enough to the original."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._bundle.manifest import Scalar
from stonnx_export.calibration.measure import Sample, tokens
from stonnx_export.passes import PassResult
from stonnx_export.stages import Advance, untold

# Shares of the parts that stay in float32, one after the other, until the tolerance holds.
_SHARES = (1 / 8, 1 / 4, 1 / 2)

# Samples on which the error that a part makes is measured.
_SAMPLES = 16

Lowered = tuple[ir.Model, list[PassResult], dict[str, Scalar]]
"""A graph, what the passes did, and the values that make it safe from saturation."""


class LowerPrecision(ABC):
    """A float32 graph, and how to make its form of a lower precision.

    Args:
        model: The graph. It stays as it is.
        samples: The texts or images on which errors are measured.
    """

    # The stage of the export that makes one.
    stage: ClassVar[str]
    # The stage that finds the parts to keep.
    search: ClassVar[str]
    # Whether a file of texts for calibration makes a difference.
    calibrates: ClassVar[bool]

    def __init__(self, model: ir.Model, samples: Sequence[Sample]) -> None:
        self._model = model
        self._samples = samples
        self._worst_first: list[str] = []
        self.kept: tuple[str, ...] = ()
        # Products and tables whose weights are in bfloat16, if the others have fewer bits.
        self.halved: tuple[str, ...] = ()

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The parts that can stay in float32."""

    @abstractmethod
    def lowered(self, keep: Collection[str]) -> Lowered:
        """The graph in the lower precision, except for some parts."""

    def apply(self) -> Lowered:
        """The graph in the lower precision, except for :attr:`kept`."""
        return self.lowered(self.kept)

    @property
    def has_static_scales(self) -> bool:
        """Whether values have one scale for all tokens, which :meth:`keep_more` gives up first."""
        return False

    def keep_more(self, advance: Advance = untold) -> bool:
        """Keep more of the worst parts in float32, up to half of them. The result is False if nothing is left to do.

        ``advance`` is told how many of how many parts have been measured.
        """
        if not self.names:
            return False
        if not self._worst_first:
            errors = self._errors(advance)
            self._worst_first = sorted(errors, key=lambda name: -errors[name])
        counts = sorted({math.ceil(share * len(self.names)) for share in _SHARES})
        count = next((count for count in counts if count > len(self.kept)), None)
        if count is None:
            return False
        self.kept = tuple(self._worst_first[:count])
        return True

    def refine(self, advance: Advance = untold) -> bool:
        """Come closer to the original than the tolerance asks for; False if nothing that is worth it is left to do.

        ``advance`` is told as in :meth:`keep_more`.
        """
        return False

    def restore(self) -> bool:
        """Take back what :meth:`refine` did, because it was not enough. The result is False if it did nothing."""
        return False

    @property
    def worst(self) -> str | None:
        """The part whose lower precision changes the result most, once that has been measured."""
        return self._worst_first[0] if self._worst_first else None

    def _errors(self, advance: Advance) -> dict[str, float]:
        """The error of the result, relative to its variance, with each part lowered alone."""
        expected = self._run(self._model)
        spread = float(np.square(expected - expected.mean(axis=0)).sum()) or 1.0
        errors = {}
        for number, name in enumerate(self.names, start=1):
            model, _, _ = self.lowered([other for other in self.names if other != name])
            errors[name] = float(np.square(self._run(model) - expected).sum()) / spread
            advance(number, len(self.names))
        return errors

    def _run(self, model: ir.Model, samples: Sequence[Sample] | None = None) -> npt.NDArray[np.float64]:
        model.graph.sort()
        output = model.graph.outputs[0]
        samples = self._samples[:_SAMPLES] if samples is None else samples
        found = (arrays[str(output.name)] for arrays in tokens(model, [output], samples))
        # A sample has one vector, or one for each of its tokens.
        return np.concatenate([array.reshape(-1, array.shape[-1]) for array in found]).astype(np.float64)
