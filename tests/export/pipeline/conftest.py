"""Exports that are quick, and a bundle that is in the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from whole_exports import FIDELITY

from stonnx_export import pipeline


@pytest.fixture
def quick(traced_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny checkpoint that neither trace nor verify."""
    monkeypatch.setattr(pipeline, "verify_fidelity", lambda *arguments, **options: FIDELITY)
    monkeypatch.setattr(pipeline, "try_bundle", lambda *arguments: None)


@pytest.fixture
def old_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that is in the way at ``tmp_path / "bundle"``, with a file of its own."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("of the old bundle")
    return tmp_path / "bundle"
