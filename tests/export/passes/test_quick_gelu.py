"""CLIP's quick GELU becomes SiLU: it fires, is exact, and declines."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass
from small_graphs import HIDDEN, TOKENS, graph_of, nodes_of, random, run_as_it_is, shaped

from stonnx_export.passes import quick_gelu

WIDE = 24


def network(*, bias: bool = True, swapped: bool = False, products: int = 1, change: str = "") -> ir.Model:
    """Products around ``x * sigmoid(1.702 x)``, with one thing that is not so."""
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    rng, order = np.random.default_rng(0), -1 if swapped else 1
    weight = tokens if change == "no constant" else op.constant(random(rng, HIDDEN, WIDE), "weight")
    if change == "no constant":
        weight = op.Transpose(tokens, perm=[0, 2, 1])
    x = op.MatMul(tokens, weight)
    if bias:
        x = op.Add(*[x, op.constant(random(rng, WIDE), "bias")][::order])
    scaled = op.Mul(*[x, op.constant(np.float32(-1.702 if change == "negative" else 1.702))][::order])
    active = op.Mul(*[x, op.Sigmoid(scaled)][::order])
    outputs = [op.MatMul(active, op.constant(random(rng, WIDE, HIDDEN), "weight")) for _ in range(products)]
    if change == "read before":
        outputs.append(op.Tanh(x))
    if change == "read by something else":
        outputs.append(op.Tanh(active))
    if change == "of another value":
        outputs = [op.MatMul(op.Mul(op.Tanh(x), op.Sigmoid(scaled)), op.constant(random(rng, WIDE, HIDDEN), "weight"))]
    if change == "no constant":
        outputs = [op.Tanh(active)]
    for number, output in enumerate(outputs):
        op.name_output(shaped(output, *TOKENS, "width"), f"output_{number}", [*TOKENS, "width"])
        model.graph.outputs.append(output)
    return model


@pytest.mark.parametrize("written", [{}, {"bias": False}, {"swapped": True}, {"products": 2}], ids=str)
def test_is_exact(written: dict[str, object]) -> None:
    before = network(**written)  # type: ignore[arg-type]
    after = before.clone()
    assert quick_gelu.run(after).fired == 1
    after.graph.sort()
    assert len(nodes_of(before, "Mul")) - len(nodes_of(after, "Mul")) == 1
    tokens = random(np.random.default_rng(1), 3, 5, HIDDEN, scale=2.0)
    for expected, found in zip(run_as_it_is(before, tokens=tokens), run_as_it_is(after, tokens=tokens), strict=True):
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
    assert quick_gelu.run(after).fired == 0


@pytest.mark.parametrize(
    "change", ["read before", "read by something else", "of another value", "negative", "no constant"]
)
def test_declines(change: str) -> None:
    model = network(change=change)
    RemoveUnusedNodesPass()(model)
    nodes = [node.op_type for node in model.graph]
    assert quick_gelu.run(model).fired == 0
    assert [node.op_type for node in model.graph] == nodes
