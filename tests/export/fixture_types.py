"""The types of what the fixtures of the exporter's tests give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.originals.from_torch import TorchOriginal

Run = Callable[..., list[np.ndarray]]
Build = Callable[..., Path]
Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]


class TracedOnce(TorchOriginal):
    """An original that is traced at the first call only."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._traced: dict[str, ir.Model] = {}

    def graph(self, route: str) -> ir.Model:
        if route not in self._traced:
            self._traced[route] = super().graph(route)
        return self._traced[route].clone()
