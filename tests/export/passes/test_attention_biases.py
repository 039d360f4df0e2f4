"""The pass that takes the biases of keys and values out of attention: it fires, it is exact, it declines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import encoder, nodes_of

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.passes import PassResult, attention_biases

Run = Callable[..., list[np.ndarray]]
Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]

LAYERS = 2
BATCHES = [(1,), (7, 2), (5, 5, 5), (40, 1, 17, 40)]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def assert_same_tokens(run: Run, feeds: Feeds, before: ir.Model, after: ir.Model) -> None:
    """Equal outputs, within rounding, for every token that is not padding."""
    for lengths in BATCHES:
        batch = feeds(lengths)
        real = batch["attention_mask"] > 0
        expected, values = (run(model, **batch)[0][real] for model in (before, after))
        assert np.abs(values - expected).max() <= 1e-6 * np.abs(expected).max(), lengths


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lengths"),
        pytest.param({"mask": "bias"}, id="position bias"),
        pytest.param({"mask": "none", "is_causal": 1}, id="causal"),
        pytest.param({"scale": 0.3}, id="scale"),
        pytest.param({"softcap": 0.0}, id="no cap"),
        pytest.param({"residuals": False}, id="no residuals"),
    ],
)
def test_keys_and_values_lose_their_biases(run: Run, tiny_feeds: Feeds, settings: dict[str, Any]) -> None:
    before = encoder(layers=LAYERS, **settings)
    after = before.clone()
    assert attention_biases.run(after) == PassResult("attention_biases", 2 * LAYERS)
    assert operators(before) - operators(after) == {"Add": 2 * LAYERS}
    assert not operators(after) - operators(before)
    for node in nodes_of(after, "Attention"):
        assert [value.producer().op_type for value in node.inputs[:3]] == ["Add", "MatMul", "MatMul"]
    assert_same_tokens(run, tiny_feeds, before, after)
    assert attention_biases.run(after) == PassResult("attention_biases", 0)


def test_the_biases_are_large_enough_to_be_missed(run: Run, tiny_feeds: Feeds) -> None:
    """The comparison above would see the bias of a value that is lost."""
    before = encoder(layers=LAYERS)
    after = before.clone()
    for node in nodes_of(after, "Attention"):
        node.replace_input_with(2, node.inputs[2].producer().inputs[0])
    with pytest.raises(AssertionError):
        assert_same_tokens(run, tiny_feeds, before, after)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        # A head of values serves several of queries, and the product behind attention has a row for each of those.
        pytest.param({"kv_heads": 2}, "its result is not the input of one product with a bias", id="grouped heads"),
        pytest.param({"output_bias": False}, "its result is not the input of one product with a bias", id="no bias"),
        pytest.param({"softcap": 2.0}, "its scores are capped, which sees the bias of its keys", id="capped scores"),
    ],
)
def test_one_of_the_two_stays(run: Run, tiny_feeds: Feeds, settings: dict[str, Any], reason: str) -> None:
    before = encoder(layers=LAYERS, **settings)
    after = before.clone()
    result = attention_biases.run(after)
    assert result.fired == LAYERS
    assert [text.partition(": ")[2] for text in result.declined] == [reason] * LAYERS
    assert_same_tokens(run, tiny_feeds, before, after)


def test_a_result_that_is_read_twice(run: Run, tiny_feeds: Feeds) -> None:
    before = encoder(layers=1)
    (node,) = nodes_of(before, "Attention")
    GraphBuilder(before.graph).Identity(node.outputs[0])
    before.graph.outputs.append(before.graph[-1].outputs[0])
    after = before.clone()
    result = attention_biases.run(after)
    assert (result.fired, len(result.declined)) == (1, 1)
    batch = tiny_feeds((7, 2))
    real = batch["attention_mask"] > 0
    for expected, values in zip(run(before, **batch), run(after, **batch), strict=True):
        assert np.abs(values - expected)[real].max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("place", [1, 2], ids=["keys", "values"])
def test_what_something_else_reads_keeps_its_bias(run: Run, tiny_feeds: Feeds, place: int) -> None:
    before = encoder(layers=1)
    (node,) = nodes_of(before, "Attention")
    GraphBuilder(before.graph).Identity(node.inputs[place])
    before.graph.outputs.append(before.graph[-1].outputs[0])
    after = before.clone()
    assert attention_biases.run(after) == PassResult("attention_biases", 1)
    assert_same_tokens(run, tiny_feeds, before, after)


def test_declines_past_keys_and_further_outputs() -> None:
    """Keys of the past would have the bias, and new ones not."""
    model = encoder(layers=1)
    nodes_of(model, "Attention")[0].resize_outputs(3)
    result = attention_biases.run(model)
    assert result.fired == 0
    assert result.declined[0].endswith("it has past keys or further outputs")


def test_leaves_heads_of_four_dimensions_alone() -> None:
    model = encoder(layers=1)
    del nodes_of(model, "Attention")[0].attributes["q_num_heads"]
    assert attention_biases.run(model) == PassResult("attention_biases", 0)
