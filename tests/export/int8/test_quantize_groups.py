"""What is quantized, shared, smoothed and left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantized_products import WIDTH, Part, equal_ranges, quantized, three_texts, weights_rng
from small_graphs import HIDDEN, TOKENS, encoder, graph_of, layer_norm, nodes_of, random, run_as_it_is, shaped

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import constant_array
from stonnx_export.int8.products import Group, Quantizer, groups

pytestmark = pytest.mark.usefixtures("small_products")

PRODUCTS_OF_A_LAYER = 6


class TestGroups:
    def test_products_that_read_one_value_quantize_it_once(self) -> None:
        model, _ = quantized(encoder(layers=2))
        assert len(nodes_of(model, "MatMulIntegerToFloat")) == 2 * PRODUCTS_OF_A_LAYER
        # The input of attention's three products, its result, and the two of the feed-forward network.
        assert len(nodes_of(model, "QuantizeLinear")) == 2 * 4
        assert not nodes_of(model, "MatMul")

    def test_tokens_share_their_zero_points(self) -> None:
        model, _ = quantized(encoder(layers=2))
        assert len({node.inputs[2] for node in nodes_of(model, "QuantizeLinear")}) == 2  # behind GELU, and elsewhere

    def test_names_are_those_of_the_products(self) -> None:
        model = encoder(layers=2)
        names = [group.name for group in groups(model)]
        assert len(set(names)) == 2 * 4
        assert [group.name for group in groups(model.clone())] == names
        assert set(names) < {str(node.outputs[0].name) for node in nodes_of(model, "MatMul")}

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(
                lambda op, x: op.MatMul(x, op.constant(random(weights_rng(), HIDDEN, HIDDEN - 1))), id="small"
            ),
            pytest.param(lambda op, x: op.MatMul(x, op.Transpose(x, perm=[0, 2, 1])), id="no constant"),
            pytest.param(
                lambda op, x: op.MatMul(
                    shaped(op.ReduceMean(x, op.vector([1]), keepdims=0), "batch", HIDDEN),
                    op.constant(random(weights_rng(), HIDDEN, WIDTH)),
                ),
                id="a vector for each text",
            ),
            pytest.param(
                lambda op, x: op.MatMul(x, op.constant(random(weights_rng(), 1, HIDDEN, WIDTH))), id="three dimensions"
            ),
            pytest.param(
                lambda op, x: op.MatMul(op.constant(random(weights_rng(), 4, HIDDEN)), x), id="the other way round"
            ),
            pytest.param(
                lambda op, x: op.MatMul(
                    op.Cast(x, to=ir.DataType.DOUBLE),
                    op.constant(random(weights_rng(), HIDDEN, WIDTH).astype(np.float64)),
                ),
                id="double precision",
            ),
        ],
    )
    def test_other_products_stay(self, build: Part) -> None:
        model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
        model.graph.outputs.append(shaped(build(op, tokens), "any", "shape"))
        assert groups(model) == []
        before = [node.op_type for node in model.graph]
        result = Quantizer({}).run(model)
        assert (result.fired, result.declined) == (0, ())
        assert [node.op_type for node in model.graph] == before

    def test_a_kept_group_is_neither_quantized_nor_smoothed(self) -> None:
        before = encoder(layers=2)
        first = groups(before)[0]
        model = before.clone()
        result = Quantizer(
            {name: TestSmoothing.RANGES[: len(r)] for name, r in equal_ranges(model).items()}, {first.name}
        )
        counts = result.run(model)
        assert counts.fired == 2 * PRODUCTS_OF_A_LAYER - len(first.products)
        assert counts.declined == (f"{first.name}: kept in float32 for accuracy",)
        assert [node.outputs[0].name for node in nodes_of(model, "MatMul")] == [
            node.outputs[0].name for node in first.products
        ]
        norms = [nodes_of(graph, "LayerNormalization") for graph in (before, model)]
        gammas = [[constant_array(norm.inputs[1]) for norm in graph] for graph in norms]
        np.testing.assert_array_equal(gammas[0][0], gammas[1][0])
        assert not np.array_equal(gammas[0][1], gammas[1][1])

    def test_the_fewer_are_quantized_the_smaller_the_error(self) -> None:
        before = encoder(layers=2)
        names = [group.name for group in groups(before)]
        (expected,) = run_as_it_is(before, **three_texts())
        errors = [
            np.square(run_as_it_is(quantized(before, *names[count:])[0], **three_texts())[0] - expected).sum()
            for count in (0, 1, len(names))
        ]
        assert errors[0] == 0
        assert 0 < errors[1] < errors[2] < 0.01 * np.square(expected).sum()

    def test_a_graph_that_is_kept_whole_has_one_form(self) -> None:
        before = encoder(layers=2)
        model, quantizer = quantized(before, *(group.name for group in groups(before)))
        assert quantizer.saturation_safe == {}
        assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph]


class TestSmoothing:
    """Channels that are large are divided in front of the product, and its weights multiplied: nothing else changes."""

    RANGES = np.float32(10) ** np.random.default_rng(6).uniform(-2, 2, HIDDEN).astype(np.float32)

    @pytest.fixture
    def in_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Smoothing alone: the products are as they were, but for rows that are multiplied."""

        def multiply(self: Quantizer, op: GraphBuilder, group: Group, smooth: np.ndarray | None) -> None:
            for node in group.products:
                weight = constant_array(node.inputs[1])
                if smooth is not None:
                    node.replace_input_with(1, op.constant(weight * smooth[:, None], "multiplied"))

        monkeypatch.setattr(Quantizer, "_quantize", multiply)

    @pytest.mark.usefixtures("in_float32")
    @pytest.mark.parametrize("settings", [{}, {"residuals": False}, {"kv_heads": 2}], ids=str)
    def test_is_exact(self, settings: dict[str, Any]) -> None:
        before = encoder(layers=2, **settings)
        after = before.clone()
        Quantizer({name: self.RANGES[: len(peaks)] for name, peaks in equal_ranges(after).items()}).run(after)
        after.graph.sort()
        # Two norms of a layer are in front of products; the last one of the network is not.
        changed = [
            not np.array_equal(*(constant_array(norm.inputs[1]) for norm in pair))
            for pair in zip(*(nodes_of(graph, "LayerNormalization") for graph in (before, after)), strict=True)
        ]
        assert changed == [True, True, True, True, False]
        expected, result = (run_as_it_is(graph, **three_texts())[0] for graph in (before, after))
        assert np.abs(result - expected).max() <= 2e-6 * np.abs(expected).max()

    @staticmethod
    def smoothed_norm(**settings: Any) -> tuple[ir.Model, ir.Model]:
        """LayerNormalization and a product of it, before and after."""
        model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
        normal = layer_norm(op, tokens, np.random.default_rng(7))
        if not settings.get("bias", True):
            normal.producer().resize_inputs(2)
        result = shaped(op.MatMul(normal, op.constant(random(weights_rng(), HIDDEN, WIDTH))), *TOKENS, WIDTH)
        model.graph.outputs.append(shaped(op.Identity(result), *TOKENS, WIDTH))
        if settings.get("is_output"):
            model.graph.outputs.append(normal)
        after = model.clone()
        ranges = settings.get("ranges", TestSmoothing.RANGES)
        Quantizer({str(normal.name): ranges}).run(after)
        after.graph.sort()
        return model, after

    @staticmethod
    def multiply_norm(graphs: tuple[ir.Model, ...], factors: np.ndarray) -> None:
        """Multiply the channels of the norm, whether it is smoothed or not."""
        for graph in graphs:
            for value in nodes_of(graph, "LayerNormalization")[0].inputs[1:]:
                value.const_value = ir.tensor(constant_array(value) * factors, name=value.name)

    def test_the_scales(self) -> None:
        before, after = self.smoothed_norm()
        gammas = [constant_array(nodes_of(graph, "LayerNormalization")[0].inputs[1]) for graph in (before, after)]
        scales = gammas[0] / gammas[1]
        np.testing.assert_allclose(scales / scales[0], (self.RANGES / self.RANGES[0]) ** 0.65, rtol=1e-4)
        assert np.exp(np.log(scales).mean()) == pytest.approx(1, rel=1e-5)

    @pytest.mark.parametrize("bias", [True, False], ids=["with a bias", "without"])
    def test_one_large_channel_no_longer_drowns_the_others(self, bias: bool) -> None:
        outlier = np.ones(HIDDEN, dtype=np.float32)
        outlier[5] = 100
        tokens = random(np.random.default_rng(8), 4, 16, HIDDEN)
        tokens[..., 5] *= 100
        errors = []
        for ranges in (np.ones(HIDDEN, dtype=np.float32), outlier):
            model, after = self.smoothed_norm(bias=bias, ranges=ranges)
            self.multiply_norm((model, after), outlier)
            expected, result = (run_as_it_is(graph, tokens=tokens)[0] for graph in (model, after))
            errors.append(np.square(result - expected).sum() / np.square(expected).sum())
        assert errors[1] < 0.5 * errors[0]

    @pytest.mark.parametrize(
        "ranges",
        [
            pytest.param(np.zeros(HIDDEN, dtype=np.float32), id="all zero"),
            pytest.param(np.full(HIDDEN, np.nan, dtype=np.float32), id="nan"),
        ],
    )
    def test_ranges_that_say_nothing(self, ranges: np.ndarray) -> None:
        before, after = self.smoothed_norm(ranges=ranges)
        gammas = [constant_array(nodes_of(graph, "LayerNormalization")[0].inputs[1]) for graph in (before, after)]
        np.testing.assert_array_equal(*gammas)

    def test_channels_that_are_always_zero(self) -> None:
        ranges = np.ones(HIDDEN, dtype=np.float32)
        ranges[3] = 0
        graphs = self.smoothed_norm(ranges=ranges)
        self.multiply_norm(graphs, ranges)
        tokens = random(np.random.default_rng(8), 2, 4, HIDDEN)
        expected, result = (run_as_it_is(graph, tokens=tokens)[0] for graph in graphs)
        assert np.square(result - expected).sum() < 0.01 * np.square(expected).sum()

    def test_an_output_of_the_graph_stays(self) -> None:
        before, after = self.smoothed_norm(is_output=True)
        tokens = random(np.random.default_rng(8), 2, 4, HIDDEN)
        np.testing.assert_array_equal(*(run_as_it_is(graph, tokens=tokens)[1] for graph in (before, after)))
