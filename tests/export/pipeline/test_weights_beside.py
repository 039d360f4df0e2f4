"""Weights over 1.9 GB go to a file beside their graph. Here, every weight does: the bundles are those of one file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import BundleIntegrityError, SentenceTransformer
from stonnx_export import export
from tests.clip_checkpoints import write_clip

TEXTS = ["a dog", "the river flows through the city", ""]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stonnx_export.graph.save._MAX_EMBEDDED_BYTES", 100)


def check_equal(bundle: Path, expected: Any, inputs: list[Any]) -> None:
    """Two sessions, and a process that unpickles the model, give what the bundle of one file gives."""
    model = SentenceTransformer(bundle, threads=2)
    model.warmup()
    for each in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(each.encode(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "int8", "bf16"])
def test_graphs_of_texts(dtype: str, tiny_checkpoint: Path, tmp_path: Path, small_files: None) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "beside", dtype=dtype)
    assert (bundle / "model.onnx.data").stat().st_size > (bundle / "model.onnx").stat().st_size / 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stonnx_export.graph.save._MAX_EMBEDDED_BYTES", 10**9)
        whole = export(tiny_checkpoint, tmp_path / "whole", dtype=dtype)
    assert not (whole / "model.onnx.data").exists()
    check_equal(bundle, SentenceTransformer(whole).encode(TEXTS), TEXTS)


def test_graphs_of_images(tmp_path: Path, small_files: None) -> None:
    pictures = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    checkpoint = write_clip(tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "beside")
    assert {file.name for file in bundle.glob("*.data")} == {"model.onnx.data", "image-model.onnx.data"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stonnx_export.graph.save._MAX_EMBEDDED_BYTES", 10**9)
        whole = export(checkpoint, tmp_path / "whole")
    inputs = [*TEXTS, pictures.new("RGB", (40, 50), (9, 9, 200))]
    check_equal(bundle, SentenceTransformer(whole).encode(inputs), inputs)
    weights = bundle / "image-model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleIntegrityError, match=r"image-model\.onnx\.data has .* bytes instead of "):
        SentenceTransformer(bundle)
