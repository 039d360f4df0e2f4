"""The oracle in numpy against sentence-transformers' own modules in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SparseStaticEmbedding, SpladePooling
from torch import nn

from stonnx._errors import UnsupportedError
from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.modules import ACTIVATIONS, POOLING_MODES
from stonnx_export.originals import numpy_modules

HIDDEN = 6
NETWORK = modules.Transformer()
MASKS = {
    "one text": [[1, 1, 1, 1]],
    "one token": [[1]],
    "padding on the right": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
    "padding on the left": [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]],
    "a text of padding only": [[1, 1, 0], [0, 0, 0]],
}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}

# These are computed along a dimension.
ALONG = ("Softmax", "Softmin", "LogSoftmax")


def batch(mask: list[list[int]], features: int = HIDDEN) -> tuple[np.ndarray, np.ndarray]:
    """Random states, also where there is padding, and the mask."""
    flags = np.array(mask, dtype=np.int64)
    return np.random.default_rng(flags.size).normal(size=(*flags.shape, features)).astype(np.float32), flags


def in_torch(chain: list[nn.Module], states: np.ndarray, mask: np.ndarray, **features: Any) -> np.ndarray:
    # Copies: SpladePooling works in place.
    features |= {"token_embeddings": torch.from_numpy(states.copy()), "attention_mask": torch.from_numpy(mask.copy())}
    with torch.inference_mode():
        for module in chain:
            features = module.eval()(features)
    return features["sentence_embedding"].numpy()


def poolings(modes: Iterable[tuple[str, ...]], masks: Iterable[str]) -> list[Any]:
    """Each pooling with each mask."""
    changed = pytest.mark.needs("sentence-transformers", "6.2", "weights that count from the first token after padding")
    return [
        pytest.param(
            mode,
            MASKS[mask],
            id=f"{'+'.join(mode)}-{mask}",
            marks=[changed] if "weightedmean" in mode and mask == "padding on the left" else [],
        )
        for mode in modes
        for mask in masks
    ]


SINGLE = [(mode,) for mode in POOLING_MODES]


@pytest.mark.parametrize(("modes", "mask"), poolings([*SINGLE, POOLING_MODES], MASKS))
def test_pooling(modes: tuple[str, ...], mask: list[list[int]]) -> None:
    states, flags = batch(mask)
    result = numpy_modules.run((NETWORK, modules.Pooling(modes, True)), states, flags)
    np.testing.assert_allclose(result, in_torch([Pooling(HIDDEN, modes)], states, flags), **TOLERANCE)


@pytest.mark.parametrize("prompt_length", [0, 1, 3, 9])
@pytest.mark.parametrize(("modes", "mask"), poolings(SINGLE, ("padding on the right", "padding on the left")))
def test_pooling_without_the_prompt(modes: tuple[str, ...], mask: list[list[int]], prompt_length: int) -> None:
    """A prompt longer than some of the texts, and than all of them, too."""
    states, flags = batch(mask)
    result = numpy_modules.run((NETWORK, modules.Pooling(modes, False)), states, flags, prompt_length)
    original = Pooling(HIDDEN, modes, include_prompt=False)
    np.testing.assert_allclose(result, in_torch([original], states, flags, prompt_length=prompt_length), **TOLERANCE)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_keeps_the_prompt_where_it_belongs_to_the_text(mode: str) -> None:
    states, flags = batch(MASKS["padding on the right"])
    result = numpy_modules.run((NETWORK, modules.Pooling((mode,), True)), states, flags, 1)
    np.testing.assert_allclose(result, in_torch([Pooling(HIDDEN, mode)], states, flags, prompt_length=1), **TOLERANCE)


MEAN, MEAN_ORIGINAL = modules.Pooling(("mean",), True), Pooling(HIDDEN, "mean")


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 200.0])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense(name: str, bias: bool, scale: float) -> None:
    """Every activation, from results that are tiny to exponentials that saturate."""
    states, flags = batch(MASKS["padding on the right"])
    activation = getattr(nn, name)(**({"dim": -1} if name in ALONG else {}))
    ours = modules.Dense(scale * random(4, HIDDEN), random(4) if bias else None, ACTIVATIONS[name], False, None)
    original = Dense(HIDDEN, 4, bias, activation, torch.from_numpy(ours.weight), torch.from_numpy(random(4)))
    result = numpy_modules.run((NETWORK, MEAN, ours), states, flags)
    expected = in_torch([MEAN_ORIGINAL, original], states, flags)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * max(scale, 0.1))


@pytest.mark.needs("sentence-transformers", "6", "use_residual")
@pytest.mark.parametrize("features", [HIDDEN, 4], ids=["equal", "projected"])
def test_residual_dense(features: int) -> None:
    states, flags = batch(MASKS["padding on the right"])
    original = Dense(HIDDEN, features, True, nn.Tanh(), use_residual=True)
    state = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    ours = modules.Dense(state["linear.weight"], state["linear.bias"], "tanh", True, state.get("residual.weight"))
    assert (ours.residual_weight is None) == (features == HIDDEN)
    result = numpy_modules.run((NETWORK, MEAN, ours), states, flags)
    np.testing.assert_allclose(result, in_torch([MEAN_ORIGINAL, original], states, flags), **TOLERANCE)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3], ids=["tiny", "usual", "large"])
def test_layer_norm_and_normalize(scale: float) -> None:
    """Where the vectors are tiny, epsilon decides; a zero vector stays one."""
    states, flags = batch(MASKS["a text of padding only"])
    original = LayerNorm(HIDDEN)
    weight, bias = random(1, HIDDEN)[0], random(HIDDEN)
    original.norm.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    norm = modules.LayerNorm(weight, bias, original.norm.eps)
    for ours, theirs in (
        ((norm, modules.Normalize()), [original, Normalize()]),
        ((modules.Normalize(),), [Normalize()]),
    ):
        result = numpy_modules.run((NETWORK, MEAN, *ours), scale * states, flags)
        expected = in_torch([MEAN_ORIGINAL, *theirs], (scale * states).astype(np.float32), flags)
        np.testing.assert_allclose(result, expected, **TOLERANCE)


def test_normalize_a_vector_shorter_than_its_epsilon() -> None:
    states, flags = batch([[1, 1]])
    result = numpy_modules.run((NETWORK, MEAN, modules.Normalize()), (states * 1e-14).astype(np.float32), flags)
    expected = in_torch([MEAN_ORIGINAL, Normalize()], (states * 1e-14).astype(np.float32), flags)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert np.linalg.norm(result) < 0.1


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_splade(strategy: str, activation: str, mask: list[list[int]]) -> None:
    logits, flags = batch(mask, features=40)
    logits[0, 0, :3] = (1e-7, 50.0, 0.0)
    ours = modules.SpladePooling(strategy, activation == "log1p_relu")
    result = numpy_modules.run((NETWORK, ours), logits, flags)
    np.testing.assert_allclose(result, in_torch([SpladePooling(strategy, activation)], logits, flags), **TOLERANCE)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("k", [1, 5, 32])
def test_sparse_auto_encoder(k: int, normalize: bool) -> None:
    states, flags = batch(MASKS["padding on the right"])
    original = SparseAutoEncoder(HIDDEN, 32, k, 4, normalize=normalize)
    weight, pre_bias, latent_bias = random(32, HIDDEN), random(HIDDEN), random(32)
    with torch.no_grad():
        original.encoder.weight.copy_(torch.from_numpy(weight))
        original.pre_bias.copy_(torch.from_numpy(pre_bias))
        original.latent_bias.copy_(torch.from_numpy(latent_bias))
    ours = modules.SparseAutoEncoder(pre_bias, weight, latent_bias, k, normalize)
    result = numpy_modules.run((NETWORK, MEAN, ours), states, flags)
    expected = in_torch([MEAN_ORIGINAL, original], states, flags)
    np.testing.assert_allclose(result, expected, **TOLERANCE)
    assert 0 < np.count_nonzero(result) <= k * len(states)


@pytest.mark.parametrize("ids", [[3, 1, 3], [0], []])
def test_tables(ids: list[int]) -> None:
    table = random(8, HIDDEN)
    bag = nn.EmbeddingBag(8, HIDDEN, _weight=torch.from_numpy(table))
    expected = bag(torch.tensor(ids, dtype=torch.int64), torch.tensor([0]))
    np.testing.assert_allclose(numpy_modules.static_embedding(table, ids), expected.detach()[0], **TOLERANCE)

    weights = np.abs(random(8))
    original = SparseStaticEmbedding(SimpleNamespace(model_max_length=512), torch.from_numpy(weights))
    with torch.inference_mode():
        features = {"input_ids": torch.tensor([ids or [5]]), "attention_mask": torch.tensor([[1] * len(ids) or [0]])}
        result = original(features)["sentence_embedding"][0]
    np.testing.assert_allclose(numpy_modules.sparse_static_embedding(weights, ids), result, **TOLERANCE)


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param((modules.Normalize(),), id="Normalize before Pooling"),
        pytest.param((MEAN, MEAN), id="Pooling twice"),
        pytest.param((MEAN, modules.SpladePooling("max", False)), id="SPLADE behind Pooling"),
        pytest.param((modules.WeightedLayerPooling(4, np.ones(3, np.float32)),), id="hidden states"),
        pytest.param((modules.Pooling(("median",), True),), id="unknown mode"),
    ],
)
def test_other_chains_are_refused(chain: tuple[modules.Module, ...]) -> None:
    with pytest.raises(UnsupportedError, match="not known in numpy"):
        numpy_modules.run((NETWORK, *chain), *batch([[1, 1]]))
