"""Checkpoints that bring code of their own: refused by name, or run on request, and then the code's own model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import stonnx
from stonnx import cli
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load

TEXTS = ["The weather is lovely today.", "a", "A man is playing a large flute on the stage.", "Сегодня утром"]

# The same names and weights as transformers' BERT, and another network: it takes each word for another one.
NETWORK = """
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

class OwnConfig(BertConfig):
    pass

class Confused:
    def forward(self, input_ids=None, **options):
        others = 5 + (input_ids + 2) % (self.config.vocab_size - 5)
        return super().forward(input_ids=torch.where(input_ids > 4, others, input_ids), **options)

class OwnModel(Confused, BertModel):
    config_class = OwnConfig

class OwnMasked(Confused, BertForMaskedLM):
    config_class = OwnConfig

class OwnClassifier(Confused, BertForSequenceClassification):
    config_class = OwnConfig
"""
# A pooling that sentence-transformers has not got: the difference of the first token and the mean.
POOLING = """
import torch
from sentence_transformers.base.modules import Module

class OwnPooling(Module):
    config_keys = ["factor"]

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, features):
        mask = features["attention_mask"].unsqueeze(-1).float()
        tokens = features["token_embeddings"]
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        features["sentence_embedding"] = self.factor * tokens[:, 0] - mean
        return features

    def get_embedding_dimension(self):
        return 32

    def save(self, path, *args, **kwargs):
        self.save_config(path)
"""
TOKENIZER = """
from transformers import BertTokenizerFast
from tokenizers.normalizers import Lowercase, Replace, Sequence

class OwnTokenizer(BertTokenizerFast):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._tokenizer.normalizer = Sequence([Replace("weather", "rain"), Lowercase()])
"""
CLASSES = {
    "embedding": ("AutoModel", "OwnModel"),
    "sparse": ("AutoModelForMaskedLM", "OwnMasked"),
    "rerank": ("AutoModelForSequenceClassification", "OwnClassifier"),
}


def change(file: Path, **settings: Any) -> None:
    """Add settings to a JSON file, or take those away that are None."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    written = {name: value for name, value in (found | settings).items() if value is not None}
    file.write_text(json.dumps(written))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def with_network(checkpoint: Path, build_small: Callable[..., Path]) -> Callable[[str], Path]:
    """``with_network(task)``: a checkpoint whose config.json names a class of its repository for the task's network."""

    def make(task: str) -> Path:
        directory = checkpoint
        if task != "embedding":
            shutil.rmtree(checkpoint)
            auto = {"sparse": AutoModelForMaskedLM, "rerank": AutoModelForSequenceClassification}[task]
            directory = build_small("bert", auto=auto)
        auto_class, name = CLASSES[task]
        (directory / "own_network.py").write_text(NETWORK)
        change(directory / "config.json", auto_map={auto_class: f"own_network.{name}"})
        return directory

    return make


def run(kind: Any, task: str, directory: Path, **options: Any) -> np.ndarray:
    model = kind(str(directory), device="cpu", **options)
    if task == "rerank":
        return np.asarray(model.predict([(text, "a man") for text in TEXTS]))
    if task == "sparse":
        vectors = model.encode(TEXTS, convert_to_sparse_tensor=False)
        return np.asarray(vectors if isinstance(vectors, np.ndarray) else [np.asarray(row) for row in vectors])
    return np.asarray(model.encode(TEXTS))


