"""Element-wise work on rows: nothing changes to the last bit, Reshapes go, and what needs whole texts stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HIDDEN, TOKENS, encoder, graph_of, layer_norm, linear, nodes_of, random, run_as_it_is, shaped

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.int8 import flat_tokens, products
from stonnx_export.int8.products import Quantizer, groups
from stonnx_export.passes import PassResult

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
Part = Callable[[GraphBuilder, ir.Value], ir.Value]

BATCHES = [(1,), (7, 2), (5, 5, 5), (40, 1, 17, 40)]


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """These graphs have fewer weights than are worth it."""
    monkeypatch.setattr(products, "_SMALLEST", HIDDEN * HIDDEN // 2)


def quantized(model: ir.Model) -> ir.Model:
    """The graph with every product between two Reshapes."""
    model = model.clone()
    ranges = {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
    Quantizer(ranges).run(model)
    model.graph.sort()
    return model


def flattened(before: ir.Model) -> tuple[ir.Model, PassResult]:
    after = before.clone()
    result = flat_tokens.run(after)
    after.graph.sort()
    return after, result


def assert_bit_equal(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(*(run_as_it_is(model, **feeds)[0] for model in (before, after)))


def _rng() -> np.random.Generator:
    return np.random.default_rng(3)


def reshapes(model: ir.Model) -> int:
    return len(nodes_of(model, "Reshape"))


def test_a_number_without_a_dimension() -> None:
    """Networks that work out sizes reshape them: DeBERTa does."""
    model, op, (size,) = graph_of(("size", ir.DataType.INT64, []))
    row = op.Reshape(size, op.vector([-1]))
    row.shape = ir.Shape([1])
    model.graph.outputs.append(op.Add(row, op.vector([1])))
    assert flat_tokens.run(model).fired == 0
    assert len(nodes_of(model, "Reshape")) == 1


@pytest.mark.parametrize(
    ("settings", "fired", "gone"),
    [
        # Of a layer: the biases of six products, the activation, two sums and two norms; and what restores the smoothed
        # values of a norm for the sum behind it. The last norm is the output, which has its three dimensions.
        pytest.param({}, 2 * 11 + 3 - 1, 9, id="gelu"),
        pytest.param({"activation": "Relu"}, 2 * 11 + 3 - 1, 9, id="relu"),
        pytest.param({"activation": "Softplus"}, 2 * 10 + 3 - 1, 4, id="an operator that is not known"),
        pytest.param({"residuals": False}, 2 * 9 - 1, 10, id="no residuals"),
        pytest.param({"output_bias": False}, 2 * 10 + 3 - 1, 9, id="no bias"),
        pytest.param({"kv_heads": 2}, 2 * 11 + 3 - 1, 9, id="grouped heads"),
    ],
)
def test_nothing_changes(tiny_feeds: Feeds, settings: dict[str, Any], fired: int, gone: int) -> None:
    before = quantized(encoder(**settings))
    after, result = flattened(before)
    assert result == PassResult("flat_tokens", fired)
    assert reshapes(before) - reshapes(after) == gone
    for lengths in BATCHES:
        assert_bit_equal(before, after, tiny_feeds(lengths))
    assert flattened(after)[1] == PassResult("flat_tokens", 0)


def projected(part: Part) -> ir.Model:
    """A product of tokens, and a part of a network behind it."""

    def head(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
        return shaped(op.Identity(part(op, linear(op, tokens, HIDDEN, _rng(), bias=False))), *TOKENS, HIDDEN)

    return quantized(encoder(head, layers=1))


def masked(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """Times the mask [B, S, 1], which becomes rows as well."""
    mask = op.Cast(op.graph.inputs[1], to=ir.DataType.FLOAT)
    return op.Mul(tokens, shaped(op.Unsqueeze(mask, op.vector([2])), *TOKENS, 1))


def with_positions(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """A vector for each position, [1, S, H]."""
    indices = op.Range(op.scalar(0), op.Squeeze(op.Shape(tokens, start=1, end=2)), op.scalar(1))
    vectors = op.Gather(op.constant(random(_rng(), 64, HIDDEN)), indices)
    return op.Add(tokens, shaped(op.Unsqueeze(vectors, op.vector([0])), 1, "sequence", HIDDEN))


def in_halves(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """Softmax of each half of the channels: rows of another width."""
    halves = op.Softmax(op.Reshape(tokens, op.vector([-1, HIDDEN // 2])), axis=-1)
    return op.Reshape(halves, op.Concat(op.Shape(tokens, end=2), op.vector([HIDDEN]), axis=0))


def in_rows(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    rows = op.Softmax(op.Reshape(tokens, op.vector([-1, HIDDEN])), axis=-1)
    return op.Reshape(rows, op.Concat(op.Shape(tokens, end=2), op.vector([HIDDEN]), axis=0))


def norm_over_texts(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    return op.LayerNormalization(tokens, op.constant(random(_rng(), 1, HIDDEN)), axis=1)


@pytest.mark.parametrize(
    ("part", "more"),
    [
        pytest.param(lambda op, x: op.Add(x, op.constant(random(_rng(), HIDDEN))), 1, id="vector"),
        pytest.param(lambda op, x: op.Mul(op.constant(np.array(3, np.float32)), x), 1, id="number"),
        pytest.param(lambda op, x: op.Sub(op.constant(random(_rng(), HIDDEN)), x), 1, id="the other way round"),
        pytest.param(lambda op, x: op.Mul(x, x), 1, id="square"),
        pytest.param(lambda op, x: op.Div(x, op.Tanh(x)), 1, id="tanh of unknown shape"),
        pytest.param(lambda op, x: op.Mul(x, shaped(op.Sigmoid(x), *TOKENS, HIDDEN)), 2, id="silu"),
        pytest.param(lambda op, x: layer_norm(op, x, _rng()), 1, id="norm"),
        pytest.param(masked, 1, id="mask"),
        pytest.param(in_rows, 0, id="rows"),
        pytest.param(in_halves, 0, id="rows of another width"),
        pytest.param(with_positions, 0, id="positions"),
        pytest.param(norm_over_texts, 0, id="norm over texts"),
        pytest.param(lambda op, x: op.Add(x, op.constant(random(_rng(), 1, 1, HIDDEN))), 0, id="three dimensions"),
        pytest.param(lambda op, x: op.Softmax(x, axis=1), 0, id="softmax over tokens"),
        pytest.param(lambda op, x: op.Sub(x, op.ReduceMean(x, op.vector([1]), keepdims=1)), 0, id="mean"),
        pytest.param(lambda op, x: op.Transpose(op.Transpose(x, perm=[1, 0, 2]), perm=[1, 0, 2]), 0, id="transpose"),
    ],
)
def test_behind_a_product(tiny_feeds: Feeds, part: Part, more: int) -> None:
    before = projected(part)
    _, alone = flattened(projected(lambda op, tokens: tokens))
    after, result = flattened(before)
    assert result.fired - alone.fired == more
    for lengths in BATCHES:
        assert_bit_equal(before, after, tiny_feeds(lengths))


def test_an_output_keeps_its_dimensions(tiny_feeds: Feeds) -> None:
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    result = linear(op, tokens, HIDDEN, _rng())
    model.graph.outputs.append(result)
    before = quantized(model)
    after, fired = flattened(before)
    assert fired == PassResult("flat_tokens", 0)
    values = random(_rng(), 2, 3, HIDDEN)
    results = [run_as_it_is(graph, tokens=values)[0] for graph in (before, after)]
    np.testing.assert_array_equal(*results)
    assert results[0].shape == values.shape


def test_texts_of_two_kinds_are_not_mixed() -> None:
    """A value of one set of texts plus one of another of the same number of tokens in all."""
    kinds = (("tokens", ("batch", "sequence")), ("others", ("other_batch", "other_sequence")))
    model, op, values = graph_of(*((name, ir.DataType.FLOAT, (*sizes, HIDDEN)) for name, sizes in kinds))
    first, second = (linear(op, value, HIDDEN, _rng(), bias=False) for value in values)
    model.graph.outputs.append(shaped(op.Identity(op.Add(first, second)), "a", "b", HIDDEN))
    before = quantized(model)
    after, fired = flattened(before)
    assert fired == PassResult("flat_tokens", 0)
    feeds = {"tokens": random(_rng(), 2, 3, HIDDEN), "others": random(_rng(), 1, 3, HIDDEN)}
    np.testing.assert_array_equal(*(run_as_it_is(graph, **feeds)[0] for graph in (before, after)))


def test_a_graph_without_quantized_products() -> None:
    model = encoder()
    operators = [node.op_type for node in model.graph]
    assert flat_tokens.run(model) == PassResult("flat_tokens", 0)
    assert [node.op_type for node in model.graph] == operators
