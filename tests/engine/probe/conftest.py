"""A cache of the test's own, bundles with a probe, and a record of the probes that are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probed_bundles import WIDTH, graphs, with_probe
from toy_bundles import write_bundle

from stonnx._engine import probe as probe_module


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The task of every probe that is run from now on, once for each route."""
    tasks: list[str] = []
    original = probe_module.outputs_of

    def run(route: Any, task: str, texts: Any) -> np.ndarray:
        tasks.append(task)
        return original(route, task, texts)

    monkeypatch.setattr(probe_module, "outputs_of", run)
    return tasks


@pytest.fixture(params=["embedding", "sparse", "rerank"])
def any_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle of each task with a probe; the sparse one has two routes."""
    return with_probe(write_bundle(tmp_path / "bundle", graphs(request.param), task=request.param))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of dense vectors with a probe."""
    return with_probe(
        write_bundle(tmp_path / "bundle", graphs("embedding"), task="embedding", embedding_dimension=WIDTH)
    )
