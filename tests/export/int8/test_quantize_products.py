"""Products in 8 bits against the same arithmetic in numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantized_products import WIDTH, Part, equal_ranges, identity, product, quantized, shaped_values
from small_graphs import HIDDEN, TOKENS, encoder, graph_of, nodes_of, random, run_as_it_is, shaped

from stonnx._bundle.manifest import Scalar
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import products
from stonnx_export.int8.products import AFTER_GELU, AFTER_RELU, SYMMETRIC, Quantizer, Range, groups

pytestmark = pytest.mark.usefixtures("small_products")


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
        quantizer = Quantizer(equal_ranges(model), static=peaks)
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
    Quantizer(equal_ranges(model), codes={name: codes}).run(model)
    model.graph.sort()
    (node,) = nodes_of(model, "MatMulIntegerToFloat")
    np.testing.assert_array_equal(constant_array(node.inputs[1]), codes)
    np.testing.assert_array_equal(constant_array(node.inputs[3]), rounded_weight(TestArithmetic.WEIGHT)[1])
