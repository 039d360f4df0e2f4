"""Weights that a checkpoint lacks, or has too many of: nothing random gets into a bundle."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load
from stonnx_export.originals.from_torch import TorchOriginal
from stonnx_export.originals.weights import watch_loading

Build = Callable[..., Path]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )


def without(directory: Path, part: str) -> list[str]:
    """Take the weights out whose names have a part, and say which they were."""
    tensors = weights(directory)
    gone = [name for name in tensors if part in name]
    assert gone
    write(directory, {name: tensor for name, tensor in tensors.items() if name not in gone})
    return gone


class TestMissing:
    @pytest.mark.parametrize(
        "part",
        ["layer.0.attention.self.query.weight", "LayerNorm.bias", "position_embeddings", "token_type_embeddings"],
    )
    def test_of_an_embedding_model(self, tiny_checkpoint: Path, tmp_path: Path, part: str) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        gone = without(directory, part)
        with pytest.raises(stonnx.UnsupportedError, match=rf"lacks {len(gone)} of the weights.*{min(gone)}"):
            export(directory, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_a_pooler_that_nothing_uses(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        without(directory, "pooler")
        expected = TorchOriginal(read_checkpoint(tiny_checkpoint)).outputs("default", ["a b"])
        np.testing.assert_array_equal(TorchOriginal(read_checkpoint(directory)).outputs("default", ["a b"]), expected)

    def test_a_pooler_that_a_classifier_uses(self, build_small: Build) -> None:
        directory = build_small("bert", auto=AutoModelForSequenceClassification)
        without(directory, "pooler")
        with pytest.raises(stonnx.UnsupportedError, match=r"bert\.pooler\.dense\.weight"):
            load.open_checkpoint(directory, "rerank", "torch")

    def test_a_classifier(self, build_small: Build, tmp_path: Path) -> None:
        """A plain network as a CrossEncoder: sentence-transformers gives it a random head, for training."""
        with pytest.raises(stonnx.UnsupportedError, match=r"BertForSequenceClassification needs: .*classifier\.weight"):
            export(build_small("bert"), tmp_path / "bundle", task="rerank")

    def test_on_first_use(self, build_small: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
        with pytest.raises(stonnx.UnsupportedError, match=r"classifier\.weight"):
            stonnx.CrossEncoder(build_small("bert"))

    def test_a_masked_lm_head(self, build_small: Build) -> None:
        directory = build_small("bert", auto=AutoModelForMaskedLM)
        gone = without(directory, "cls.predictions.transform")
        with pytest.raises(stonnx.UnsupportedError, match=f"lacks {len(gone)} of the weights that BertForMaskedLM"):
            load.open_checkpoint(directory, "sparse", "torch")

    def test_tied_weights_are_there(self, build_small: Build) -> None:
        """The vocabulary product of a masked-LM head shares the table of the embeddings, and files hold it once."""
        directory = build_small("bert", auto=AutoModelForMaskedLM)
        assert "cls.predictions.decoder.weight" not in weights(directory)
        load.open_checkpoint(directory, "sparse", "torch")

    def test_old_names_are_there(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """gamma and beta, and names behind that of another class."""
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        renamed = {
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights(directory).items()
        }
        write(directory, renamed)
        expected = TorchOriginal(read_checkpoint(tiny_checkpoint)).outputs("default", ["a b"])
        np.testing.assert_array_equal(TorchOriginal(read_checkpoint(directory)).outputs("default", ["a b"]), expected)

    @pytest.mark.parametrize("part", ["linear.bias", "linear.weight"])
    @pytest.mark.parametrize("source", ["torch", "onnx"])
    def test_of_a_module(self, tiny_checkpoint: Path, tmp_path: Path, part: str, source: Any) -> None:
        directory = with_dense(tiny_checkpoint, tmp_path)
        without(directory / "3_Dense", part)
        with pytest.raises(stonnx.ExportError, match=part):
            load.open_checkpoint(directory, None, source)

    def test_code_that_loads_by_itself(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """transformers says nothing about networks whose code loads them in a way of its own."""
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        (directory / "own_loading.py").write_text(OWN_LOADING)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own_loading.OwnModel"}}))
        export(directory, tmp_path / "bundle", trust_remote_code=True)
        without(directory, "layer.1.output.dense.weight")
        with pytest.raises(stonnx.UnsupportedError, match=r"random numbers: .*layer\.1\.output\.dense\.weight"):
            export(directory, tmp_path / "other", trust_remote_code=True)


OWN_LOADING = """
from pathlib import Path
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

class OwnModel(BertModel):
    @classmethod
    def from_pretrained(cls, path, config=None, **options):
        model = cls(config)
        model.load_state_dict(load_file(Path(path, "model.safetensors")), strict=False)
        return model
"""


def with_dense(checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with a Dense module at its end, and an ONNX file that nothing reads."""
    directory = tmp_path / "with-dense"
    model = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    model.append(sentence_transformers.sentence_transformer.modules.Dense(32, 8))
    model.save_pretrained(str(directory), create_model_card=False)
    return directory


class TestTooMany:
    def test_they_are_named(self, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        write(directory, weights(directory) | {f"cls.predictions.{index}.weight": torch.ones(2) for index in range(10)})
        with caplog.at_level(logging.WARNING, "stonnx"):
            bundle = export(directory, tmp_path / "bundle")
        assert "BertModel has no place for 10 weights of the checkpoint" in caplog.text
        assert read_manifest(bundle).unused_weights == tuple(f"cls.predictions.{index}.weight" for index in range(10))
        card = (bundle / "README.md").read_text()
        assert "`cls.predictions.7.weight` and 2 more" in card

    def test_none_are_not(self, tiny_bundle: Path) -> None:
        assert read_manifest(tiny_bundle).unused_weights == ()
        assert "no place" not in (tiny_bundle / "README.md").read_text()


def test_loading_is_as_before_afterwards(tiny_checkpoint: Path) -> None:
    before = PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(RuntimeError, match="on purpose"), watch_loading():
        raise RuntimeError("on purpose")
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    with watch_loading() as found:
        from transformers import AutoModel

        network, info = AutoModel.from_pretrained(str(tiny_checkpoint), output_loading_info=True)
    assert [each.network for each in found] == [network]
    assert not info["missing_keys"]
