"""CLIP checkpoints in every layout, and those that cannot be exported, refused by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import MissingDependencyError, UnsupportedError
from stonnx_export import export
from stonnx_export.checkpoint.modules import CLIPModel
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals.load import open_checkpoint
from tests.clip_checkpoints import IMAGE_SIZE, PREPROCESSOR, write_clip

PIL = pytest.importorskip("PIL.Image", reason="pillow is not installed")


@pytest.mark.parametrize("layout", ["legacy", "6.x", "plain"])
def test_every_layout(layout: str, tmp_path: Path) -> None:
    checkpoint, original = open_checkpoint(write_clip(tmp_path, layout=layout), None, "auto")
    assert isinstance(checkpoint.chain[0], CLIPModel)
    assert checkpoint.max_positions == 77
    assert checkpoint.architecture == "clip"
    images = original.images()
    assert images is not None
    assert (images.size, images.patches) == (IMAGE_SIZE, 9)
    assert images.processor.transparency == "white"
    picture = PIL.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    np.testing.assert_allclose(images.outputs(images.pixels([picture])), images.results([picture]), atol=1e-5)


def test_the_same_files_each_time(tmp_path: Path) -> None:
    first, second = (write_clip(tmp_path / name) / "0_CLIPModel" for name in ("a", "b"))
    for name in ("tokenizer.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_convert_rgb": False}, "do_convert_rgb=False"),
        ({"do_pad": True, "pad_size": {"height": 48, "width": 48}}, "do_pad"),
        ({"size": {"shortest_edge": 48, "longest_edge": 60}}, "resizes to"),
        ({"crop_size": {"height": 32, "width": 32}}, r"gives \[32, 32\] pixels, and its network reads \[48, 48\]"),
        ({"image_processor_type": "ViTImageProcessor"}, "image processor ViTImageProcessor.*CLIPImageProcessor"),
    ],
    ids=["rgb", "pad", "size", "crop", "another"],
)
def test_processors_that_cannot_be_followed(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, original = open_checkpoint(write_clip(tmp_path, preprocessor={**PREPROCESSOR, **change}), None, "auto")
    with pytest.raises(UnsupportedError, match=message):
        original.images()


def test_other_processors(tmp_path: Path) -> None:
    change = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_center_crop": False, "resample": 2}
    change |= {"do_rescale": False, "image_mean": [100.0, 100.0, 90.0], "image_std": [50.0, 50.0, 60.0]}
    _, original = open_checkpoint(write_clip(tmp_path, preprocessor={**PREPROCESSOR, **change}), None, "auto")
    processor = original.images().processor  # type: ignore[union-attr]
    assert processor.size == change["size"]
    assert (processor.crop, processor.rescale_factor, processor.mean) == (None, None, (100.0, 100.0, 90.0))


def test_another_network_in_the_module(tmp_path: Path) -> None:
    config = write_clip(tmp_path) / "0_CLIPModel" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "siglip"}))
    with pytest.raises(UnsupportedError, match="of the type 'siglip' in a CLIPModel"):
        read_checkpoint(tmp_path)


def test_other_methods(tmp_path: Path) -> None:
    settings = write_clip(tmp_path, layout="6.x") / "sentence_bert_config.json"
    text = {"method": "forward", "method_output_name": "text_embeds"}
    settings.write_text(json.dumps({"modality_config": {"text": text}}))
    with pytest.raises(UnsupportedError, match=r"sets modality_config.*get_image_features"):
        read_checkpoint(tmp_path)


def test_no_onnx_and_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_clip(tmp_path / "checkpoint")
    with pytest.raises(UnsupportedError, match="from its PyTorch weights only: --source torch"):
        export(checkpoint, tmp_path / "bundle", source="onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "PIL" else find(name, *more))
    with pytest.raises(MissingDependencyError, match=r'pip install "stonnx\[image\]"'):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
