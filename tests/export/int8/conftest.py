"""A checkpoint that loses much in int8, its original, and products small enough to be quantized."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fixture_types import TracedOnce
from hostile_networks import make_hostile
from safetensors.torch import load_file, save_file

from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.int8 import products as products_module
from stonnx_export.originals import load


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here have fewer weights than are worth it."""
    monkeypatch.setattr(products_module, "_SMALLEST", 1024)


@pytest.fixture(scope="module")
def hostile_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a hostile neuron in its first layer."""
    directory = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("hostile") / "hostile")
    file = directory / "model.safetensors"
    weights = {name: tensor.numpy().copy() for name, tensor in load_file(file).items()}
    make_hostile(weights["encoder.layer.0.intermediate.dense.bias"], weights["encoder.layer.0.output.dense.weight"].T)
    save_file({name: torch.from_numpy(array) for name, array in weights.items()}, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def hostile_original(hostile_checkpoint: Path) -> TracedOnce:
    return TracedOnce(read_checkpoint(hostile_checkpoint))


@pytest.fixture
def hostile_once(hostile_original: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> TracedOnce:
    """Every export in this test takes the hostile original, and with it the graph that was traced before."""
    monkeypatch.setattr(load, "_load_original", lambda checkpoint: hostile_original)
    return hostile_original
