"""The modules of a checkpoint, as their own classes save them and as earlier versions did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling
from written_checkpoints import only, saved, write

from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.modules import ACTIVATIONS, POOLING_MODES

OLD_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
RESIDUAL = pytest.mark.needs("sentence-transformers", "6", "use_residual")


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


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
