"""Checkpoint directories in every layout: what is read from them, and which task they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from written_checkpoints import BERT, LEGACY, write

from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.read import read_checkpoint


class TestLayouts:
    @pytest.mark.parametrize("paths", ["6.x", "legacy"])
    def test_a_chain(self, tmp_path: Path, paths: str) -> None:
        """Every class under both of its paths. Normalize has no folder in a clone, since git keeps no empty ones."""
        for folder, module in {"2_Dense": Dense(4, 3), "3_LayerNorm": LayerNorm(3)}.items():
            (tmp_path / folder).mkdir()
            module.save(str(tmp_path / folder))
        pooling = {"pooling_mode_cls_token": True} if paths == "legacy" else {"pooling_mode": "cls"}
        files = {"sentence_bert_config.json": {"max_seq_length": 128}, "1_Pooling/config.json": pooling}
        write(tmp_path, "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize", paths=paths, **files)
        checkpoint = read_checkpoint(tmp_path)
        transformer, first, dense, norm, last = checkpoint.chain
        assert (transformer, first, last) == (
            modules.Transformer(128),
            modules.Pooling(("cls",), True),
            modules.Normalize(),
        )
        assert (dense.weight.shape, dense.activation, norm.weight.shape) == ((3, 4), "tanh", (3,))
        assert (checkpoint.task, checkpoint.architecture, checkpoint.default_route) == ("embedding", "bert", "default")

    def test_what_sentence_transformers_saves(self, tiny_checkpoint: Path) -> None:
        checkpoint = read_checkpoint(tiny_checkpoint)
        assert checkpoint.chain == (
            modules.Transformer(None),  # version 6 writes the limit into the tokenizer's files
            modules.Pooling(("mean",), True),
            modules.Normalize(),
        )
        assert (checkpoint.architecture, checkpoint.max_positions, checkpoint.task) == ("bert", 64, "embedding")
        assert checkpoint.prompts == {"query": "find: ", "document": ""}
        assert (checkpoint.similarity_fn_name, checkpoint.default_prompt_name) == ("dot", None)

    def test_settings(self, tmp_path: Path) -> None:
        settings = {
            "prompts": {"query": "q: "},
            "default_prompt_name": "query",
            "similarity_fn_name": "euclidean",
            "truncate_dim": 64,
        }
        checkpoint = read_checkpoint(write(tmp_path, **{"config_sentence_transformers.json": settings}))
        assert {name: getattr(checkpoint, name) for name in settings} == settings

    def test_no_settings(self, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write(tmp_path))
        assert checkpoint.prompts == {}
        assert (checkpoint.default_prompt_name, checkpoint.similarity_fn_name, checkpoint.truncate_dim) == (None,) * 3

    def test_a_network_in_a_folder_of_its_own(self, tmp_path: Path) -> None:
        write(tmp_path, config=None)
        rows = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": LEGACY + "Transformer"}]
        (tmp_path / "modules.json").write_text(json.dumps(rows))
        (tmp_path / "0_Transformer").mkdir()
        (tmp_path / "0_Transformer" / "config.json").write_text(json.dumps(BERT))
        (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
        checkpoint = read_checkpoint(tmp_path)
        assert (checkpoint.chain, checkpoint.max_positions) == ((modules.Transformer(77),), 512)

    @pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
    def test_max_seq_length(self, tmp_path: Path, kind: str) -> None:
        write(tmp_path, **{f"sentence_{kind}_config.json": {"max_seq_length": 99, "do_lower_case": False}})
        assert read_checkpoint(tmp_path).chain == (modules.Transformer(99),)

    def test_no_max_seq_length(self, tmp_path: Path) -> None:
        assert read_checkpoint(write(tmp_path)).chain == (modules.Transformer(None),)

    @pytest.mark.parametrize(
        ("config", "mode"),
        [
            pytest.param(BERT, "mean", id="encoder"),
            pytest.param({"model_type": "gpt2"}, "mean", id="no architectures"),
            pytest.param({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken", id="decoder"),
            pytest.param({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean", id="not causal"),
        ],
    )
    def test_a_plain_transformers_checkpoint(self, tmp_path: Path, config: Mapping[str, Any], mode: str) -> None:
        """No modules.json: sentence-transformers adds a pooling."""
        write(tmp_path, config=config, **{"modules.json": None})
        assert read_checkpoint(tmp_path).chain == (modules.Transformer(None), modules.Pooling((mode,), True))

    @pytest.mark.parametrize(
        ("config", "positions"),
        [
            ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
            ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
            ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
            ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, 512),
            ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
            ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
            ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
            ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
            ({"model_type": "t5"}, None),
            ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
            ({"model_type": "bert", "max_position_embeddings": None}, None),
        ],
        ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
    )
    def test_positions(self, tmp_path: Path, config: Mapping[str, Any], positions: int | None) -> None:
        assert read_checkpoint(write(tmp_path, config=config)).max_positions == positions


class TestTasks:
    @pytest.mark.parametrize(
        ("model_type", "task"), [("SentenceTransformer", "embedding"), ("SparseEncoder", "sparse")]
    )
    def test_what_the_checkpoint_says(self, tmp_path: Path, model_type: str, task: str) -> None:
        write(tmp_path, **{"config_sentence_transformers.json": {"model_type": model_type}})
        assert read_checkpoint(tmp_path).task == task

    def test_a_module_for_sparse_vectors(self, tmp_path: Path) -> None:
        write(tmp_path, "SpladePooling", paths="legacy", **{"1_SpladePooling/config.json": {}})
        assert read_checkpoint(tmp_path).task == "sparse"

    def test_what_the_caller_says(self, tmp_path: Path) -> None:
        """Of a plain checkpoint, it decides which class of transformers loads the network."""
        config = {**BERT, "architectures": ["BertForMaskedLM"]}
        directory = write(tmp_path, config=config, **{"modules.json": None})
        assert read_checkpoint(directory, "sparse").task == "sparse"
        assert read_checkpoint(directory).task == "embedding"

    @pytest.mark.parametrize("written", ["config.json", "older", "config_sentence_transformers.json", "nowhere"])
    @pytest.mark.parametrize("labels", [1, 3])
    def test_a_reranker(self, tmp_path: Path, labels: int, written: str) -> None:
        """The activation has been written to three places; without it, one label has a sigmoid."""
        names = {str(index): f"name {index}" for index in reversed(range(labels))}
        config: dict[str, Any] = {"architectures": ["BertForSequenceClassification"], "id2label": names}
        settings: dict[str, Any] = {"model_type": "CrossEncoder"}
        tanh = "torch.nn.modules.activation.Tanh"
        if written == "config.json":
            config["sentence_transformers"] = {"activation_fn": tanh}
        elif written == "older":
            config["sbert_ce_default_activation_function"] = tanh
        elif written == "config_sentence_transformers.json":
            settings["activation_fn"] = tanh
        files = {"modules.json": None, "config_sentence_transformers.json": settings}
        checkpoint = read_checkpoint(write(tmp_path, config=config, **files))
        default = "sigmoid" if labels == 1 else "identity"
        assert checkpoint.task == "rerank"
        assert checkpoint.activation == (default if written == "nowhere" else "tanh")
        assert checkpoint.labels == tuple(f"name {index}" for index in range(labels))
        assert (checkpoint.num_labels, checkpoint.chain) == (labels, (modules.Transformer(None),))
