"""A machine with an onnxruntime that answers as told."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_onnxruntime import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)
