"""A container with little memory holds the weights of a model once."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_bundles import dense_bundle

from stonnx import SentenceTransformer
from stonnx._engine import runner


def test_a_small_container_holds_weights_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second session, which several threads of the CPU have, would double the weights."""
    bundle = dense_bundle(tmp_path / "bundle")
    assert SentenceTransformer(bundle, threads=2).work_slots == 2
    monkeypatch.setattr(runner, "available_memory", lambda: 4000)
    assert SentenceTransformer(bundle, threads=2).work_slots == 1
