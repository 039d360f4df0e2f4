"""GELU as FastGelu: it fires, takes the bias in front, is as close as it says, and stays above what its codes hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import encoder, graph_of, nodes_of, run_as_it_is, shaped

from stonnx_export.int8 import fast_gelu
from stonnx_export.int8.products import AFTER_GELU
from stonnx_export.passes import PassResult

WIDTH = 8


def biased(bias: np.ndarray, *, swapped: bool = False, read_twice: bool = False, **attributes: str) -> ir.Model:
    """gelu(x + b), and where it is read twice x + b as well."""
    model, op, (values,) = graph_of(("values", ir.DataType.FLOAT, ("n", WIDTH)))
    operands = [values, op.constant(bias, "bias")]
    total = op.Add(*operands[:: -1 if swapped else 1])
    outputs = [op.Gelu(total, **attributes), *([total] if read_twice else [])]
    model.graph.outputs.extend(shaped(op.Identity(output), "n", WIDTH) for output in outputs)
    return model


@pytest.mark.parametrize("attributes", [{}, {"approximate": "none"}, {"approximate": "tanh"}], ids=str)
def test_fires(attributes: dict[str, str]) -> None:
    model = biased(np.ones(WIDTH, np.float32), **attributes)
    assert fast_gelu.run(model) == PassResult("fast_gelu", 1)
    (node,) = nodes_of(model, "FastGelu")
    assert (node.domain, len(node.inputs)) == ("com.microsoft", 2)
    assert fast_gelu.run(model) == PassResult("fast_gelu", 0)


@pytest.mark.parametrize("swapped", [False, True])
def test_takes_the_bias(swapped: bool) -> None:
    rng = np.random.default_rng(0)
    before = biased(rng.normal(size=WIDTH).astype(np.float32), swapped=swapped)
    after = before.clone()
    fast_gelu.run(after)
    assert [node.op_type for node in after.graph] == ["FastGelu", "Identity"]
    values = rng.normal(size=(50, WIDTH)).astype(np.float32)
    (expected,), (result,) = (run_as_it_is(model, values=values) for model in (before, after))
    assert np.abs(result - expected).max() < 5e-4


@pytest.mark.parametrize(
    ("bias", "read_twice"),
    [(np.ones(WIDTH, np.float32), True), (np.ones((1, WIDTH), np.float32), False)],
    ids=["read by others too", "no vector"],
)
def test_leaves_what_has_no_bias_to_take(bias: np.ndarray, read_twice: bool) -> None:
    model = biased(bias, read_twice=read_twice)
    assert fast_gelu.run(model) == PassResult("fast_gelu", 0)
    assert [node.op_type for node in model.graph][:2] == ["Add", "Gelu"]


def test_the_difference() -> None:
    values = np.repeat(np.linspace(-12, 12, 240_001, dtype=np.float32)[:, None], WIDTH, axis=1)
    approximate = biased(np.zeros(WIDTH, np.float32))
    fast_gelu.run(approximate)
    models = (biased(np.zeros(WIDTH, np.float32)), approximate)
    (exact,), (close,) = (run_as_it_is(model, values=values) for model in models)
    assert 1e-4 < np.abs(close - exact).max() < 5e-4
    # 8 bits hold no values below this.
    for result in (exact, close):
        assert -AFTER_GELU.lowest < result.min() < -AFTER_GELU.lowest + 2e-4


def test_every_layer() -> None:
    model = encoder(layers=3)
    before = len(nodes_of(model, "Add"))
    assert fast_gelu.run(model) == PassResult("fast_gelu", 3)
    assert len(nodes_of(model, "Add")) == before - 3
    assert fast_gelu.run(encoder(activation="Tanh")) == PassResult("fast_gelu", 0)
