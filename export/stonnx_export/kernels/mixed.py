"""int8 with some blocks and tables in bfloat16: those in which 8 bits change the result most.

Kernels that multiply bfloat16 run such a block nearly as fast as one of int8. Elsewhere it runs in float32, as stock
operators. All weights of a block change together, because a kernel runs blocks of one precision. Trained networks with
outliers, and others whose attention is sharp, lose most of their accuracy in a few places: in the table of words and
the first blocks, whose errors all later layers read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from stonnx_export.int8 import products
from stonnx_export.int8.scales import Quantization
from stonnx_export.int8.tables import is_quantizable
from stonnx_export.kernels import bfloat16, outline
from stonnx_export.passes import PassResult
from stonnx_export.stages import Advance, untold

# Shares of the parts that become bfloat16, one after the other. With more, a bf16 bundle is the better choice.
_SHARES = (1 / 8, 1 / 4)

# Samples on which the error that a part makes is measured, of all kinds: the worst texts are rare.
_SAMPLES = 48


@dataclass(frozen=True)
class _Part:
    """A block, with the names of its weights, groups of products, and products; or all tables, which have names only.

    ``names`` are for people: traced weights have none that say anything, and their products do.
    """

    weights: frozenset[str]
    groups: tuple[str, ...]
    names: tuple[str, ...]


class MixedQuantization(Quantization):
    """A float32 graph, and its int8 form, of which some parts are in bfloat16."""

    _worst_parts: Sequence[_Part] = ()
    _chosen: Sequence[_Part] = ()
    # Static scales before they were given up; None: nothing was refined yet.
    _before: dict[str, float] | None = None

    def refine(self, advance: Advance = untold) -> bool:
        """Give every token a scale of its own, then store more of the worst parts in bfloat16, up to a quarter."""
        if self._before is None:
            self._before = self._static
        if self._static:
            self._static = {}
            return True
        if not self._worst_parts:
            errors = self._errors_of_parts(advance)
            self._worst_parts = sorted(errors, key=lambda part: -errors[part])
        counts = sorted({math.ceil(share * len(self._worst_parts)) for share in _SHARES})
        count = next((count for count in counts if count > len(self._chosen)), None)
        if count is None:
            return False
        self._choose(self._worst_parts[:count])
        return True

    def restore(self) -> bool:
        """Take back what :meth:`refine` did."""
        before, self._before = self._before, None
        if before is None or (before == self._static and not self._chosen):
            return False
        self._static = before
        self._choose(())
        return True

    def _choose(self, parts: Sequence[_Part]) -> None:
        self._chosen = parts
        self.halved = tuple(name for part in parts for name in part.names)

    def _started(self) -> tuple[ir.Model, list[PassResult]]:
        model, results = super()._started()
        weights = {name for part in self._chosen for name in part.weights}
        # Weights that are bfloat16 already do not become int8.
        return (model, [*results, bfloat16.run(model, only=weights)]) if weights else (model, results)

    def _parts(self) -> list[_Part]:
        every, possible = products.groups(self._model), bfloat16.weights_of_products(self._model.graph)
        found = []
        # Layers that share their weights, as those of ALBERT, are one part.
        for weights in dict.fromkeys(outline.weights_of_blocks(self._model)):
            groups = [group for group in every if not weights.isdisjoint(_weights(group))]
            if weights <= possible and weights == {name for group in groups for name in _weights(group)}:
                names = (str(product.outputs[0].name) for group in groups for product in group.products)
                found.append(_Part(weights, tuple(group.name for group in groups), tuple(names)))
        tables = [str(table.name) for table in bfloat16.tables_of(self._model.graph) if is_quantizable(table)]
        return [*found, _Part(frozenset(tables), (), tuple(tables))] if tables else found

    def _errors_of_parts(self, advance: Advance) -> dict[_Part, float]:
        """The error of the result, with each part in 8 bits alone."""
        parts = self._parts()
        step = max(1, len(self._samples) // _SAMPLES)
        samples = self._samples[::step]
        expected = self._run(self._model, samples)

        def error(groups: Sequence[str]) -> float:
            model, _, _ = self.lowered([name for name in self.names if name not in groups])
            return float(np.square(self._run(model, samples) - expected).sum())

        # Tables are in 8 bits in all of them.
        of_tables = error([])
        errors = {}
        for number, part in enumerate(parts, start=1):
            errors[part] = error(part.groups) - of_tables if part.groups else of_tables
            advance(number, len(parts))
        return errors


def _weights(group: products.Group) -> list[str]:
    return [str(product.inputs[1].name) for product in group.products if product.inputs[1] is not None]
