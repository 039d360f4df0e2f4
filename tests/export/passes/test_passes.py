"""The rewrites of the graph: how often they fire, what they leave alone and why, and that results stay the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.graph.read import input_named
from stonnx_export.originals.trace import trace
from stonnx_export.passes import PassResult, attention_lengths, shapes

Run = Callable[..., list[np.ndarray]]
Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
Mask = Callable[[GraphBuilder, ir.Value], ir.Value | None]

LAYERS, HIDDEN, HEADS = 2, 32, 4
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
BATCHES = [(1,), (6,), (7, 2), (5, 5, 5), (40, 1, 17, 40)]
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def traced(network: torch.nn.Module, *, token_types: bool) -> ir.Model:
    return trace(network.eval(), token_types=token_types)


@pytest.fixture(scope="module")
def bert() -> ir.Model:
    """The graph of a tiny random BERT. Not to be changed: clone it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return traced(BertModel(BertConfig(**SIZES)), token_types=True)


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    """The graph of a tiny random Qwen3: causal, with fewer heads for keys than for queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, use_cache=False)
        return traced(Qwen3Model(config), token_types=False)


@pytest.fixture(scope="module")
def rewritten(bert: ir.Model) -> tuple[ir.Model, PassResult]:
    """The graph of the tiny BERT after both passes, and what the second one says."""
    model = bert.clone()
    shapes.run(model)
    return model, attention_lengths.run(model)


def assert_same_tokens(run: Run, before: ir.Model, after: ir.Model, **feeds: np.ndarray) -> None:
    """Equal outputs for every token that is not padding."""
    real = feeds["attention_mask"] > 0
    (expected,), (values,) = run(before, **feeds), run(after, **feeds)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[real], expected[real], **TOLERANCE)


class TestShapes:
    def test_moves_every_size_and_makes_token_types_optional(self, bert: ir.Model) -> None:
        model = bert.clone()
        others = [input_named(model.graph, name) for name in ("attention_mask", "token_type_ids")]

        def elsewhere() -> int:
            return sum(node.op_type == "Shape" and node.inputs[0] in others for node in model.graph)

        moved = elsewhere()
        assert moved, "the traced graph has nothing to rewrite"
        assert shapes.run(model) == PassResult("shapes", moved + 1)
        assert not elsewhere()
        assert shapes.run(model) == PassResult("shapes", 0)

    @pytest.mark.parametrize("lengths", BATCHES, ids=str)
    def test_equals_the_original_with_and_without_token_types(
        self, run: Run, bert: ir.Model, tiny_feeds: Feeds, lengths: tuple[int, ...]
    ) -> None:
        model = bert.clone()
        shapes.run(model)
        feeds = tiny_feeds(lengths)
        zeros, ones = np.zeros_like(feeds["input_ids"]), np.ones_like(feeds["input_ids"])
        for types in (zeros, ones):
            assert_same_tokens(run, bert, model, **feeds, token_type_ids=types)
        (default,), (given,), (other,) = (
            run(model, **feeds),
            run(model, **feeds, token_type_ids=zeros),
            run(model, **feeds, token_type_ids=ones),
        )
        np.testing.assert_array_equal(default, given)
        assert np.abs(default - other).max() > 1e-2

    def test_required_inputs(self, bert: ir.Model) -> None:
        model = bert.clone()
        shapes.run(model)
        required = [value.name for value in model.graph.inputs if value.const_value is None]
        assert required == ["input_ids", "attention_mask"]

    @pytest.mark.needs("transformers", "5", "a shape in this graph that is rewritten")
    def test_without_token_types(self, run: Run, decoder: ir.Model, tiny_feeds: Feeds) -> None:
        model = decoder.clone()
        assert shapes.run(model) == PassResult("shapes", 1)
        assert_same_tokens(run, decoder, model, **tiny_feeds((7, 2)))

    def test_declines_a_graph_without_ids(self) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
        assert shapes.run(ir.Model(graph, ir_version=11)) == PassResult(
            "shapes", 0, ("the graph has no input 'input_ids'",)
        )


class TestAttentionOfTracedNetworks:
    def test_fires_for_every_layer(self, rewritten: tuple[ir.Model, PassResult]) -> None:
        assert rewritten[1] == PassResult("attention_lengths", LAYERS)

    @pytest.mark.needs("transformers", "5", "the form of the mask that is looked for here")
    def test_what_becomes_of_the_graph(self, bert: ir.Model, rewritten: tuple[ir.Model, PassResult]) -> None:
        before, after = operators(bert), operators(rewritten[0])
        gone = ("Transpose", "Reshape", "GatherND", "And")
        assert all(before[operator] for operator in gone), "the traced graph has nothing to rewrite"
        assert not any(after[operator] for operator in gone)
        assert after["ReduceSum"] == 1  # the lengths, once for all layers
        for node in rewritten[0].graph:
            if node.op_type == "Attention":
                assert node.inputs[3] is None
                assert node.inputs[6].producer().op_type == "ReduceSum"
                assert node.attributes["q_num_heads"].as_int() == node.attributes["kv_num_heads"].as_int() == HEADS

    @pytest.mark.parametrize("lengths", BATCHES, ids=str)
    def test_equals_the_original(
        self,
        run: Run,
        bert: ir.Model,
        rewritten: tuple[ir.Model, PassResult],
        tiny_feeds: Feeds,
        lengths: tuple[int, ...],
    ) -> None:
        feeds = tiny_feeds(lengths)
        assert_same_tokens(run, bert, rewritten[0], **feeds, token_type_ids=np.zeros_like(feeds["input_ids"]))

    @pytest.mark.parametrize("lengths", BATCHES, ids=str)
    def test_a_decoder_becomes_causal(
        self, run: Run, decoder: ir.Model, tiny_feeds: Feeds, lengths: tuple[int, ...]
    ) -> None:
        model = decoder.clone()
        shapes.run(model)
        assert attention_lengths.run(model) == PassResult("attention_lengths", LAYERS)
        nodes = [node for node in model.graph if node.op_type == "Attention"]
        assert [node.attributes["is_causal"].as_int() for node in nodes] == [1] * LAYERS
        assert not operators(model)["GatherND"]
        assert_same_tokens(run, decoder, model, **tiny_feeds(lengths))

    def test_runs_once(self, rewritten: tuple[ir.Model, PassResult]) -> None:
        again = attention_lengths.run(rewritten[0].clone())
        assert again.fired == 0
        assert [reason.rpartition(": ")[2] for reason in again.declined] == ["it has no mask"] * LAYERS


def _positions(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    return op.Range(op.scalar(0), op.Squeeze(op.Shape(mask, start=1, end=2)), op.scalar(1))


def queries(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """Positions [S, 1]."""
    return op.Unsqueeze(_positions(op, mask), op.vector([1]))


def keys(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """Positions [1, S]."""
    return op.Unsqueeze(_positions(op, mask), op.vector([0]))


def padding(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """[B, 1, S, S], True where a key is not padding."""
    batch, width = (op.Shape(mask, start=axis, end=axis + 1) for axis in (0, 1))
    real = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([1, 2]))
    return op.Expand(real, op.Concat(batch, op.vector([1]), width, width, axis=0))


def additive_padding(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """0 where a key is not padding, else the lowest float, as networks without boolean masks have it."""
    zero, lowest = (op.constant(np.array(x, dtype=np.float32)) for x in (0, np.finfo(np.float32).min))
    return op.Where(padding(op, mask), zero, lowest)


def causal(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    return op.And(padding(op, mask), op.LessOrEqual(keys(op, mask), queries(op, mask)))


def window(size: int) -> Mask:
    """Keys at most ``size`` positions away."""

    def build(op: GraphBuilder, mask: ir.Value) -> ir.Value:
        distance = op.Abs(op.Sub(keys(op, mask), queries(op, mask)))
        return op.And(padding(op, mask), op.LessOrEqual(distance, op.scalar(size)))

    return build


def causal_window(size: int) -> Mask:
    """The last ``size`` keys."""

    def build(op: GraphBuilder, mask: ir.Value) -> ir.Value:
        distance = op.Sub(queries(op, mask), keys(op, mask))
        return op.And(causal(op, mask), op.Less(distance, op.scalar(size)))

    return build


def relative_positions(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """A bias for each distance, as MPNet and T5 have it, on top of the padding."""
    distance = op.Cast(op.Sub(keys(op, mask), queries(op, mask)), to=ir.DataType.FLOAT)
    return op.Add(additive_padding(op, mask), op.Mul(distance, op.constant(np.array(0.1, dtype=np.float32))))


def by_ids(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """A mask that ignores ``attention_mask`` and takes the padding from the ids."""
    return padding(op, op.Not(op.Equal(input_named(mask.graph, "input_ids"), op.scalar(0))))


def left_out_key(op: GraphBuilder, mask: ir.Value) -> ir.Value:
    """Nobody reads the first token."""
    return op.And(padding(op, mask), op.Greater(keys(op, mask), op.scalar(0)))


def no_mask(op: GraphBuilder, mask: ir.Value) -> None:
    return None


def attention_graph(*masks: Mask, transposed: bool = True, **attributes: Any) -> ir.Model:
    """Attention layers with these masks on top of each other: embeddings, projections, heads, Attention, merge.

    Without ``transposed``, the heads go into Attention as [batch, sequence, hidden].
    """

    def value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    def shaped(result: ir.Value, *shape: int | str) -> ir.Value:
        result.shape, result.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return result

    ids, mask = (value(name, ir.DataType.INT64, "batch", "sequence") for name in ("input_ids", "attention_mask"))
    graph = ir.Graph([ids, mask], [], nodes=[], opset_imports={"": OPSET}, name="attention")
    op = GraphBuilder(graph)
    rng = np.random.default_rng(0)
    x = op.Gather(op.constant(rng.normal(size=(50, HIDDEN)).astype(np.float32)), ids)
    for build in masks:
        parts = []
        for _ in range(3):
            weight = op.constant(rng.normal(size=(HIDDEN, HIDDEN)).astype(np.float32) / 4)
            flat = shaped(op.MatMul(x, weight), "batch", "sequence", HIDDEN)
            split = op.Reshape(flat, op.vector([0, 0, HEADS, HIDDEN // HEADS]))
            parts.append(shaped(op.Transpose(split, perm=(0, 2, 1, 3)), "batch", HEADS, "sequence", HIDDEN // HEADS))
            if not transposed:
                parts[-1] = flat
        allowed = build(op, mask)
        if not transposed:
            attributes |= {"q_num_heads": HEADS, "kv_num_heads": HEADS}
        x = op.Attention(*parts, *([] if allowed is None else [allowed]), **attributes)
        if transposed:
            shaped(x, "batch", HEADS, "sequence", HIDDEN // HEADS)
            merged = op.Transpose(x, perm=(0, 2, 1, 3))
            x = op.Reshape(merged, op.vector([0, 0, HIDDEN]))
        shaped(x, "batch", "sequence", HIDDEN)
    graph.outputs.append(shaped(op.Identity(x), "batch", "sequence", HIDDEN))
    return ir.Model(graph, ir_version=11)


class TestAttentionMasks:
    @pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "flat"])
    @pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}, {"softcap": 2.0}], ids=["plain", "scale", "softcap"])
    @pytest.mark.parametrize("mask", [padding, additive_padding, causal], ids=lambda mask: mask.__name__)
    def test_fires(
        self, run: Run, tiny_feeds: Feeds, mask: Mask, attributes: dict[str, float], transposed: bool
    ) -> None:
        before = attention_graph(mask, mask, transposed=transposed, **attributes)
        after = before.clone()
        assert attention_lengths.run(after) == PassResult("attention_lengths", 2)
        if transposed:
            assert not {"Transpose", "Where", "And"} & set(operators(after))
        for lengths in BATCHES:
            assert_same_tokens(run, before, after, **tiny_feeds(lengths))

    @pytest.mark.parametrize(
        "mask",
        [
            pytest.param(window(3), id="window"),
            # Longer than what is probed in any case: the size is found in the graph.
            pytest.param(window(400), id="wide window"),
            pytest.param(causal_window(3), id="causal window"),
            pytest.param(causal_window(400), id="wide causal window"),
            pytest.param(causal_window(1_000_000), id="window beyond every probe"),
            relative_positions,
            by_ids,
            left_out_key,
        ],
    )
    def test_declines_a_mask_that_is_more_than_padding(self, run: Run, tiny_feeds: Feeds, mask: Mask) -> None:
        before = attention_graph(mask)
        after = before.clone()
        result = attention_lengths.run(after)
        assert result.fired == 0
        assert [reason.partition(": ")[2] for reason in result.declined] == ["its mask is more than padding"]
        assert operators(after) == operators(before)
        assert_same_tokens(run, before, after, **tiny_feeds((7, 2)))

    def test_layers_of_two_kinds(self, run: Run, tiny_feeds: Feeds) -> None:
        """Each gets what its own mask says: lengths, or causal attention without them."""
        before = attention_graph(padding, causal, padding)
        after = before.clone()
        assert attention_lengths.run(after) == PassResult("attention_lengths", 3)
        for lengths in BATCHES:
            assert_same_tokens(run, before, after, **tiny_feeds(lengths))

    def test_declines_one_layer_and_names_it(self, run: Run, tiny_feeds: Feeds) -> None:
        """ModernBERT and Gemma have windows in some layers only."""
        before = attention_graph(padding, window(3), padding)
        nodes = [node for node in before.graph if node.op_type == "Attention"]
        for index, node in enumerate(nodes):
            node.name = f"layer_{index}"
        after = before.clone()
        result = attention_lengths.run(after)
        assert (result.fired, result.declined) == (2, ("layer_1: its mask is more than padding",))
        assert_same_tokens(run, before, after, **tiny_feeds((9, 4, 1)))

    def test_declines_attention_without_a_mask(self) -> None:
        result = attention_lengths.run(attention_graph(no_mask))
        assert result.fired == 0
        assert result.declined[0].endswith("it has no mask")

    def test_declines_attention_with_further_outputs(self) -> None:
        model = attention_graph(padding)
        next(node for node in model.graph if node.op_type == "Attention").resize_outputs(3)
        result = attention_lengths.run(model)
        assert result.fired == 0
        assert result.declined[0].endswith("it has past keys or further outputs")

    @pytest.mark.parametrize("missing", ["Attention", "attention_mask"])
    def test_declines_a_graph_that_has_nothing_to_rewrite(self, missing: str) -> None:
        model = attention_graph(*([] if missing == "Attention" else [padding]))
        if missing == "attention_mask":
            input_named(model.graph, "attention_mask").name = "mask"
        result = attention_lengths.run(model)
        assert result.fired == 0
        assert missing in result.declined[0]

    def test_without_padding_only_the_transposes_go(self, run: Run) -> None:
        before = attention_graph(lambda op, mask: None)
        before.graph.inputs.pop()
        after, ids = before.clone(), np.arange(10).reshape(2, 5)
        assert (attention_lengths.run(after).fired, operators(after)["Transpose"]) == (1, 0)
        np.testing.assert_allclose(run(after, input_ids=ids)[0], run(before, input_ids=ids)[0], **TOLERANCE)

    def test_stays_causal_where_the_node_says_so(self, run: Run, tiny_feeds: Feeds) -> None:
        """The mask says only what is padding; the rest is in an attribute."""
        before = attention_graph(padding, is_causal=1)
        after = before.clone()
        assert attention_lengths.run(after).fired == 1
        assert_same_tokens(run, before, after, **tiny_feeds((9, 4, 1)))

    def test_heads_that_are_used_elsewhere_keep_their_transposes(self, run: Run, tiny_feeds: Feeds) -> None:
        before = attention_graph(padding)
        node = next(node for node in before.graph if node.op_type == "Attention")
        GraphBuilder(before.graph).Identity(node.outputs[0])
        before.graph.outputs.append(before.graph[-1].outputs[0])
        after = before.clone()
        assert attention_lengths.run(after).fired == 1
        assert operators(after)["Transpose"] == 4
        feeds = tiny_feeds((9, 4))
        real = feeds["attention_mask"] > 0
        for expected, values in zip(run(before, **feeds), run(after, **feeds), strict=True):
            expected, values = (x.swapaxes(1, 2) if x.ndim == 4 else x for x in (expected, values))
            np.testing.assert_allclose(values[real], expected[real], **TOLERANCE)

    def test_another_mask_is_told_apart(self, run: Run, tiny_feeds: Feeds) -> None:
        """The comparisons above would see a mask that is lost or mixed up."""
        feeds = tiny_feeds((9, 5))
        real = feeds["attention_mask"] > 0
        results = [run(attention_graph(mask), **feeds)[0] for mask in (no_mask, padding, causal, window(3))]
        for index, first in enumerate(results):
            assert all(np.abs(first - second)[real].max() > 1e-2 for second in results[index + 1 :])
