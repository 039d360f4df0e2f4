"""Settings of the model as a whole, and what a checkpoint is for: as sentence-transformers has it, or refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

import stonnx
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load

Build = Callable[..., Path]


@pytest.fixture
def with_settings(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """``with_settings(**settings)``: the tiny checkpoint with other settings."""

    def make(**settings: Any) -> Path:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        file = directory / "config_sentence_transformers.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return directory

    return make


class TestSettings:
    @pytest.mark.needs("sentence-transformers", "6", "a default for similarities that it does not know")
    @pytest.mark.parametrize("name", ["dot_score", "MaxSim", "maxsim", "cos_sim", 7])
    def test_an_unknown_similarity(
        self, with_settings: Callable[..., Path], name: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = with_settings(similarity_fn_name=name)
        with caplog.at_level(logging.WARNING, "stonnx"):
            assert read_checkpoint(directory).similarity_fn_name is None
        assert repr(name) in caplog.text
        assert SentenceTransformer(str(directory), device="cpu").similarity_fn_name == "cosine"

    def test_prompts_that_are_null(self, with_settings: Callable[..., Path]) -> None:
        directory = with_settings(prompts={"query": None, "document": "d: ", "other": None})
        original = SentenceTransformer(str(directory), device="cpu")
        assert read_checkpoint(directory).prompts == original.prompts == {"query": "", "document": "d: ", "other": ""}

    @pytest.mark.parametrize("prompts", [["query"], {"query": 3}])
    def test_prompts_that_are_no_texts(self, with_settings: Callable[..., Path], prompts: Any) -> None:
        with pytest.raises(stonnx.ExportError, match="prompt"):
            read_checkpoint(with_settings(prompts=prompts))

    def test_a_default_prompt_that_is_not_there(self, with_settings: Callable[..., Path]) -> None:
        directory = with_settings(default_prompt_name="passage")
        with pytest.raises(ValueError, match="passage"):
            SentenceTransformer(str(directory), device="cpu")
        with pytest.raises(stonnx.ExportError, match=r"'passage'.*\['document', 'query'\]"):
            read_checkpoint(directory)

    def test_a_default_prompt_that_nobody_wrote(self, with_settings: Callable[..., Path]) -> None:
        """Every embedding model has a query and a document prompt."""
        directory = with_settings(prompts={}, default_prompt_name="document")
        assert SentenceTransformer(str(directory), device="cpu").default_prompt_name == "document"
        assert read_checkpoint(directory).default_prompt_name == "document"

    @pytest.mark.parametrize("value", [1.5, "8", True])
    def test_a_width_that_is_no_number(self, with_settings: Callable[..., Path], value: Any) -> None:
        with pytest.raises(stonnx.ExportError, match="truncate_dim must be an integer"):
            read_checkpoint(with_settings(truncate_dim=value))


class TestTransformer:
    @pytest.mark.parametrize(
        "text", [{"method": "get_text_features"}, {"method": "forward", "method_output_name": "pooler_output"}]
    )
    def test_another_output(self, tiny_checkpoint: Path, tmp_path: Path, text: dict[str, str]) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        (directory / "sentence_bert_config.json").write_text(json.dumps({"modality_config": {"text": text}}))
        with pytest.raises(stonnx.UnsupportedError, match=r"pooler_output|get_text_features"):
            read_checkpoint(directory)

    @pytest.mark.parametrize(
        "settings",
        [
            {"config_args": {"hidden_act": "relu"}},
            {"model_kwargs": {"is_causal": False}},
            {"tokenizer_name_or_path": "a/b"},
        ],
        ids=repr,
    )
    def test_arguments_that_no_onnx_file_shows(
        self, tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        (directory / "sentence_bert_config.json").write_text(json.dumps(settings))
        with pytest.raises(stonnx.UnsupportedError, match=r"hidden_act|is_causal|tokenizer_name_or_path"):
            load.open_checkpoint(directory, None, "onnx")


class TestTask:
    def test_another_class(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        for task, name in (("rerank", "CrossEncoder"), ("sparse", "SparseEncoder")):
            with pytest.raises(stonnx.UnsupportedError, match=f"is a SentenceTransformer, not a {name}.*stonnx.Sent"):
                export(tiny_checkpoint, tmp_path / "bundle", task=task)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder"])
    def test_not_an_embedding_model(self, with_settings: Callable[..., Path], kind: str) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=rf"is a {kind}, not a SentenceTransformer.*stonnx\.{kind}"):
            read_checkpoint(with_settings(model_type=kind), "embedding")

    def test_a_class_that_is_not_there(self, with_settings: Callable[..., Path]) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=r"is a AudioEncoder.*Classes that can: Sent"):
            read_checkpoint(with_settings(model_type="AudioEncoder"))

    def test_a_causal_language_model_as_reranker(self, build_small: Build) -> None:
        directory = build_small("qwen2", num_key_value_heads=2)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
        with pytest.raises(stonnx.UnsupportedError, match=r"\(Qwen2ForCausalLM\).*lacks 'yes' and 'no'"):
            read_checkpoint(directory, "rerank")
        assert read_checkpoint(directory).task == "embedding"

    def test_a_plain_network_as_sparse_encoder(self, build_small: Build) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=r"no masked-LM head for SPLADE.*BertModel.*random weights"):
            read_checkpoint(build_small("bert"), "sparse")