class TestRefused:
    @pytest.mark.parametrize("task", CLASSES)
    def test_a_network(self, with_network: Callable[[str], Path], tmp_path: Path, task: str) -> None:
        directory = with_network(task)
        auto_class, name = CLASSES[task]
        match = rf"own_network\.{name}' for {auto_class}.*'bert'.*--trust-remote-code.*auto_map"
        with pytest.raises(stonnx.UnsupportedError, match=match):
            export(directory, tmp_path / "bundle", task=task)
        assert not (tmp_path / "bundle").exists()

    def test_a_class_for_another_task_is_none_for_this_one(self, checkpoint: Path) -> None:
        """transformers, and so sentence-transformers, does not look at it."""
        change(checkpoint / "config.json", auto_map={"AutoModelForCausalLM": "own_network.Writer"})
        assert read_checkpoint(checkpoint).network_code == ()

    def test_a_configuration(self, checkpoint: Path) -> None:
        change(checkpoint / "config.json", auto_map={"AutoConfig": "own_network.OwnConfig"})
        with pytest.raises(stonnx.UnsupportedError, match=r"'own_network\.OwnConfig' for AutoConfig"):
            load.open_checkpoint(checkpoint, None, "torch")

    def test_code_of_another_repository(self, checkpoint: Path) -> None:
        change(checkpoint / "config.json", auto_map={"AutoModel": "acme/code--modeling_jina.JinaModel"})
        with pytest.raises(stonnx.UnsupportedError, match=r"acme/code--modeling_jina\.JinaModel"):
            load.open_checkpoint(checkpoint, None, "auto")

    @pytest.mark.parametrize("names", [{"AutoTokenizer": [None, "own.Words"]}, ["own.Words", None]])
    def test_a_tokenizer(self, checkpoint: Path, names: Any) -> None:
        change(checkpoint / "tokenizer_config.json", auto_map=names)
        with pytest.raises(stonnx.UnsupportedError, match=r"tokenizer is code.*'own\.Words'.*--trust-remote-code"):
            load.open_checkpoint(checkpoint, None, "torch")

    def test_a_processor(self, checkpoint: Path) -> None:
        change(checkpoint / "processor_config.json", auto_map={"AutoProcessor": "own.Processor"})
        with pytest.raises(stonnx.UnsupportedError, match=r"'own\.Processor' for AutoProcessor"):
            load.open_checkpoint(checkpoint, None, "torch")

    def test_a_module(self, checkpoint: Path) -> None:
        self_made = json.loads((checkpoint / "modules.json").read_text())
        self_made[1]["type"] = "own_pooling.OwnPooling"
        (checkpoint / "modules.json").write_text(json.dumps(self_made))
        with pytest.raises(stonnx.UnsupportedError, match=r"own_pooling\.OwnPooling.*--trust-remote-code"):
            load.open_checkpoint(checkpoint, None, "torch")

    def test_an_onnx_file_is_the_other_remedy(self, checkpoint: Path) -> None:
        (checkpoint / "onnx").mkdir()
        (checkpoint / "onnx" / "model.onnx").write_bytes(b"")
        change(checkpoint / "config.json", auto_map={"AutoModel": "own_network.OwnModel"})
        with pytest.raises(stonnx.UnsupportedError, match="--source onnx"):
            load.open_checkpoint(checkpoint, None, "auto")

    def test_a_tokenizer_beside_an_onnx_file(self, checkpoint: Path) -> None:
        change(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Words"]})
        with pytest.raises(stonnx.UnsupportedError, match=r"'own\.Words'.*--source torch"):
            load.open_checkpoint(checkpoint, None, "onnx")

    def test_first_use(self, with_network: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """The runtime runs no code of a repository, whatever it is told."""
        directory = with_network("embedding")
        monkeypatch.setenv("STONNX_HOME", str(directory.parent / "home"))
        with pytest.raises(stonnx.UnsupportedError, match=r"own_network\.OwnModel"):
            stonnx.SentenceTransformer(directory, trust_remote_code=True)

    def test_what_transformers_took_over(self, checkpoint: Path) -> None:
        """NomicBERT's repositories name their own code for older versions of transformers."""
        names = {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}
        change(checkpoint / "config.json", model_type="nomic_bert", auto_map=names)
        assert read_checkpoint(checkpoint).network_code == ()
        change(checkpoint / "config.json", auto_map=names | {"AutoModel": "acme/fork--modeling.NomicBertModel"})
        (code,) = read_checkpoint(checkpoint).network_code
        assert code.name == "acme/fork--modeling.NomicBertModel"


class TestRun:
    @pytest.mark.parametrize("task", CLASSES)
    def test_a_network(self, with_network: Callable[[str], Path], tmp_path: Path, task: str) -> None:
        directory = with_network(task)
        bundle = export(directory, tmp_path / "bundle", task=task, trust_remote_code=True)
        name = {"embedding": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}[task]
        theirs, ours = getattr(sentence_transformers, name), getattr(stonnx, name)
        expected, native = run(theirs, task, directory, trust_remote_code=True), run(theirs, task, directory)
        result = run(ours, task, bundle)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
        assert np.abs(expected - native).max() > 1e-3, "the code makes no difference, so the test says nothing"
        manifest = read_manifest(bundle)
        assert manifest.remote_code == (f"own_network.{CLASSES[task][1]}",)
        card = (bundle / "README.md").read_text()
        assert f"own_network.{CLASSES[task][1]}" in card
        assert "runs none" in card

    @pytest.mark.parametrize("normalized", [True, False])
    def test_a_pooling(self, checkpoint: Path, tmp_path: Path, normalized: bool) -> None:
        modules = json.loads((checkpoint / "modules.json").read_text())
        modules[1] |= {"type": "own_pooling.OwnPooling", "path": "1_Own"}
        (checkpoint / "modules.json").write_text(json.dumps(modules[: 3 if normalized else 2]))
        (checkpoint / "1_Own").mkdir()
        change(checkpoint / "1_Own" / "config.json", factor=2.5)
        (checkpoint / "own_pooling.py").write_text(POOLING)
        bundle = export(checkpoint, tmp_path / "bundle", trust_remote_code=True)
        original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", trust_remote_code=True)
        model = stonnx.SentenceTransformer(bundle)
        np.testing.assert_allclose(model.encode(TEXTS), original.encode(TEXTS), rtol=0, atol=2e-5)
        np.testing.assert_allclose(model.encode_query(TEXTS), original.encode_query(TEXTS), rtol=0, atol=2e-5)
        tokens, expected = (one.encode(TEXTS, output_value="token_embeddings") for one in (model, original))
        for ours, theirs in zip(tokens, expected, strict=True):
            np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=0, atol=2e-5)
        assert read_manifest(bundle).remote_code == ("own_pooling.OwnPooling",)
        assert read_manifest(bundle).normalized is normalized

    def test_a_tokenizer(self, checkpoint: Path, tmp_path: Path) -> None:
        (checkpoint / "own_words.py").write_text(TOKENIZER)
        names = {"AutoTokenizer": [None, "own_words.OwnTokenizer"]}
        change(checkpoint / "tokenizer_config.json", auto_map=names, tokenizer_class="OwnTokenizer")
        bundle = export(checkpoint, tmp_path / "bundle", trust_remote_code=True)
        original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", trust_remote_code=True)
        np.testing.assert_allclose(
            stonnx.SentenceTransformer(bundle).encode(TEXTS), original.encode(TEXTS), rtol=0, atol=1e-5
        )
        assert read_manifest(bundle).remote_code == ("own_words.OwnTokenizer",)

    def test_on_the_command_line(
        self, with_network: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        directory, bundle = with_network("embedding"), tmp_path / "bundle"
        arguments = ["export", str(directory), "-o", str(bundle), "--quiet"]
        assert cli.main(arguments) == 1
        assert "--trust-remote-code" in capsys.readouterr().err
        assert cli.main([*arguments, "--trust-remote-code"]) == 0
        again = ["verify", str(bundle), "--against", str(directory)]
        assert cli.main(again) == 1
        assert cli.main([*again, "--trust-remote-code"]) == 0
