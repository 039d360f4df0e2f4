"""GELU in its form with tanh: it fires, it is as close as it says, and it stays above what its codes are made for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import encoder, graph_of, nodes_of, run_as_it_is, shaped

from stonnx_export.passes import PassResult, gelu_tanh
from stonnx_export.passes.quantize_products import AFTER_GELU


def gelu(**attributes: str) -> ir.Model:
    model, op, (values,) = graph_of(("values", ir.DataType.FLOAT, ("n",)))
    model.graph.outputs.append(shaped(op.Gelu(values, **attributes), "n"))
    return model


@pytest.mark.parametrize(
    ("attributes", "fired"), [({}, 1), ({"approximate": "none"}, 1), ({"approximate": "tanh"}, 0)], ids=str
)
def test_the_form(attributes: dict[str, str], fired: int) -> None:
    model = gelu(**attributes)
    assert gelu_tanh.run(model) == PassResult("gelu_tanh", fired)
    (node,) = nodes_of(model, "Gelu")
    assert node.attributes["approximate"].as_string() == "tanh"
    assert gelu_tanh.run(model) == PassResult("gelu_tanh", 0)


def test_the_difference() -> None:
    values = np.linspace(-12, 12, 240_001, dtype=np.float32)
    approximate = gelu()
    gelu_tanh.run(approximate)
    (exact,), (close,) = (run_as_it_is(model, values=values) for model in (gelu(), approximate))
    assert 1e-4 < np.abs(close - exact).max() < 5e-4
    # 8 bits hold no values below this.
    for result in (exact, close):
        assert -AFTER_GELU.lowest < result.min() < -AFTER_GELU.lowest + 2e-4


def test_every_layer() -> None:
    assert gelu_tanh.run(encoder(layers=3)) == PassResult("gelu_tanh", 3)
    assert gelu_tanh.run(encoder(activation="Tanh")) == PassResult("gelu_tanh", 0)
