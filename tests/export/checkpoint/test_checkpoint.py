"""Checkpoint directories in every layout: what is read from them, and what is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling

from stonnx._errors import ExportError, ModelNotFoundError, UnsupportedError
from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.modules import ACTIVATIONS, POOLING_MODES
from stonnx_export.checkpoint.read import read_checkpoint

# The path of each class in checkpoints of before version 5.4, and from version 6 on.
LEGACY = "sentence_transformers.models."
PATHS = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "WeightedLayerPooling": (
        "sentence_transformers.sentence_transformer.modules.weighted_layer_pooling.WeightedLayerPooling"
    ),
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
    "SpladePooling": "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
    "SparseAutoEncoder": "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder",
}
BERT = {"model_type": "bert", "max_position_embeddings": 512, "architectures": ["BertModel"]}
OLD_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

RESIDUAL = pytest.mark.needs("sentence-transformers", "6", "use_residual")

# AttributeError, KeyError, SafetensorError and UnpicklingError come through instead of ExportError.


def write(directory: Path, *names: str, paths: str = "6.x", config: Mapping[str, Any] = BERT, **files: Any) -> Path:
    """A checkpoint with these modules behind a Transformer, and with files: ``{"1_Pooling/config.json": {...}}``.

    The folder of a module is ``INDEX_NAME``. A name with a dot is a whole path, the class of which is anything.
    """
    rows = []
    for index, name in enumerate(("Transformer", *names)):
        reference = name if "." in name else PATHS[name] if paths == "6.x" else LEGACY + name
        rows.append({"idx": index, "name": str(index), "path": f"{index}_{name}" if index else "", "type": reference})
    written = {"modules.json": rows, "config.json": config, **files}
    for name, content in written.items():
        if content is None:
            continue
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    save_file({"weight": torch.ones(2)}, directory / "model.safetensors")
    return directory


def saved(directory: Path, name: str, module: Any, **options: Any) -> Path:
    """A checkpoint with one module behind the Transformer, in the files that the module itself writes."""
    (directory / f"1_{name}").mkdir(parents=True)
    module.save(str(directory / f"1_{name}"), **options)
    return write(directory, name)


def only(directory: Path) -> Any:
    """The one module behind the Transformer."""
    (transformer, module) = read_checkpoint(directory).chain
    assert isinstance(transformer, modules.Transformer)
    return module


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


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


class TestPooling:
    @pytest.mark.parametrize("mode", POOLING_MODES)
    def test_modes(self, tmp_path: Path, mode: str) -> None:
        module = Pooling(4, mode, include_prompt=False)
        assert only(saved(tmp_path / "new", "Pooling", module)) == modules.Pooling((mode,), False)
        old = {key: name == mode for name, key in OLD_POOLING_KEYS.items()} | {"word_embedding_dimension": 4}
        write(tmp_path / "old", "Pooling", paths="legacy", **{"1_Pooling/config.json": old})
        assert only(tmp_path / "old") == modules.Pooling((mode,), True)

    def test_several_modes(self, tmp_path: Path) -> None:
        """The new key keeps its order, the old keys are concatenated in the order of the modes."""
        chosen = ("lasttoken", "mean", "cls")
        assert only(saved(tmp_path / "new", "Pooling", Pooling(4, chosen))) == modules.Pooling(chosen, True)
        old = {OLD_POOLING_KEYS[mode]: True for mode in chosen}
        write(tmp_path / "old", "Pooling", **{"1_Pooling/config.json": old})
        assert only(tmp_path / "old") == modules.Pooling(("cls", "mean", "lasttoken"), True)

    @pytest.mark.parametrize("settings", [{}, dict.fromkeys(OLD_POOLING_KEYS.values(), False)], ids=["none", "off"])
    def test_no_mode_means_mean(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        write(tmp_path, "Pooling", **{"1_Pooling/config.json": settings})
        assert only(tmp_path) == modules.Pooling(("mean",), True)


class TestDense:
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
    @pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
    @pytest.mark.parametrize(
        "residual",
        [
            pytest.param(None, id="plain"),
            pytest.param(4, id="residual", marks=RESIDUAL),
            pytest.param(3, id="projected", marks=RESIDUAL),
        ],
    )
    def test_weights(self, tmp_path: Path, residual: int | None, safe: bool, bias: bool) -> None:
        module = Dense(4, residual or 3, bias, **({"use_residual": True} if residual else {}))
        read = only(saved(tmp_path, "Dense", module, safe_serialization=safe))
        expected = state(module)
        np.testing.assert_array_equal(read.weight, expected["linear.weight"])
        assert (read.bias is not None, read.residual) == (bias, residual is not None)
        assert (read.residual_weight is not None) == (residual == 3)
        if bias:
            np.testing.assert_array_equal(read.bias, expected["linear.bias"])
        if residual == 3:
            np.testing.assert_array_equal(read.residual_weight, expected["residual.weight"])

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_activations(self, tmp_path: Path, name: str) -> None:
        module = Dense(4, 3, activation_function=getattr(torch.nn, name)())
        assert only(saved(tmp_path, "Dense", module)).activation == ACTIVATIONS[name]

    @pytest.mark.parametrize(("written", "activation"), [({}, "tanh"), ({"activation_function": None}, "identity")])
    def test_no_activation(self, tmp_path: Path, written: dict[str, None], activation: str) -> None:
        """A config without the key is one of before the key, when it was always Tanh."""
        saved(tmp_path, "Dense", Dense(4, 3))
        (tmp_path / "1_Dense" / "config.json").write_text(json.dumps(written))
        assert only(tmp_path).activation == activation

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
    def test_other_precisions_become_float32(self, tmp_path: Path, dtype: torch.dtype, safe: bool) -> None:
        module = Dense(4, 3).to(dtype)
        weight = only(saved(tmp_path, "Dense", module, safe_serialization=safe)).weight
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, module.linear.weight.detach().float().numpy())


class TestOtherModules:
    def test_layer_norm(self, tmp_path: Path) -> None:
        module = LayerNorm(4)
        torch.nn.init.normal_(module.norm.weight)
        read = only(saved(tmp_path, "LayerNorm", module))
        np.testing.assert_array_equal(read.weight, state(module)["norm.weight"])
        np.testing.assert_array_equal(read.bias, state(module)["norm.bias"])
        assert read.epsilon == module.norm.eps

    def test_normalize(self, tmp_path: Path) -> None:
        assert only(saved(tmp_path, "Normalize", Normalize())) == modules.Normalize()

    def test_weighted_layer_pooling(self, tmp_path: Path) -> None:
        module = WeightedLayerPooling(4, num_hidden_layers=6, layer_start=3)
        torch.nn.init.normal_(module.layer_weights)
        read = only(saved(tmp_path, "WeightedLayerPooling", module))
        assert read.layer_start == 3
        np.testing.assert_array_equal(read.weights, state(module)["layer_weights"])

    @pytest.mark.parametrize("strategy", ["max", "sum"])
    @pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
    def test_splade_pooling(self, tmp_path: Path, strategy: str, activation: str) -> None:
        read = only(saved(tmp_path, "SpladePooling", SpladePooling(strategy, activation)))
        assert read == modules.SpladePooling(strategy, activation == "log1p_relu")

    @pytest.mark.parametrize("normalize", [True, False])
    def test_sparse_auto_encoder(self, tmp_path: Path, normalize: bool) -> None:
        module = SparseAutoEncoder(4, 16, k=3, normalize=normalize)
        torch.nn.init.normal_(module.pre_bias)
        torch.nn.init.normal_(module.latent_bias)
        read = only(saved(tmp_path, "SparseAutoEncoder", module))
        assert (read.k, read.normalize) == (3, normalize)
        for name in ("pre_bias", "latent_bias"):
            np.testing.assert_array_equal(getattr(read, name), state(module)[name])
        np.testing.assert_array_equal(read.weight, state(module)["encoder.weight"])


class TestRefusals:
    @pytest.mark.parametrize(
        "reference",
        [
            "sentence_transformers.models.CNN",
            "sentence_transformers.models.LSTM",
            "sentence_transformers.models.BoW",
            "sentence_transformers.sentence_transformer.modules.word_weights.WordWeights",
        ],
    )
    def test_unknown_modules(self, tmp_path: Path, reference: str) -> None:
        with pytest.raises(UnsupportedError, match="Modules that can: Dense, Dropout") as raised:
            read_checkpoint(write(tmp_path, reference))
        assert repr(reference) in str(raised.value)

    @pytest.mark.parametrize(
        "reference",
        ["custom_st.Transformer", "sentence_transformers_models.Pooling", "Pooling.", ".Pooling", "os.system"],
    )
    def test_code_of_the_repository(self, tmp_path: Path, reference: str) -> None:
        (tmp_path / "custom_st.py").write_text("raise SystemExit('this must not run')")
        with pytest.raises(UnsupportedError, match="--trust-remote-code") as raised:
            read_checkpoint(write(tmp_path, reference))
        assert repr(reference) in str(raised.value)

    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            ({"pooling_mode": "median"}, "median"),
            ({"pooling_mode": ["mean", "median"]}, "median"),
            ({"pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
            ({"pooling_mode_mean_tokens": True, "pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
        ],
    )
    def test_unknown_pooling_modes(self, tmp_path: Path, settings: dict[str, Any], name: str) -> None:
        with pytest.raises(UnsupportedError, match=f"'{name}'.*weightedmean"):
            read_checkpoint(write(tmp_path, "Pooling", **{"1_Pooling/config.json": settings}))

    def test_an_unknown_pooling_mode_that_is_off(self, tmp_path: Path) -> None:
        settings = {"pooling_mode_mean_tokens": True, "pooling_mode_median_tokens": False}
        assert only(write(tmp_path, "Pooling", **{"1_Pooling/config.json": settings})) == modules.Pooling(
            ("mean",), True
        )

    @pytest.mark.parametrize(
        "reference", ["torch.nn.modules.activation.PReLU", "custom.Tanh", "torch.nn.functional.tanh", "Tanh"]
    )
    def test_unknown_activations(self, tmp_path: Path, reference: str) -> None:
        saved(tmp_path, "Dense", Dense(4, 3))
        (tmp_path / "1_Dense" / "config.json").write_text(json.dumps({"activation_function": reference}))
        with pytest.raises(UnsupportedError, match=f"'{reference}'.*Tanh"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
    @pytest.mark.parametrize(("name", "module"), [("Dense", Dense(4, 3)), ("Normalize", Normalize())])
    def test_modules_for_other_features(self, tmp_path: Path, name: str, module: Any, key: str) -> None:
        """ColBERT has them for tokens."""
        saved(tmp_path, name, module)
        file = tmp_path / f"1_{name}" / "config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}  # version 5 writes none for Normalize
        file.write_text(json.dumps(settings | {key: "token_embeddings"}))
        with pytest.raises(UnsupportedError, match=f"{name} module with {key}='token_embeddings'"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("query_length", 32),
            ("document_length", 180),
            ("query_expansion", {"strategy": "fixed", "length": 32}),
            ("processing_kwargs", {"text": {"max_length": 16}}),
        ],
    )
    def test_what_a_transformer_does_to_some_texts_only(self, tmp_path: Path, name: str, value: Any) -> None:
        settings = {"max_seq_length": 64, name: value}
        with pytest.raises(UnsupportedError, match=rf"sentence_bert_config\.json sets {name}, which"):
            read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings}))

    @pytest.mark.parametrize("value", [None, {}])
    def test_what_a_transformer_could_do_and_does_not(self, tmp_path: Path, value: Any) -> None:
        names = ("query_length", "document_length", "query_expansion", "processing_kwargs")
        settings = dict.fromkeys(names, value)
        chain = read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings})).chain
        assert chain == (modules.Transformer(),)

    @pytest.mark.parametrize("names", [[], ["Pooling"], ["Dropout"]], ids=["empty", "Pooling", "Dropout"])
    def test_no_network_first(self, tmp_path: Path, names: list[str]) -> None:
        write(tmp_path)
        rows = [{"idx": 0, "name": "0", "path": "1_Pooling", "type": LEGACY + name} for name in names]
        (tmp_path / "modules.json").write_text(json.dumps(rows))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text("{}")
        with pytest.raises(UnsupportedError, match="first module must be one of Transformer"):
            read_checkpoint(tmp_path)


class TestDamage:
    @pytest.mark.parametrize("exists", [True, False], ids=["empty directory", "no directory"])
    def test_no_checkpoint(self, tmp_path: Path, exists: bool) -> None:
        with pytest.raises(ModelNotFoundError, match=r"neither modules\.json nor config\.json"):
            read_checkpoint(tmp_path if exists else tmp_path / "missing")

    FILES = (
        "modules.json",
        "config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
    )

    @staticmethod
    def whole(directory: Path) -> Path:
        """A checkpoint that can be read."""
        (directory / "2_Dense").mkdir(parents=True)
        Dense(4, 3).save(str(directory / "2_Dense"))
        files: dict[str, Any] = {
            "config_sentence_transformers.json": {},
            "sentence_bert_config.json": {"max_seq_length": 12},
            "1_Pooling/config.json": {"pooling_mode": "mean"},
        }
        write(directory, "Pooling", "Dense", **files)
        read_checkpoint(directory)
        return directory

    @pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe{}", b"[1, 2"], ids=repr)
    @pytest.mark.parametrize("name", FILES)
    def test_broken_json(self, tmp_path: Path, name: str, content: bytes) -> None:
        self.whole(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match="not readable JSON") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    @pytest.mark.parametrize("content", [b"null", b"[1]", b'"text"', b"7"], ids=repr)
    @pytest.mark.parametrize("name", FILES)
    def test_json_of_another_kind(self, tmp_path: Path, name: str, content: bytes) -> None:
        self.whole(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match="is no") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    @pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "2_Dense/config.json"])
    def test_missing_files(self, tmp_path: Path, name: str) -> None:
        (self.whole(tmp_path) / name).unlink()
        with pytest.raises(ExportError, match="lacks") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    def test_a_module_without_weights(self, tmp_path: Path) -> None:
        (self.whole(tmp_path) / "2_Dense" / "model.safetensors").unlink()
        with pytest.raises(ExportError, match="2_Dense has no weights"):
            read_checkpoint(tmp_path)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        (write(tmp_path) / "model.safetensors").unlink()
        with pytest.raises(ExportError, match="has no weights"):
            read_checkpoint(tmp_path)

    def test_other_weights_than_expected(self, tmp_path: Path) -> None:
        save_file({"weight": torch.ones(3, 4)}, self.whole(tmp_path) / "2_Dense" / "model.safetensors")
        with pytest.raises(ExportError, match=r"linear\.weight"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_damaged_weights(self, tmp_path: Path, name: str) -> None:
        folder = self.whole(tmp_path) / "2_Dense"
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"\0" * 20)
        with pytest.raises(ExportError) as raised:
            read_checkpoint(tmp_path)
        assert str(folder / name) in str(raised.value)

    @pytest.mark.parametrize("path", ["../../x", "..", "1_Pooling/../../other", "ABSOLUTE"])
    @pytest.mark.parametrize("row", [0, 1], ids=["first", "second"])
    def test_paths_that_lead_outside(self, tmp_path: Path, row: int, path: str) -> None:
        """The folder outside has all the files, so that nothing else stops it."""
        self.whole(tmp_path / "a" / "inside")
        for outside in ("a", "a/other", "x"):
            (tmp_path / outside).mkdir(exist_ok=True)
            for name in ("config.json", "sentence_bert_config.json"):
                (tmp_path / outside / name).write_text("{}")
        directory = tmp_path / "a" / "inside"
        rows = json.loads((directory / "modules.json").read_text())
        rows[row]["path"] = str(tmp_path / "x") if path == "ABSOLUTE" else path
        (directory / "modules.json").write_text(json.dumps(rows))
        with pytest.raises(ExportError, match="outside"):
            read_checkpoint(directory)


class TestWeightsHash:
    @staticmethod
    def hash(directory: Path) -> str:
        return read_checkpoint(directory).weights_sha256

    def test_depends_on_weights_and_their_names_only(self, tmp_path: Path) -> None:
        TestDamage.whole(tmp_path / "a")
        before = self.hash(tmp_path / "a")
        assert len(before) == 64
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b" / "README.md").write_text("text")
        (tmp_path / "b" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
        assert self.hash(tmp_path / "b") == before

    @pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors", "pytorch_model.bin"])
    def test_changes_with_one_byte_of_any_file(self, tmp_path: Path, name: str) -> None:
        TestDamage.whole(tmp_path)
        (tmp_path / "pytorch_model.bin").write_bytes(b"1234")
        before = self.hash(tmp_path)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert self.hash(tmp_path) != before

    def test_changes_with_names(self, tmp_path: Path) -> None:
        TestDamage.whole(tmp_path)
        before = self.hash(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
        assert self.hash(tmp_path) != before
