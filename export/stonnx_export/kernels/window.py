"""Masks that let each token see those near it. Running the part of the graph that computes one shows its distance."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stonnx_export.graph.part import part_of

# Right-padded texts on which a mask is probed. The last ones are longer than any window that kernels are worth for.
_PROBES = ((1,), (5, 2), (40, 7), (700, 40))


class Windows:
    """The masks of a model, each probed once."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._known: dict[ir.Value, int | None] = {}

    def width(self, mask: ir.Value) -> int | None:
        """w, if token i of a text sees its tokens j with ``abs(i - j) <= w`` and no others; else None."""
        if mask not in self._known:
            self._known[mask] = self._probe(mask)
        return self._known[mask]

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
            # Queries that are padding do not matter: nothing reads their rows.
            if not np.array_equal(allowed[real], expected[real]):
                return None
            found.append(reach)
        # A short text ends before the window does. The longest text must be longer than the window.
        widest, longest = max(found), [max(lengths) - 1 for lengths in _PROBES]
        consistent = found == [min(widest, last) for last in longest]
        return widest if consistent and widest < max(longest) else None
