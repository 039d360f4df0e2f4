"""Checkpoints of 16 bits: exact beside their weights in float32, and the report says what the original gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from safetensors.torch import load_file, save_file

from stonnx import SentenceTransformer, cli
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export
from stonnx_export.recheck import verify_bundle

pytestmark = pytest.mark.needs("transformers", "5", "loading in the precision of the checkpoint")


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_are_in_the_report(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, written: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether config.json says the precision, or the weights alone have it."""
    directory, name = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"), str(dtype).removeprefix("torch.")
    weights = {key: tensor.to(dtype) for key, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (directory / "config.json").write_text(json.dumps(config | ({"dtype": name} if written else {})))
    fidelity = read_manifest(export(directory, tmp_path / "bundle")).fidelity
    assert fidelity is not None
    assert fidelity.max_abs_difference < 1e-5
    found = fidelity.as_loaded
    assert found is not None
    assert found.dtype == name
    assert 1e-4 < found.max_abs_difference < 3e-2
    assert 0.99 < found.cosine_min < 0.9999995
    original = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    assert original.dtype == dtype
    text = "The weather is lovely today."
    difference = np.abs(SentenceTransformer(tmp_path / "bundle").encode(text) - original.encode(text)).max()
    assert 0 < difference <= 0.1
    assert name in (tmp_path / "bundle" / "README.md").read_text()
    assert verify_bundle(tmp_path / "bundle", directory).as_loaded == found
    assert cli.main(["info", str(tmp_path / "bundle")]) == 0
    assert f"beside {name}" in capsys.readouterr().out


def test_float32_is_as_it_is(tiny_bundle: Path) -> None:
    fidelity = read_manifest(tiny_bundle).fidelity
    assert fidelity is not None
    assert fidelity.as_loaded is None
