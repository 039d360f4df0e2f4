"""The pass that computes the first token alone where nothing reads the others: it fires, it is exact, it declines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HIDDEN, TOKENS, Head, encoder, every_token, graph_of, nodes_of, random, shaped

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.passes import PassResult, first_token

Run = Callable[..., list[np.ndarray]]
Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
Part = Callable[[GraphBuilder, ir.Value], ir.Value]

BATCHES = [(1,), (7, 2), (5, 5, 5), (40, 1, 17, 40)]
LABELS = 3


def gather(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """tokens[:, 0], as the tracer writes it."""
    return shaped(op.Gather(tokens, op.scalar(0), axis=1), "batch", HIDDEN)


def gather_of_one(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """tokens[:, [0]], with the dimension taken away behind it."""
    return op.Squeeze(op.Gather(tokens, op.vector([0]), axis=1), op.vector([1]))


def cut(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """tokens[:, 0:1], with the dimension taken away behind it."""
    first = op.Slice(tokens, op.vector([0]), op.vector([1]), op.vector([1]), op.vector([1]))
    return op.Squeeze(first, op.vector([1]))


def classifier(read: Part, before: Part = every_token) -> Head:
    """A classifier of what ``read`` takes of the tokens, which go through ``before`` first."""

    def head(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
        weight = op.constant(random(np.random.default_rng(1), HIDDEN, LABELS))
        first = read(op, shaped(before(op, tokens), *TOKENS, HIDDEN))
        return shaped(op.MatMul(op.Tanh(first), weight), "batch", LABELS)

    return head


def rewritten(before: ir.Model) -> tuple[ir.Model, PassResult]:
    after = before.clone()
    result = first_token.run(after)
    after.graph.sort()
    return after, result


def assert_same(run: Run, feeds: Feeds, before: ir.Model, after: ir.Model) -> None:
    for lengths in BATCHES:
        (expected,), (values,) = (run(model, **feeds(lengths)) for model in (before, after))
        assert values.shape == expected.shape == (len(lengths), LABELS)
        assert np.abs(values - expected).max() <= 1e-6 * np.abs(expected).max(), lengths


@pytest.mark.parametrize("read", [gather, gather_of_one, cut])
@pytest.mark.parametrize(
    ("settings", "fired"),
    [
        # Attention, three products and their biases, GELU, two sums and two norms.
        pytest.param({}, 12, id="residuals"),
        pytest.param({"residuals": False}, 10, id="no residuals"),
        pytest.param({"mask": "bias"}, 12, id="position bias"),
        pytest.param({"kv_heads": 2}, 12, id="grouped heads"),
        pytest.param({"softcap": 2.0}, 12, id="capped scores"),
        # The operator takes a single query for the last token, so that causal attention stays whole.
        pytest.param({"mask": "none", "is_causal": 1}, 11, id="causal"),
    ],
)
def test_the_last_layer(run: Run, tiny_feeds: Feeds, read: Part, settings: dict[str, Any], fired: int) -> None:
    before = encoder(classifier(read), **settings)
    after, result = rewritten(before)
    assert result == PassResult("first_token", fired)
    assert_same(run, tiny_feeds, before, after)
    assert len(nodes_of(after, "MatMul")) == len(nodes_of(before, "MatMul"))


def test_queries_of_one_token_and_keys_of_all() -> None:
    after, _ = rewritten(encoder(classifier(gather), layers=1, mask="bias"))
    (attention,) = nodes_of(after, "Attention")
    query, key, value, bias = attention.inputs[:4]
    assert (query.producer().op_type, query.shape) == ("Slice", ir.Shape(("batch", 1, HIDDEN)))
    assert key.shape == value.shape == ir.Shape((*TOKENS, HIDDEN))
    assert (bias.producer().op_type, bias.shape) == ("Slice", ir.Shape((1, 4, 1, "sequence")))


def constant(*shape: int) -> Part:
    return lambda op, tokens: op.Add(tokens, op.constant(random(np.random.default_rng(2), *shape)))


def positions(leading: tuple[int, ...]) -> Part:
    """Add a vector for each position, [S, H] or [1, S, H]."""

    def build(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
        table = op.constant(random(np.random.default_rng(2), 64, HIDDEN))
        indices = op.Range(op.scalar(0), op.Squeeze(op.Shape(tokens, start=1, end=2)), op.scalar(1))
        vectors = shaped(op.Gather(table, indices), "sequence", HIDDEN)
        if leading:
            vectors = shaped(op.Unsqueeze(vectors, op.vector([0])), *leading, "sequence", HIDDEN)
        return op.Add(tokens, vectors)

    return build


def masked(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """Times the mask, [B, S, 1]."""
    mask = op.Cast(op.graph.inputs[1], to=ir.DataType.FLOAT)
    return op.Mul(tokens, shaped(op.Unsqueeze(mask, op.vector([2])), *TOKENS, 1))


def less_the_mean(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """Less the mean of all tokens, [B, 1, H]."""
    return op.Sub(tokens, shaped(op.ReduceMean(tokens, op.vector([1]), keepdims=1), "batch", 1, HIDDEN))


@pytest.mark.parametrize(
    ("part", "fired"),
    [
        pytest.param(constant(), 13, id="number"),
        pytest.param(constant(HIDDEN), 13, id="vector"),
        pytest.param(constant(1, HIDDEN), 13, id="vector of two dimensions"),
        pytest.param(constant(1, 1, HIDDEN), 13, id="vector of three dimensions"),
        pytest.param(masked, 13, id="mask"),
        # Further up, something reads all tokens.
        pytest.param(positions(()), 1, id="positions"),
        pytest.param(positions((1,)), 1, id="positions of a batch"),
        pytest.param(less_the_mean, 1, id="mean"),
        pytest.param(lambda op, tokens: op.Mul(tokens, tokens), 13, id="square"),
        pytest.param(lambda op, tokens: op.Softmax(tokens, axis=1), 0, id="softmax over tokens"),
        pytest.param(lambda op, tokens: op.CumSum(tokens, op.scalar(1)), 0, id="sum over tokens"),
    ],
)
def test_what_stands_in_front(run: Run, tiny_feeds: Feeds, part: Part, fired: int) -> None:
    before = encoder(classifier(gather, part), layers=1)
    after, result = rewritten(before)
    assert result == PassResult("first_token", fired)
    assert_same(run, tiny_feeds, before, after)


@pytest.mark.parametrize(("axis", "fired"), [(-1, 13), (2, 13), (1, 0)])
def test_norms(run: Run, tiny_feeds: Feeds, axis: int, fired: int) -> None:
    """Over the channels of a token, or over all tokens of a text."""

    def part(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
        scale = op.constant(random(np.random.default_rng(2), *((1, HIDDEN) if axis == 1 else (HIDDEN,))))
        return op.LayerNormalization(tokens, scale, axis=axis)

    before = encoder(classifier(gather, part), layers=1)
    after, result = rewritten(before)
    assert result == PassResult("first_token", fired)
    assert_same(run, tiny_feeds, before, after)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda op, tokens: op.Gather(tokens, op.scalar(1), axis=1), id="second token"),
        pytest.param(lambda op, tokens: op.Gather(tokens, op.scalar(-1), axis=1), id="last token"),
        pytest.param(lambda op, tokens: op.ReduceMean(tokens, op.vector([1]), keepdims=0), id="mean"),
        pytest.param(lambda op, tokens: op.Gather(tokens, op.scalar(0), axis=2), id="first channel"),
        pytest.param(
            lambda op, tokens: op.Slice(tokens, op.vector([0]), op.vector([2]), op.vector([1])), id="two tokens"
        ),
        pytest.param(
            lambda op, tokens: op.Slice(tokens, op.vector([0]), op.vector([1]), op.vector([2])), id="one channel"
        ),
        pytest.param(lambda op, tokens: op.Add(gather(op, tokens), gather(op, tokens)), id="two readers"),
    ],
)
def test_leaves_everything_else_alone(read: Part) -> None:
    model = encoder(lambda op, tokens: shaped(read(op, tokens), "batch", "other", "sizes"))
    operators = [node.op_type for node in model.graph]
    assert rewritten(model)[1] == PassResult("first_token", 0)
    assert [node.op_type for node in model.graph] == operators


def test_tokens_that_are_an_output_too() -> None:
    """As an embedding model gives them: all are needed."""
    model = encoder(classifier(gather))
    (reader,) = nodes_of(model, "Gather")[1:]
    model.graph.outputs.append(reader.inputs[0])
    assert rewritten(model)[1] == PassResult("first_token", 0)


def embedding_model(**settings: Any) -> ir.Model:
    """CLS pooling, with the tokens as a second output, as heads.graft makes it."""
    model = encoder(lambda op, tokens: gather(op, shaped(every_token(op, tokens), *TOKENS, HIDDEN)), **settings)
    tokens = nodes_of(model, "Gather")[-1].inputs[0]
    tokens.name = "token_embeddings"
    tokens.shape = ir.Shape((*TOKENS, HIDDEN))
    model.graph.outputs.append(tokens)
    return model


@pytest.mark.parametrize("settings", [{}, {"residuals": False}, {"mask": "bias"}, {"kv_heads": 2}], ids=str)
def test_tokens_on_demand(run: Run, tiny_feeds: Feeds, settings: dict[str, Any]) -> None:
    before = embedding_model(**settings)
    after = before.clone()
    result = first_token.or_all(after)
    after.graph.sort()
    assert result == PassResult("first_token", 10 if "residuals" in settings else 12)
    assert [value.name for value in after.graph.outputs] == [value.name for value in before.graph.outputs]
    for lengths in BATCHES:
        feeds = tiny_feeds(lengths)
        expected = run(before, **feeds)
        # All tokens, unless a caller says otherwise.
        for limit, count in (
            ({}, max(lengths)),
            *(({"token_limit": np.array([n])}, min(n, max(lengths))) for n in (1, 3)),
        ):
            vector, tokens = run(after, **feeds, **limit)
            assert tokens.shape == (len(lengths), count, HIDDEN)
            np.testing.assert_allclose(vector, expected[0], atol=2e-6)
            np.testing.assert_allclose(tokens, expected[1][:, :count], atol=2e-6)


def test_tokens_that_something_else_reads_too() -> None:
    model = embedding_model()
    op = GraphBuilder(model.graph)
    model.graph.outputs.append(
        shaped(op.ReduceMean(model.graph.outputs[1], op.vector([1]), keepdims=0), "batch", HIDDEN)
    )
    assert first_token.or_all(model) == PassResult("first_token", 0)
    assert "token_limit" not in [value.name for value in model.graph.inputs]


def test_inner_tokens_that_are_an_output() -> None:
    """Nothing in front of them is for the first token alone."""
    model = encoder(classifier(gather))
    norm = nodes_of(model, "LayerNormalization")[-2]
    model.graph.outputs.append(norm.outputs[0])
    assert rewritten(model)[1] == PassResult("first_token", 7)


def test_a_graph_that_ends_with_the_first_token(run: Run, tiny_feeds: Feeds) -> None:
    def head(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
        return shaped(op.Slice(tokens, op.vector([0]), op.vector([1]), op.vector([1])), "batch", 1, HIDDEN)

    model = encoder(head)
    after, result = rewritten(model)
    assert result == PassResult("first_token", 0)
    np.testing.assert_array_equal(*(run(one, **tiny_feeds((7, 2)))[0] for one in (model, after)))


def test_a_graph_without_tokens() -> None:
    model, op, (vector,) = graph_of(("vector", ir.DataType.FLOAT, ("batch", HIDDEN)))
    output = shaped(op.Gather(vector, op.scalar(0), axis=1), "batch")
    model.graph.outputs.append(output)
    assert rewritten(model)[1] == PassResult("first_token", 0)
