"""Masks that let each token see those near it, or those before it.

Running the part of the graph that computes a mask shows which tokens it allows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stonnx_export.graph.part import part_of
from stonnx_export.graph.read import QUERY_ROWS, input_named
from stonnx_export.passes.attention_lengths import kind_of_mask

# Right-padded texts on which a mask is probed. The last ones are longer than any window that kernels are worth for.
_PROBES = ((1,), (5, 2), (40, 7), (700, 40))


class Windows:
    """The masks of a model, each probed once."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        # Whether rows after the end of a text are results, which do not attend to each other.
        self._reads_padding = input_named(model.graph, QUERY_ROWS) is not None
        self._known: dict[ir.Value, int | None] = {}
        self._causal: dict[ir.Value, bool] = {}

    def width(self, mask: ir.Value) -> int | None:
        """w, if token i of a text sees its tokens j with ``abs(i - j) <= w`` and no others; else None."""
        if mask not in self._known:
            self._known[mask] = self._probe(mask)
        return self._known[mask]

    def is_causal(self, mask: ir.Value) -> bool:
        """Whether a token of a text sees its tokens up to itself, and no others."""
        if mask not in self._causal:
            self._causal[mask] = kind_of_mask(self._model, mask, self._reads_padding) == "causal"
        return self._causal[mask]

    def _probe(self, mask: ir.Value) -> int | None:
        part = part_of(self._model, mask)
        if part is None:
            return None
        found: list[int] = []
        for lengths in _PROBES:
            width = max(lengths)
            real = np.arange(width) < np.array(lengths)[:, None]
            try:
                values = part.run(np.ones_like(real, dtype=np.int64), real.astype(np.int64))
                allowed = np.broadcast_to(values, (len(lengths), 1, width, width))[:, 0]
            except Exception:  # more positions than the network has, or a mask that differs between heads
                return None
            if allowed.dtype != bool:
                return None
            distance = np.abs(np.subtract.outer(np.arange(width), np.arange(width)))
            seen = allowed & real[:, :, None]
            if not seen.any():
                return None
            reach = int(np.broadcast_to(distance, seen.shape)[seen].max())
            expected = (distance <= reach) & real[:, None, :]
            # Otherwise, queries that are padding do not matter: nothing reads their rows.
            read = np.ones_like(real) if self._reads_padding else real
            if not np.array_equal(allowed[read], expected[read]):
                return None
            found.append(reach)
        # A short text ends before the window does. The longest text must be longer than the window.
        widest, longest = max(found), [max(lengths) - 1 for lengths in _PROBES]
        consistent = found == [min(widest, last) for last in longest]
        return widest if consistent and widest < max(longest) else None
