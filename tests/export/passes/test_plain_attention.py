"""Attention in plain operators: equal in every form that the other passes leave, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import HEADS, HIDDEN, TOKENS, encoder, graph_of, nodes_of, run_as_it_is, shaped

from stonnx_export.graph.read import constant_array
from stonnx_export.passes import plain_attention

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]

FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
BATCHES = [(1,), (5, 5), (7, 2, 12)]
# The attention itself is the same to the last bits; layers behind it add up in the same order.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}
WIDTH = HIDDEN // HEADS


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="lengths"),
        pytest.param({"mask": "none"}, id="no mask"),
        pytest.param({"mask": "bias"}, id="a position bias beside lengths"),
        pytest.param({"kv_heads": 2}, id="two queries for a key"),
        pytest.param({"kv_heads": 1}, id="one key for all queries"),
        pytest.param({"is_causal": 1, "mask": "none"}, id="causal"),
        pytest.param({"is_causal": 1, "mask": "none", "kv_heads": 2}, id="causal, two queries for a key"),
        pytest.param({"scale": 0.2}, id="a scale of its own"),
    ],
)
def test_plain_operators_give_the_same_vectors(options: dict[str, Any], tiny_feeds: Feeds) -> None:
    model = encoder(**options)
    expected = [run_as_it_is(model, **tiny_feeds(lengths))[0] for lengths in BATCHES]
    result = plain_attention.run(model)
    assert (result.name, result.fired, result.declined) == ("plain_attention", 2, ())
    assert not nodes_of(model, "Attention")
    assert len(nodes_of(model, "Softmax")) == 2
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for before, lengths in zip(expected, BATCHES, strict=True):
        feeds = tiny_feeds(lengths)
        (after,) = run_as_it_is(model, **feeds)
        real = feeds["attention_mask"] > 0
        np.testing.assert_allclose(after[real], before[real], **TOLERANCE)


def test_all_layers_share_a_mask() -> None:
    model = encoder(layers=3)
    assert plain_attention.run(model).fired == 3
    assert len(nodes_of(model, "Where")) == 1


def test_padding_has_no_weight_in_half_precision_either() -> None:
    """The lowest number of two masks together is one of half precision, and leaves no key a weight."""
    model = encoder(layers=1)
    plain_attention.run(model)
    (where,) = nodes_of(model, "Where")
    lowest = float(constant_array(where.inputs[2]))
    assert np.isfinite(np.float16(2 * lowest))
    assert 2 * abs(lowest) <= np.finfo(np.float16).max / 2
    # Beside scores of hundreds.
    assert np.exp(np.float16(500) + np.float16(lowest) - np.float16(-500)) == 0


def alone(
    *rest: ir.DataType | None, shapes: tuple[tuple[int | str, ...], ...] = (), heads: int = HEADS, **attributes: Any
) -> ir.Model:
    """Attention of queries [B, heads, S, width] over keys and values, with further inputs of these types."""
    four = ("batch", heads, "sequence", WIDTH)
    specs: list[Any] = [("q", FLOAT, four)] + [(name, FLOAT, ("batch", HEADS, "sequence", WIDTH)) for name in "kv"]
    extra = [(f"x{index}", kind, shapes[index]) for index, kind in enumerate(rest) if kind is not None]
    model, op, values = graph_of(*specs, *extra)
    inputs = iter(values[3:])
    further = [next(inputs) if kind is not None else None for kind in rest]
    output = op.Identity(shaped(op.Attention(*values[:3], *further, **attributes), *four))
    op.name_output(output, "output", four)
    model.graph.outputs.append(output)
    return model


def sample(heads: int = HEADS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"q": heads, "k": HEADS, "v": HEADS}
    return {name: rng.normal(size=(3, size, 6, WIDTH)).astype(np.float32) for name, size in sizes.items()}


class TestHeadsOfTheirOwn:
    """Queries, keys and values that come as [B, heads, S, width], as rotary positions leave them."""

    @pytest.mark.parametrize("heads", [HEADS, 2 * HEADS])
    def test_without_a_mask(self, heads: int) -> None:
        self._check(alone(heads=heads), sample(heads))

    def test_a_mask_of_truth_values(self) -> None:
        """A window, as ModernBERT and Gemma have: what is false is not looked at."""
        near = np.abs(np.subtract.outer(np.arange(6), np.arange(6))) <= 1
        model = alone(BOOL, shapes=(("batch", 1, "sequence", "sequence"),))
        self._check(model, sample() | {"x0": np.broadcast_to(near, (3, 1, 6, 6)).copy()})

    def test_a_mask_of_numbers(self) -> None:
        bias = np.random.default_rng(2).normal(size=(1, HEADS, 6, 6)).astype(np.float32)
        self._check(alone(FLOAT, shapes=((1, HEADS, "sequence", "sequence"),)), sample() | {"x0": bias})

    def _check(self, model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
        (expected,) = run_as_it_is(model, **feeds)
        result = plain_attention.run(model)
        assert (result.fired, result.declined) == (1, ())
        (values,) = run_as_it_is(model, **feeds)
        np.testing.assert_allclose(values, expected, **TOLERANCE)


class TestDeclined:
    def test_past_keys(self) -> None:
        past = ("batch", HEADS, "past", WIDTH)
        model = alone(None, FLOAT, FLOAT, shapes=((), past, past))
        nodes_of(model, "Attention")[0].name = "second"
        result = plain_attention.run(model)
        assert (result.fired, result.declined) == (0, ("second: it has past keys or further outputs",))
        assert len(nodes_of(model, "Attention")) == 1

    def test_further_outputs(self) -> None:
        model = alone()
        nodes_of(model, "Attention")[0].resize_outputs(3)
        result = plain_attention.run(model)
        assert result.fired == 0
        assert "further outputs" in result.declined[0]

    def test_capped_scores(self) -> None:
        result = plain_attention.run(encoder(softcap=5.0))
        assert result.fired == 0
        assert all("its scores are capped" in reason for reason in result.declined)
        assert plain_attention.run(encoder(softcap=0.0)).fired == 2

    def test_causal_attention_with_lengths(self) -> None:
        """Both together look at other keys than each alone: onnxruntime gives other vectors than without lengths."""
        model = encoder(is_causal=1)
        result = plain_attention.run(model)
        assert (result.fired, len(nodes_of(model, "Attention"))) == (0, 2)
        assert all("causal and has lengths" in reason for reason in result.declined)

    def test_a_graph_without_attention(self) -> None:
        model, op, (x,) = graph_of(("x", FLOAT, TOKENS))
        output = op.Relu(x)
        op.name_output(output, "output", TOKENS)
        model.graph.outputs.append(output)
        assert plain_attention.run(model) == plain_attention.PassResult("plain_attention", 0)
