"""int8 of a graph as a whole: which products are in 8 bits, and from what their scales come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hostile_networks import make_hostile
from small_graphs import VOCABULARY, encoder, nodes_of, run_as_it_is

from stonnx._errors import InvalidArgumentError
from stonnx_export import export
from stonnx_export.calibration.measure import tokens
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import scales
from stonnx_export.int8.scales import Quantization

pytestmark = pytest.mark.usefixtures("small_products")

SEQUENCES = [np.random.default_rng(seed).integers(0, VOCABULARY, 12).tolist() for seed in range(8)]


def one_text(sequence: list[int]) -> dict[str, np.ndarray]:
    ids = np.array([sequence])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def feed_forward(model: ir.Model, layer: int) -> tuple[ir.Node, ir.Node]:
    """The products into and out of the intermediate values of a layer."""
    products = nodes_of(model, "MatMul")
    return products[6 * layer + 4], products[6 * layer + 5]


class TestQuantization:
    """On a graph: three layers of four groups, of which one is hostile."""

    HOSTILE = 1

    @pytest.fixture
    def model(self) -> ir.Model:
        model = encoder(lambda op, tokens: op.ReduceMean(tokens, op.vector([1]), keepdims=0), layers=3)
        into, out = feed_forward(model, self.HOSTILE)
        bias = next(value for value in into.outputs[0].uses()[0].node.inputs if value is not into.outputs[0])
        values = [bias, out.inputs[1]]
        arrays = [constant_array(value).copy() for value in values]
        make_hostile(*arrays)
        for value, array in zip(values, arrays, strict=True):
            value.const_value = ir.tensor(array, name=value.name)
        return model

    @staticmethod
    def error(model: ir.Model, quantization: Quantization) -> float:
        built, _, _ = quantization.apply()
        built.graph.sort()
        expected, result = (
            np.stack([run_as_it_is(graph, **one_text(sequence))[0][0] for sequence in SEQUENCES])
            for graph in (model, built)
        )
        return float(np.square(result - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())

    def test_the_worst_go_first_an_eighth_a_quarter_a_half(self, model: ir.Model) -> None:
        quantization = Quantization(model, SEQUENCES)
        assert quantization.keep_more()  # every token has a scale of its own
        assert (quantization.kept, quantization.worst) == ((), None)
        errors, kept = [self.error(model, quantization)], []
        while quantization.keep_more():
            kept.append(quantization.kept)
            errors.append(self.error(model, quantization))
        assert [len(names) for names in kept] == [2, 3, 6]
        assert kept[0] == kept[1][:2] == kept[2][:2]
        name = str(feed_forward(model, self.HOSTILE)[1].outputs[0].name)
        assert quantization.worst == kept[0][0] == name
        assert errors[0] > 100 * errors[1]
        assert errors[1] > errors[2] > errors[3] > 0
        assert quantization.kept == kept[2]
        assert not quantization.keep_more()

    def test_kept_layers_stay_products_of_float32(self, model: ir.Model) -> None:
        quantization = Quantization(model, SEQUENCES)
        while not quantization.kept:
            quantization.keep_more()
        built, results, safe = quantization.apply()
        products = results[0]
        names = [result.name for result in results]
        assert names == ["quantize_products", "fast_gelu", "quantize_tables", "flat_tokens", "static_scales"]
        assert {text.partition(":")[0] for text in products.declined} == set(quantization.kept)
        assert [str(node.outputs[0].name) for node in nodes_of(built, "MatMul")].count(quantization.worst) == 1
        assert products.fired + len(nodes_of(built, "MatMul")) == 3 * 6
        assert set(safe) <= set(built.graph.initializers)

    def test_every_layer_is_looked_at_once(self, model: ir.Model) -> None:
        quantization = Quantization(model, SEQUENCES)
        seen: list[tuple[int, int]] = []
        while quantization.keep_more(lambda done, total: seen.append((done, total))):
            pass
        assert seen == [(number, 12) for number in range(1, 13)]

    def test_static_scales_behind_norms(self, model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """The inputs of attention and of the feed-forward network, as long as that costs their products little."""
        monkeypatch.setattr(scales, "_STATIC_NOISE", 1.0)
        every = Quantization(model, SEQUENCES)
        built, results, safe = every.apply()
        chosen = [node.inputs[1] for node in nodes_of(built, "QuantizeLinear")]
        assert [scale.is_initializer() for scale in chosen] == [True, False, True, False] * 3
        assert (results[-1].name, results[-1].fired) == ("static_scales", 6)
        assert results[1].fired == 0  # the products have taken the biases in front of GELU
        assert {str(scale.name) for scale in chosen if scale.is_initializer()} < set(safe)
        norms = nodes_of(model, "LayerNormalization")
        peaks = [
            np.concatenate([a[str(norm.outputs[0].name)] for a in tokens(model, [norm.outputs[0]], SEQUENCES)])
            for norm in norms[:-1]
        ]
        smoothed = [constant_array(norm.inputs[1]) for norm in nodes_of(built, "LayerNormalization")]
        for scale, values, norm, gamma in zip(chosen[::2], peaks, norms, smoothed, strict=False):
            even = np.abs(values).max(axis=0) * gamma / constant_array(norm.inputs[1])
            assert 127 * float(constant_array(scale)) == pytest.approx(float(even.max()), rel=1e-4)
        monkeypatch.setattr(scales, "_STATIC_NOISE", 0.0)
        built, results, _ = Quantization(model, SEQUENCES).apply()
        assert not any(node.inputs[1].is_initializer() for node in nodes_of(built, "QuantizeLinear"))
        assert (results[1].fired, results[-1].fired) == (3, 0)
        # Where the whole is refused, they go before a layer does.
        assert every.keep_more()
        again = every.apply()[0]
        assert [node.op_type for node in again.graph] == [node.op_type for node in built.graph]
        assert every.kept == ()

    def test_static_scales_hold_other_texts_as_well(self, model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ranges that channels are evened out by are those of the texts to calibrate with."""
        monkeypatch.setattr(scales, "_STATIC_NOISE", 1.0)
        few, all_of_them = Quantization(model, SEQUENCES[:1]), Quantization(model, SEQUENCES[:1], SEQUENCES)
        peaks = [np.array(list(quantization._static.values())) for quantization in (few, all_of_them)]
        assert (peaks[1] >= peaks[0]).all()
        assert (peaks[1] > peaks[0]).any()
        for name, ranges in few._ranges.items():
            np.testing.assert_array_equal(ranges, all_of_them._ranges[name])

    def test_wide_products_are_rounded_to_the_nearest_step(
        self, model: ir.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And all others are not, in whatever order their moments are taken."""
        found = {}
        for limit, memory in ((32, 1 << 29), (64, 1), (64, 1 << 29)):
            monkeypatch.setattr(scales, "_MOST_INPUTS", limit)
            monkeypatch.setattr(scales, "_MOMENTS", memory)
            built, _, _ = Quantization(model, SEQUENCES).apply()
            found[limit, memory] = [constant_array(node.inputs[1]) for node in nodes_of(built, "MatMulIntegerToFloat")]
        for one, other in zip(found[64, 1], found[64, 1 << 29], strict=True):
            np.testing.assert_array_equal(one, other)
        same = [np.array_equal(*pair) for pair in zip(found[32, 1 << 29], found[64, 1], strict=True)]
        assert same == [*[True] * 5, False] * 3

    def test_the_graph_stays_as_it_is(self, model: ir.Model) -> None:
        operators = [(node.op_type, [value.name for value in node.outputs]) for node in model.graph]
        quantization = Quantization(model, SEQUENCES)
        quantization.keep_more()
        quantization.apply()
        assert [(node.op_type, [value.name for value in node.outputs]) for node in model.graph] == operators

    def test_a_graph_without_products(self) -> None:
        quantization = Quantization(encoder(layers=0), [])
        assert not quantization.keep_more()
        assert quantization.apply()[1][0].fired == 0

    def test_a_graph_of_one_layer(self) -> None:
        """Shares of four groups: one, two."""
        quantization = Quantization(encoder(layers=1), SEQUENCES)
        kept = []
        while quantization.keep_more():
            kept.append(len(quantization.kept))
        assert kept == [0, 1, 2]


def test_unknown_recipes_name_this_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="dtype must be one of 'fp32', 'fp16', 'bf16', 'int8', got 'int4'"):
        export("no/such/model", tmp_path / "bundle", dtype="int4")
