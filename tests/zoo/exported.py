"""A row's checkpoint exported once in a test run, and its original, with all that is slow about it done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from huggingface_hub.utils import WeakFileLock

from stonnx_export import export
from stonnx_export.checkpoint.modules import Transformer
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load
from stonnx_export.originals.from_torch import TorchOriginal

from .checkpoints import build_checkpoint
from .table import ModelRow


class CachedOriginal(TorchOriginal):
    """An original that is traced once in a test run, and computes each list of texts once.

    ``change`` is applied to the graph of the network, ``disturb`` to what it gives for texts.
    """

    def __init__(self, checkpoint: Path, row: ModelRow, directory: Path) -> None:
        super().__init__(read_checkpoint(checkpoint, row.task))
        self.change: Callable[[ir.Model], None] = lambda graph: None
        self.disturb: Callable[[np.ndarray], np.ndarray] = lambda values: values
        self._traced = directory / f"{row.slug}-traced"
        self._known: dict[Any, np.ndarray] = {}

    def graph(self, route: str) -> ir.Model:
        file = self._traced / f"{route}.onnx"
        with WeakFileLock(_lock_of(self._traced)):
            if not file.exists():
                self._traced.mkdir(exist_ok=True)
                ir.save(super().graph(route), file)
        graph = ir.load(file)
        if isinstance(self._checkpoint.routes[route][0], Transformer):  # the others have no network
            self.change(graph)
        return graph

    def outputs(self, route: str, texts: Sequence[Any]) -> np.ndarray:
        return self._once((route, *texts), lambda: super(CachedOriginal, self).outputs(route, texts))

    def outputs_as_called(self, task: str | None, texts: Sequence[Any]) -> np.ndarray:
        return self._once((task, "called", *texts), lambda: super(CachedOriginal, self).outputs_as_called(task, texts))

    def _once(self, key: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._known:
            self._known[key] = compute()
        return self.disturb(self._known[key])


def exported_once(row: ModelRow, directory: Path) -> tuple[Path, Path]:
    """The row's checkpoint, and its fp32 bundle."""
    checkpoint, bundle = build_checkpoint(row, directory), directory / f"{row.slug}-fp32"
    with WeakFileLock(_lock_of(bundle)):
        if not bundle.exists():
            export_again(CachedOriginal(checkpoint, row, directory), checkpoint, bundle, row)
    return checkpoint, bundle


def export_again(original: CachedOriginal, checkpoint: Path, bundle: Path, row: ModelRow) -> Path:
    """The exporter itself, but for the loading of the original."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(load, "_load_original", lambda _: original)
        return export(checkpoint, bundle, name=row.name)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")  # not a suffix: names of models have dots
