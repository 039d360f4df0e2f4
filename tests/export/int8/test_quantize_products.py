"""Products in 8 bits against the same arithmetic in numpy, and what is quantized, shared, smoothed and left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HIDDEN, TOKENS, encoder, graph_of, layer_norm, nodes_of, random, run_as_it_is, shaped

from stonnx._bundle.manifest import Scalar
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import products
from stonnx_export.int8.products import AFTER_GELU, AFTER_RELU, SYMMETRIC, Group, Quantizer, Range, groups

Part = Callable[[GraphBuilder, ir.Value], ir.Value]

WIDTH = 48
PRODUCTS_OF_A_LAYER = 6


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """These graphs have fewer weights than are worth it."""
    monkeypatch.setattr(products, "_SMALLEST", HIDDEN * HIDDEN)


def product(activation: Part, weight: np.ndarray) -> ir.Model:
    """activation(x) W of tokens x [B, S, H]."""
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    inner = shaped(activation(op, tokens), *TOKENS, HIDDEN)
    result = shaped(op.MatMul(inner, op.constant(weight, "weight")), *TOKENS, weight.shape[1])
    model.graph.outputs.append(shaped(op.Identity(result), *TOKENS, weight.shape[1]))
    return model


def identity(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    return tokens


def quantized(before: ir.Model, *keep: str) -> tuple[ir.Model, Quantizer]:
    """The graph with every product in 8 bits but those kept, and the quantizer; the channels of an input are alike."""
    model = before.clone()
    ranges = {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
    quantizer = Quantizer(ranges, keep)
    quantizer.run(model)
    model.graph.sort()
    return model, quantizer


def made_safe(model: ir.Model, scalars: dict[str, Scalar]) -> ir.Model:
    """The form that cannot saturate, as a session has it: with other values of some initializers."""
    model = model.clone()
    for name, scalar in scalars.items():
        value = model.graph.initializers[name]
        assert constant_array(value).dtype == scalar.dtype
        assert constant_array(value).shape == ()
        value.const_value = ir.tensor(np.array(scalar.value, dtype=scalar.dtype), name=name)
    return model


def rounded_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [K, N] and the scale [N] of each column."""
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), np.float32(1e-30))
    return np.rint(weight / scale).astype(np.int64), scale


def in_numpy(values: np.ndarray, weight: np.ndarray, kind: Range, *, safe: bool = False) -> np.ndarray:
    """What the graph is meant to compute: codes of a token with its own scale, sums in integers, and both scales."""
    steps, zero_point = (kind.safe_steps, kind.safe_zero_point) if safe else (kind.steps, kind.zero_point)
    peak = (np.abs(values) if kind.symmetric else values).max(axis=-1, keepdims=True)
    scale = peak * np.float32(1 / steps)
    if kind.lowest:
        scale = np.maximum(scale, np.float32(kind.lowest / zero_point))
    with np.errstate(invalid="ignore"):
        codes = np.rint(values / scale) + zero_point
    codes = np.where(scale > 0, codes, zero_point).astype(np.int64)
    assert codes.min() >= 0
    assert codes.max() <= (127 if safe else 255)
    columns, column_scale = rounded_weight(weight)
    return ((codes - zero_point) @ columns) * scale * column_scale


ACTIVATIONS: dict[str, tuple[Part, Range]] = {
    "values of both signs": (identity, SYMMETRIC),
    "tanh": (lambda op, x: op.Tanh(x), SYMMETRIC),
    "gelu": (lambda op, x: op.Gelu(x, approximate="tanh"), AFTER_GELU),
    "exact gelu": (lambda op, x: op.Gelu(x), AFTER_GELU),
    "relu": (lambda op, x: op.Relu(x), AFTER_RELU),
}


def rows() -> np.ndarray:
    """Tokens of all kinds [2, 12, H]: one of them is zero, one all of one value, one has a single huge value."""
    rng = np.random.default_rng(3)
    tokens = random(rng, 2, 12, HIDDEN)
    tokens[0, 1] = 0
    tokens[0, 2] = 1.5
    tokens[0, 3] = -1.5
    tokens[0, 4, 7] = 1e4
    tokens[0, 5, 7] = -1e4
    tokens[0, 6] = 1e-6 * tokens[0, 0]
    tokens[0, 7] = 1e6 * tokens[0, 0]
    tokens[0, 8] = np.abs(tokens[0, 8])
    tokens[0, 9] = -np.abs(tokens[0, 9])
    tokens[1, 8:] = 0  # padding
    return tokens


