"""The finished bundle is opened and called before it is moved into place; its settings are those of the original."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

import stonnx
from stonnx_export import export, pipeline

TEXTS = ["The weather is lovely today.", "a", "A man is playing a large flute on the stage."]
METHODS = ("encode", "encode_query", "encode_document")


@pytest.fixture
def static(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """``static(**settings)``: a table of vectors with settings. Exporting it takes no time."""

    def make(**settings: Any) -> Path:
        tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
        tokenizer.no_truncation()
        table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
        directory = tmp_path / "static"
        model = sentence_transformers.SentenceTransformer(
            modules=[StaticEmbedding(tokenizer, table), Normalize()], device="cpu"
        )
        model.save_pretrained(str(directory), create_model_card=False)
        file = directory / "config_sentence_transformers.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return directory

    return make


class TestSettings:
    @pytest.mark.parametrize("source", ["torch", "onnx"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"similarity_fn_name": "dot_score"},
            {"similarity_fn_name": "MaxSim"},
            {"similarity_fn_name": "euclidean"},
            {"prompts": {"query": None}},
            {"prompts": {"query": "find: ", "document": None}, "default_prompt_name": "query"},
            {"prompts": {"query": "find: "}, "default_prompt_name": "document"},
            {"truncate_dim": 0},
            {"truncate_dim": 5},
            {"truncate_dim": 500},
            {"truncate_dim": -3},
        ],
        ids=repr,
    )
    def test_as_the_original(
        self, static: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], source: Any
    ) -> None:
        directory = static(**settings)
        model = stonnx.SentenceTransformer(export(directory, tmp_path / "bundle", source=source))
        original = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
        for method in METHODS:
            ours, theirs = getattr(model, method)(TEXTS), getattr(original, method)(TEXTS)
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        assert model.similarity_fn_name == original.similarity_fn_name
        assert model.prompts == original.prompts
        assert model.default_prompt_name == original.default_prompt_name
        assert model.truncate_dim == original.truncate_dim
        assert model.get_embedding_dimension() == original.get_embedding_dimension()
        np.testing.assert_allclose(
            np.asarray(model.similarity(ours, ours)), original.similarity(theirs, theirs).numpy(), rtol=0, atol=1e-5
        )

    @pytest.mark.parametrize("most", [3, 8, 20])
    def test_active_dimensions(self, tiny_checkpoint: Path, tmp_path: Path, most: int) -> None:
        """More than the k of the autoencoder are that many, fewer are fewer."""
        torch.manual_seed(0)
        autoencoder = SparseAutoEncoder(32, 64, k=8, k_aux=16)
        torch.nn.init.normal_(autoencoder.latent_bias, mean=1.0)
        model = sentence_transformers.SparseEncoder(
            modules=[Transformer(str(tiny_checkpoint)), Pooling(32, "mean"), autoencoder], device="cpu"
        )
        directory = tmp_path / "csr"
        model.save_pretrained(str(directory), create_model_card=False)
        file = directory / "config_sentence_transformers.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_active_dims": most}))
        original = sentence_transformers.SparseEncoder(str(directory), device="cpu")
        ours = stonnx.SparseEncoder(export(directory, tmp_path / "bundle"))
        expected = original.encode(TEXTS).to_dense().numpy()
        assert (expected != 0).sum(axis=1).tolist() == [most] * len(TEXTS)
        np.testing.assert_allclose(ours.encode(TEXTS).toarray(), expected, rtol=0, atol=1e-5)
        assert ours.max_active_dims == original.max_active_dims == most

    def test_more_active_dimensions_than_there_are(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "csr")
        modules = json.loads((directory / "modules.json").read_text())
        kind = "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"
        (directory / "modules.json").write_text(json.dumps([*modules, modules[0] | {"path": "3_SAE", "type": kind}]))
        (directory / "3_SAE").mkdir()
        SparseAutoEncoder(32, 64, k=8, k_aux=16).save(str(directory / "3_SAE"))
        settings = {"model_type": "SparseEncoder", "max_active_dims": 65}
        (directory / "config_sentence_transformers.json").write_text(json.dumps(settings))
        with pytest.raises(stonnx.ExportError, match=r"max_active_dims is 65 .* 64 dimensions"):
            export(directory, tmp_path / "bundle")


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"similarity_fn_name": "dot"}, "similarity_fn_name='dot', and the original 'cosine'"),
            ({"similarity_fn_name": "nonsense"}, "cannot be used: stonnx.SentenceTransformer raised"),
            (
                {"truncate_dim": 7},
                r"encode of the finished bundle gives the shape \(4, 7\), and the original's \(4, 16\)",
            ),
            ({"prompts": {"query": "a man "}}, "encode_query of the finished bundle differs from the original's"),
            ({"default_prompt_name": "nowhere"}, "cannot be used"),
            ({"files": {}}, "cannot be used"),
        ],
        ids=repr,
    )
    def test_a_setting_that_is_another(
        self,
        static: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: dict[str, Any],
        match: str,
    ) -> None:
        """Whatever goes wrong behind the verification of vectors is found all the same."""
        render = pipeline.model_card.render
        changed = []

        def replace(manifest: Any) -> str:
            changed.append(True)
            return render(manifest)

        write = pipeline.write_manifest

        def write_changed(directory: Path, manifest: Any) -> None:
            write(directory, dataclasses.replace(manifest, **change) if changed else manifest)

        monkeypatch.setattr(pipeline.model_card, "render", replace)
        monkeypatch.setattr(pipeline, "write_manifest", write_changed)
        directory = static()
        with pytest.raises(stonnx.FidelityError, match=match):
            export(directory, tmp_path / "bundle")
        assert [path.name for path in tmp_path.iterdir()] == ["static"]

    def test_scores(self, build_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The activation is part of the graph, and of no vector that is verified."""
        directory = build_small("bert", auto=AutoModelForSequenceClassification, num_labels=1)
        graft_scores = pipeline.graft.graft_scores
        monkeypatch.setattr(pipeline.graft, "graft_scores", lambda graph, _: graft_scores(graph, "tanh"))
        with pytest.raises(stonnx.FidelityError, match="predict of the finished bundle differs"):
            export(directory, tmp_path / "bundle")
