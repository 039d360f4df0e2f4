"""A Hub and a cache of the test's own, a toy bundle, and an export of it in the cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_conditions import Exporter
from small_hub import Hub, serve
from toy_bundles import dense_bundle

import stonnx._bundle.held_file
from stonnx._bundle.held_file import HeldFile
from stonnx._hub.find import find_bundle


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> Path:
    """A toy bundle that this test may change."""
    return dense_bundle(tmp_path / "bundle")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are hashed from now on."""
    names: list[str] = []
    original = HeldFile.check

    def record(file: HeldFile) -> None:
        names.append(file.path.name)
        original(file)

    monkeypatch.setattr(HeldFile, "check", record)
    return names


@pytest.fixture
def fine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the bundle had been written long ago."""
    monkeypatch.setattr(stonnx._bundle.held_file, "_COARSEST_CLOCK", 0)


@pytest.fixture
def exporter(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    fake = Exporter(bundle)
    monkeypatch.setattr("stonnx._hub.download._is_missing", lambda package: False)  # it stands in for what it needs
    monkeypatch.setitem(sys.modules, "stonnx_export", fake)
    return fake


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the exporter takes for a checkpoint."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    return tmp_path / "checkpoint"


@pytest.fixture
def cached(checkpoint: Path, exporter: Exporter) -> Path:
    """The bundle in our cache that was exported on first use."""
    return find_bundle(checkpoint, task="embedding").directory
