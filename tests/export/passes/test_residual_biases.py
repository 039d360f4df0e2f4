"""The pass that takes biases out of residual connections: it fires, it is exact, it declines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HIDDEN, TOKENS, encoder, graph_of, layer_norm, linear, nodes_of, random, run_as_it_is, shaped

from stonnx_export.passes import PassResult, attention_biases, residual_biases

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]

LAYERS = 2
BATCHES = [(1,), (7, 2), (40, 1, 17, 40)]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lengths"),
        pytest.param({"mask": "bias"}, id="position bias"),
        pytest.param({"mask": "none", "is_causal": 1}, id="causal"),
        pytest.param({"kv_heads": 2}, id="shared values"),
        pytest.param({"softcap": 20.0}, id="capped scores"),
        pytest.param({"activation": "Tanh"}, id="tanh"),
    ],
)
@pytest.mark.parametrize("without_attention_biases", [False, True])
def test_is_exact(tiny_feeds: Feeds, settings: dict[str, Any], without_attention_biases: bool) -> None:
    before = encoder(layers=LAYERS, **settings)
    if without_attention_biases:
        attention_biases.run(before)
    after = before.clone()
    assert residual_biases.run(after) == PassResult("residual_biases", 2 * LAYERS)
    after.graph.sort()
    # Values that have lost their bias get one again; keys do not need it.
    regained = LAYERS if without_attention_biases and settings != {"kv_heads": 2} else 0
    assert len(nodes_of(before, "Add")) - len(nodes_of(after, "Add")) == 2 * LAYERS - regained
    for lengths in BATCHES:
        batch = tiny_feeds(lengths)
        real = batch["attention_mask"] > 0
        expected, values = (run_as_it_is(model, **batch)[0][real] for model in (before, after))
        assert np.abs(values - expected).max() <= 2e-6 * np.abs(expected).max(), lengths
    assert residual_biases.run(after).fired == 0


def block(change: str) -> ir.Model:
    """norm(x), its product with a weight, and a residual connection around that; with one thing that is not so."""
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    rng = np.random.default_rng(0)
    if change == "no bias of the norm":
        x = shaped(op.LayerNormalization(tokens, op.constant(random(rng, HIDDEN)), axis=-1), *TOKENS, HIDDEN)
    else:
        x = layer_norm(op, tokens, rng)
    inner = shaped(op.Tanh(linear(op, x, HIDDEN, rng)), *TOKENS, HIDDEN)
    inner = linear(op, inner, HIDDEN, rng, bias=change != "no bias to move")
    if change == "read by something else":
        inner = shaped(op.Mul(inner, op.Sigmoid(x)), *TOKENS, HIDDEN)
        inner = linear(op, inner, HIDDEN, rng)
    if change == "two products without biases":
        for _ in range(2):
            inner = shaped(op.Mul(inner, linear(op, x, HIDDEN, rng, bias=False)), *TOKENS, HIDDEN)
        inner = linear(op, inner, HIDDEN, rng)
    result = shaped(op.Add(inner, x), *TOKENS, HIDDEN)
    outputs = [result, *([x] if change == "an output of the graph" else [])]
    if change == "the sum is read twice":
        outputs.append(op.Identity(inner))
    for number, output in enumerate(outputs):
        op.name_output(output, f"output_{number}", [*TOKENS, HIDDEN])
        model.graph.outputs.append(output)
    return model


def test_a_block_as_it_should_be() -> None:
    before = block("nothing")
    after = before.clone()
    assert residual_biases.run(after).fired == 1
    assert operators(before) - operators(after) == {"Add": 1}
    tokens = random(np.random.default_rng(1), 2, 5, HIDDEN)
    (expected,), (values,) = (run_as_it_is(model, tokens=tokens) for model in (before, after))
    assert np.abs(values - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    "change",
    [
        "no bias of the norm",
        "no bias to move",
        "read by something else",
        "two products without biases",
        "an output of the graph",
        "the sum is read twice",
    ],
)
def test_declines(change: str) -> None:
    before = block(change)
    after = before.clone()
    assert residual_biases.run(after) == PassResult("residual_biases", 0)
    assert operators(after) == operators(before)


def test_the_biases_are_large_enough_to_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = block("nothing")
    after = before.clone()
    monkeypatch.setattr(residual_biases, "_add", lambda *_: None)
    residual_biases.run(after)
    tokens = random(np.random.default_rng(1), 2, 5, HIDDEN)
    (expected,), (values,) = (run_as_it_is(model, tokens=tokens) for model in (before, after))
    assert np.abs(values - expected).max() > 0.01 * np.abs(expected).max()


def test_the_graph_stays_sorted() -> None:
    model = encoder(layers=LAYERS)
    attention_biases.run(model)
    residual_biases.run(model)
    known = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        assert {value for value in node.inputs if value is not None} <= known, node
        known |= {*node.outputs}