class TestArithmetic:
    WEIGHT = random(np.random.default_rng(4), HIDDEN, WIDTH)

    @pytest.mark.parametrize("safe", [False, True], ids=["full range", "saturation-safe"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_equals_numpy(self, activation: str, safe: bool) -> None:
        part, kind = ACTIVATIONS[activation]
        before = product(part, self.WEIGHT)
        model, quantizer = quantized(before)
        assert [node.domain for node in nodes_of(model, "MatMulIntegerToFloat")] == ["com.microsoft"]
        assert not nodes_of(model, "MatMul")
        if safe:
            model = made_safe(model, quantizer.saturation_safe)
        tokens = rows()
        inner = shaped_values(part, tokens)
        expected = in_numpy(inner, self.WEIGHT, kind, safe=safe)
        (result,) = run_as_it_is(model, tokens=tokens)
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("activation", "closeness"), [("values of both signs", 0.9999), ("gelu", 0.9999), ("relu", 0.9999)]
    )
    def test_is_close_to_the_product_in_float32(self, activation: str, closeness: float) -> None:
        before = product(ACTIVATIONS[activation][0], self.WEIGHT)
        tokens = random(np.random.default_rng(5), 4, 16, HIDDEN)
        expected, result = (run_as_it_is(model, tokens=tokens)[0] for model in (before, quantized(before)[0]))
        cosines = (expected * result).sum(-1) / np.linalg.norm(expected, axis=-1) / np.linalg.norm(result, axis=-1)
        assert cosines.min() > closeness

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_a_zero_token_gives_zero(self, activation: str) -> None:
        model, _ = quantized(product(ACTIVATIONS[activation][0], self.WEIGHT))
        tokens = np.zeros((1, 3, HIDDEN), dtype=np.float32)
        np.testing.assert_array_equal(run_as_it_is(model, tokens=tokens)[0], np.zeros((1, 3, WIDTH)))

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_a_token_is_quantized_by_itself(self, activation: str) -> None:
        """Equal to the last bit, whatever is beside it, and in whatever place."""
        model, _ = quantized(product(ACTIVATIONS[activation][0], self.WEIGHT))
        tokens = rows()
        (together,) = run_as_it_is(model, tokens=tokens)
        for text in range(2):
            for place in range(12):
                (alone,) = run_as_it_is(model, tokens=tokens[text : text + 1, place : place + 1])
                np.testing.assert_array_equal(alone[0, 0], together[text, place])
        (turned,) = run_as_it_is(model, tokens=tokens[::-1, ::-1])
        np.testing.assert_array_equal(turned[::-1, ::-1], together)

    def test_columns_of_zeros_and_of_one_huge_weight(self) -> None:
        weight = self.WEIGHT.copy()
        weight[:, 5] = 0
        weight[3, 6] = 1e5
        weight[:, 7] *= 1e-6
        tokens = rows()
        (result,) = run_as_it_is(quantized(product(identity, weight))[0], tokens=tokens)
        np.testing.assert_allclose(result, in_numpy(tokens, weight, SYMMETRIC), rtol=1e-6, atol=0)
        assert not result[..., 5].any()

    @pytest.mark.parametrize("kind", [AFTER_GELU, AFTER_RELU, SYMMETRIC], ids=["gelu", "relu", "both signs"])
    @pytest.mark.parametrize("safe", [False, True], ids=["full range", "saturation-safe"])
    def test_no_sum_of_two_products_leaves_its_range(self, kind: Range, safe: bool) -> None:
        """Codes fit into 8 bits, and where two products are added in 16 bits, so does the sum."""
        steps, zero_point = (kind.safe_steps, kind.safe_zero_point) if safe else (kind.steps, kind.zero_point)
        assert zero_point - (steps if kind.symmetric else 0) >= 0
        assert zero_point + steps <= 255
        if safe:
            assert 2 * (zero_point + steps) * 127 < 2**15


def with_static_scale(before: ir.Model, peak: float) -> tuple[ir.Model, Quantizer]:
    """The graph with every product in 8 bits of one scale, for values up to the peak."""
    model = before.clone()
    ranges = {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
    quantizer = Quantizer(ranges, static={group.name: peak for group in groups(model)})
    quantizer.run(model)
    model.graph.sort()
    return model, quantizer


class TestStaticScale:
    WEIGHT = random(np.random.default_rng(4), HIDDEN, WIDTH)
    BIAS = random(np.random.default_rng(5), WIDTH)
    PEAK = 4.0

    def model(self, *, bias: bool = True, read_twice: bool = False) -> ir.Model:
        """x W + b of tokens x, and where it is read twice x W as well."""
        model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
        result = shaped(op.MatMul(tokens, op.constant(self.WEIGHT, "weight")), *TOKENS, WIDTH)
        outputs = [op.Add(op.constant(self.BIAS, "bias"), result)] if bias else [result]
        outputs += [result] if read_twice else []
        model.graph.outputs.extend(
            shaped(op.Identity(shaped(output, *TOKENS, WIDTH)), *TOKENS, WIDTH) for output in outputs
        )
        return model

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("safe", [False, True], ids=["full range", "saturation-safe"])
    def test_equals_numpy(self, safe: bool, bias: bool) -> None:
        model, quantizer = with_static_scale(self.model(bias=bias), self.PEAK)
        if safe:
            model = made_safe(model, quantizer.saturation_safe)
        steps, zero_point = (63, 64) if safe else (127, 128)
        tokens = rows()
        scale = np.float32(self.PEAK / steps)
        # What is larger than anything in calibration is cut off where the codes end.
        codes = np.clip(np.rint(tokens / scale) + zero_point, 0, 255).astype(np.int64)
        columns, column_scale = rounded_weight(self.WEIGHT)
        expected = ((codes - zero_point) @ columns) * scale * column_scale + (self.BIAS if bias else 0)
        (result,) = run_as_it_is(model, tokens=tokens)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
        operators = [node.op_type for node in model.graph]
        assert not {"Add", "Abs", "ReduceMax", "MatMul"} & set(operators)

    def test_a_token_is_quantized_by_itself(self) -> None:
        model, _ = with_static_scale(self.model(), self.PEAK)
        tokens = rows()
        (together,) = run_as_it_is(model, tokens=tokens)
        for place in range(12):
            (alone,) = run_as_it_is(model, tokens=tokens[:1, place : place + 1])
            np.testing.assert_array_equal(alone[0, 0], together[0, place])

    def test_a_bias_stays_where_others_read_the_product_without_it(self) -> None:
        model, _ = with_static_scale(self.model(read_twice=True), self.PEAK)
        assert len(nodes_of(model, "Add")) == 1
        biased, plain = run_as_it_is(model, tokens=rows())
        np.testing.assert_allclose(biased, plain + self.BIAS, rtol=1e-6, atol=1e-6)

    def test_a_bias_whose_sum_is_an_output_stays(self) -> None:
        before = self.model()
        before.graph.outputs[0].producer().inputs[0].name = "sum"
        before.graph.outputs[:] = [before.graph.outputs[0].producer().inputs[0]]
        model, _ = with_static_scale(before, self.PEAK)
        assert [output.name for output in model.graph.outputs] == ["sum"]
        assert len(nodes_of(model, "Add")) == 1

    def test_every_scale_has_its_own_safe_value(self) -> None:
        before = encoder(layers=2)
        names = [group.name for group in groups(before)]
        model = before.clone()
        peaks = {name: float(number) for number, name in enumerate(names, start=1)}
        quantizer = Quantizer(_ranges(model), static=peaks)
        quantizer.run(model)
        scales = {name: scalar.value for name, scalar in quantizer.saturation_safe.items() if "_int8_scale_" in name}
        assert len(scales) == len(names) == 8
        kinds = [products.range_of(group) for group in groups(before)]
        expected = [np.float32(peak / kind.safe_steps) for peak, kind in zip(peaks.values(), kinds, strict=True)]
        assert sorted(scales.values()) == sorted(map(float, expected))
        for name, scalar in quantizer.saturation_safe.items():
            assert constant_array(model.graph.initializers[name]).dtype == scalar.dtype


def test_codes_that_are_given() -> None:
    """Instead of those of the nearest steps, with the same scales of columns."""
    before = product(identity, TestArithmetic.WEIGHT)
    name = groups(before)[0].name
    codes = np.random.default_rng(0).integers(-127, 128, (HIDDEN, WIDTH)).astype(np.int8)
    model = before.clone()
    Quantizer(_ranges(model), codes={name: codes}).run(model)
    model.graph.sort()
    (node,) = nodes_of(model, "MatMulIntegerToFloat")
    np.testing.assert_array_equal(constant_array(node.inputs[1]), codes)
    np.testing.assert_array_equal(constant_array(node.inputs[3]), rounded_weight(TestArithmetic.WEIGHT)[1])


def shaped_values(part: Part, tokens: np.ndarray) -> np.ndarray:
    """What a graph computes in front of its product."""
    model, op, (values,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    model.graph.outputs.append(shaped(op.Identity(part(op, values)), *TOKENS, HIDDEN))
    return run_as_it_is(model, tokens=tokens)[0]


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
            pytest.param(lambda op, x: op.MatMul(x, op.constant(random(_rng(), HIDDEN, HIDDEN - 1))), id="small"),
            pytest.param(lambda op, x: op.MatMul(x, op.Transpose(x, perm=[0, 2, 1])), id="no constant"),
            pytest.param(
                lambda op, x: op.MatMul(
                    shaped(op.ReduceMean(x, op.vector([1]), keepdims=0), "batch", HIDDEN),
                    op.constant(random(_rng(), HIDDEN, WIDTH)),
                ),
                id="a vector for each text",
            ),
            pytest.param(
                lambda op, x: op.MatMul(x, op.constant(random(_rng(), 1, HIDDEN, WIDTH))), id="three dimensions"
            ),
            pytest.param(lambda op, x: op.MatMul(op.constant(random(_rng(), 4, HIDDEN)), x), id="the other way round"),
            pytest.param(
                lambda op, x: op.MatMul(
                    op.Cast(x, to=ir.DataType.DOUBLE), op.constant(random(_rng(), HIDDEN, WIDTH).astype(np.float64))
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
        result = Quantizer({name: TestSmoothing.RANGES[: len(r)] for name, r in _ranges(model).items()}, {first.name})
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
        (expected,) = run_as_it_is(before, **_ids())
        errors = [
            np.square(run_as_it_is(quantized(before, *names[count:])[0], **_ids())[0] - expected).sum()
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
        Quantizer({name: self.RANGES[: len(peaks)] for name, peaks in _ranges(after).items()}).run(after)
        after.graph.sort()
        # Two norms of a layer are in front of products; the last one of the network is not.
        changed = [
            not np.array_equal(*(constant_array(norm.inputs[1]) for norm in pair))
            for pair in zip(*(nodes_of(graph, "LayerNormalization") for graph in (before, after)), strict=True)
        ]
        assert changed == [True, True, True, True, False]
        expected, result = (run_as_it_is(graph, **_ids())[0] for graph in (before, after))
        assert np.abs(result - expected).max() <= 2e-6 * np.abs(expected).max()

    @staticmethod
    def smoothed_norm(**settings: Any) -> tuple[ir.Model, ir.Model]:
        """LayerNormalization and a product of it, before and after."""
        model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
        normal = layer_norm(op, tokens, np.random.default_rng(7))
        if not settings.get("bias", True):
            normal.producer().resize_inputs(2)
        result = shaped(op.MatMul(normal, op.constant(random(_rng(), HIDDEN, WIDTH))), *TOKENS, WIDTH)
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


def _rng() -> np.random.Generator:
    return np.random.default_rng(9)


def _ids() -> dict[str, np.ndarray]:
    mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int64)
    return {"input_ids": mask * np.random.default_rng(0).integers(1, 50, mask.shape), "attention_mask": mask}


def _ranges(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
