"""Every activation of a CrossEncoder against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rerankers import PAIRS, TOLERANCE, assert_same_scores

import stonnx
from stonnx._results.activations import ACTIVATIONS, resolve_activation
from stonnx_export.checkpoint import modules
from stonnx_export.heads import graft

TORCH_ACTIVATIONS = [
    torch.nn.Identity(),
    torch.nn.Sigmoid(),
    torch.nn.Tanh(),
    torch.nn.ReLU(),
    torch.nn.GELU(),
    torch.nn.GELU(approximate="tanh"),
    torch.nn.SiLU(),
    torch.nn.LeakyReLU(),
    torch.nn.LeakyReLU(0.3),
    torch.nn.Softplus(),
    torch.nn.Softplus(beta=2.0, threshold=5.0),
    torch.nn.ELU(),
    torch.nn.ELU(alpha=0.5),
    torch.nn.CELU(),
    torch.nn.CELU(alpha=0.5),
    torch.nn.SELU(),
    torch.nn.Mish(),
    torch.nn.ReLU6(),
    torch.nn.Hardtanh(),
    torch.nn.Hardtanh(-2.0, 0.5),
    torch.nn.Hardsigmoid(),
    torch.nn.Hardswish(),
    torch.nn.Hardshrink(),
    torch.nn.Hardshrink(2.0),
    torch.nn.Softshrink(),
    torch.nn.Softshrink(2.0),
    torch.nn.Tanhshrink(),
    torch.nn.Softsign(),
    torch.nn.LogSigmoid(),
    torch.nn.Softmax(dim=-1),
    torch.nn.Softmax(dim=0),
    torch.nn.Softmin(dim=-1),
    torch.nn.LogSoftmax(dim=-1),
    torch.nn.LogSoftmax(dim=0),
]


@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS, ids=str)
@pytest.mark.parametrize("apply_softmax", [False, True])
def test_activations_of_a_call_equal_the_original(
    one: stonnx.CrossEncoder,
    three: stonnx.CrossEncoder,
    original_one: Any,
    original_three: Any,
    activation: Any,
    apply_softmax: bool,
) -> None:
    options = {"activation_fn": activation, "apply_softmax": apply_softmax}
    for model, original in ((one, original_one), (three, original_three)):
        assert_same_scores(original.predict(PAIRS, **options), model.predict(PAIRS, **options))


@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS, ids=str)
def test_activations_equal_torch(activation: Any) -> None:
    values = np.concatenate([np.linspace(-30, 30, 601), [-1000, -100, -88, 0, 88, 100, 1000]]).astype(np.float32)
    values = values.reshape(-1, 2)
    result = resolve_activation(activation)(values)
    assert result.dtype == np.float32
    expected = activation(torch.from_numpy(values)).numpy()
    # torch's GELU computes 1 + erf(x), which loses 5e-7 of results near zero; these differences lose as much.
    lossy = any(name in str(activation) for name in ("GELU", "Tanhshrink", "LogSoftmax"))
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-6 if lossy else 1e-37)


def test_softmax_without_a_dimension_is_over_the_labels(three: stonnx.CrossEncoder) -> None:
    scores = three.predict(PAIRS, activation_fn=torch.nn.Softmax())
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(scores, three.predict(PAIRS, activation_fn="softmax"))


def test_the_names_are_those_of_the_exporter() -> None:
    assert set(ACTIVATIONS) == set(graft.ACTIVATIONS) == set(modules.ACTIVATIONS.values())
    for torch_name, name in modules.ACTIVATIONS.items():
        assert resolve_activation(f"torch.nn.modules.activation.{torch_name}") is ACTIVATIONS[name]


@pytest.mark.parametrize(
    "activation",
    [
        "tanh",
        "torch.nn.Tanh",
        "torch.nn.modules.activation.Tanh",
        torch.nn.Tanh(),
        torch.tanh,
        np.tanh,
        ACTIVATIONS["tanh"],
        lambda logits: np.tanh(logits.astype(np.float64)),
    ],
    ids=["name", "path", "long path", "module", "torch function", "ufunc", "ours", "lambda"],
)
def test_an_activation_can_be_named_in_many_ways(one: stonnx.CrossEncoder, original_one: Any, activation: Any) -> None:
    assert_same_scores(
        original_one.predict(PAIRS, activation_fn=torch.nn.Tanh()), one.predict(PAIRS, activation_fn=activation)
    )


class _OwnModule(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    "activation",
    [
        "swish",
        "mypackage.Sigmoid",
        "torch.nn.Bilinear",
        torch.nn.Bilinear(1, 1, 1),
        torch.nn.Sigmoid,
        torch.exp,
        _OwnModule(),
        3,
    ],
    # Ids without addresses: pytest-xdist compares them between processes.
    ids=["no-name", "no-torch", "dotted", "module", "class", "function", "own", "number"],
)
def test_an_unknown_activation_is_refused(one: stonnx.CrossEncoder, activation: Any) -> None:
    with pytest.raises(stonnx.UnsupportedError, match=r"not known\. Allowed are the names identity, tanh"):
        one.predict(PAIRS, activation_fn=activation)


def test_an_activation_must_return_a_row_for_each_pair(one: stonnx.CrossEncoder) -> None:
    with pytest.raises(stonnx.InvalidArgumentError, match="a row for each of the 9 pairs"):
        one.predict(PAIRS, activation_fn=np.sum)


def test_the_activation_of_the_model_can_be_replaced(bundle: Path, one: stonnx.CrossEncoder) -> None:
    logits, scores = one.predict(PAIRS, activation_fn="identity"), one.predict(PAIRS)
    assert np.abs(logits - scores).min() > 0.01
    model = stonnx.CrossEncoder(bundle, activation_fn=torch.nn.Identity())
    np.testing.assert_array_equal(logits, model.predict(PAIRS))
    assert model.activation_fn is ACTIVATIONS["identity"]
    model.activation_fn = None
    np.testing.assert_array_equal(scores, model.predict(PAIRS))
    assert model.activation_fn is model.default_activation_function is ACTIVATIONS["sigmoid"]
    np.testing.assert_allclose(model.activation_fn(logits), scores, **TOLERANCE)
