"""Tables in 8 bits: rows and their scales, what shares a table, what is too small, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import TOKENS, graph_of, nodes_of, random, run_as_it_is, shaped

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.int8 import products, tables
from stonnx_export.int8.products import Quantizer, groups
from stonnx_export.int8.tables import quantize_rows
from stonnx_export.passes import PassResult, splade_chunks

VOCABULARY, HIDDEN = 96, 64
TABLE = random(np.random.default_rng(0), VOCABULARY, HIDDEN)
IDS = np.random.default_rng(1).integers(0, VOCABULARY, (3, 7))
MASK = (np.arange(7) < np.array([[7], [3], [1]])).astype(np.int64)


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """These graphs have fewer rows than are worth it."""
    monkeypatch.setattr(tables, "_SMALLEST", VOCABULARY * HIDDEN)
    monkeypatch.setattr(products, "_SMALLEST", VOCABULARY * HIDDEN // 2)


def inputs() -> tuple[ir.Model, GraphBuilder, list[ir.Value]]:
    return graph_of(*((name, ir.DataType.INT64, TOKENS) for name in ("input_ids", "attention_mask")))


def run(model: ir.Model) -> np.ndarray:
    return run_as_it_is(model, input_ids=IDS, attention_mask=MASK)[0]


def table_of(op: GraphBuilder, table: np.ndarray = TABLE) -> ir.Value:
    return op.named_constant("embeddings.weight", table)


def finished(model: ir.Model, *outputs: ir.Value) -> ir.Model:
    model.graph.outputs.extend(outputs)
    return model


def lookup(table: np.ndarray = TABLE) -> ir.Model:
    model, op, (ids, _) = inputs()
    return finished(model, shaped(op.Gather(table_of(op, table), ids), *TOKENS, table.shape[1]))


class TestRows:
    def test_each_row_has_its_own_scale(self) -> None:
        table = TABLE * np.float32(10) ** np.arange(VOCABULARY, dtype=np.float32)[:, None].clip(0, 20)
        codes, scale = quantize_rows(table)
        assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (np.int8, table.shape, np.float32, (96, 1))
        assert (np.abs(codes).max(axis=1) == 127).all()
        assert (np.abs(codes * scale - table) <= 0.5001 * scale).all()

    @pytest.mark.parametrize("value", [0.0, 1e-38, -1e-38])
    def test_rows_of_nothing(self, value: float) -> None:
        codes, scale = quantize_rows(np.full((2, 4), value, dtype=np.float32))
        assert (scale > 0).all()
        np.testing.assert_allclose(codes * scale, 0, atol=1e-37)

    def test_the_largest_numbers(self) -> None:
        table = np.array([[3e38, -3e38, 1e38]], dtype=np.float32)
        codes, scale = quantize_rows(table)
        np.testing.assert_array_equal(codes, [[127, -127, 42]])
        np.testing.assert_allclose(codes.astype(np.float64) * scale, table, rtol=0.01)


class TestLookup:
    def test_rows_are_codes_times_their_scales(self) -> None:
        model = lookup()
        # The lookup is inside the graph: what is behind it stays.
        output = GraphBuilder(model.graph).Neg(model.graph.outputs[0])
        model.graph.outputs[:] = [shaped(output, *TOKENS, HIDDEN)]
        assert tables.run(model) == PassResult("quantize_tables", 1)
        codes, scale = quantize_rows(TABLE)
        expected = -(codes.astype(np.float32) * scale)[IDS]
        np.testing.assert_array_equal(run(model), expected)
        assert {name: value.dtype for name, value in model.graph.initializers.items()} == {
            "embeddings.weight_codes": ir.DataType.INT8,
            "embeddings.weight_scale": ir.DataType.FLOAT,
        }
        assert tables.run(model) == PassResult("quantize_tables", 0)

    def test_two_lookups_share_a_table(self) -> None:
        model, op, (ids, mask) = inputs()
        table = table_of(op)
        finished(model, shaped(op.Add(op.Gather(table, ids), op.Gather(table, mask)), *TOKENS, HIDDEN))
        assert tables.run(model) == PassResult("quantize_tables", 1)
        assert len(model.graph.initializers) == 2
        codes, scale = quantize_rows(TABLE)
        rows = codes.astype(np.float32) * scale
        np.testing.assert_array_equal(run(model), rows[IDS] + rows[MASK])

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE[1:]), ids), id="small"),
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE.T.copy()), ids, axis=1), id="columns"),
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE.reshape(VOCABULARY, 8, 8)), ids), id="rank 3"),
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE.reshape(-1)), ids), id="rank 1"),
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE.astype(np.float16)), ids), id="half precision"),
            pytest.param(lambda op, ids: op.Gather(table_of(op, TABLE.astype(np.int64)), ids), id="integers"),
            pytest.param(
                lambda op, ids: op.Gather(op.optional_input("table", TABLE, TABLE.shape), ids),
                id="input with a default",
            ),
        ],
    )
    def test_other_lookups_stay(self, build) -> None:
        model, op, (ids, _) = inputs()
        finished(model, op.Identity(build(op, ids)))
        assert tables.run(model) == PassResult("quantize_tables", 0)
        assert [node.op_type for node in model.graph] == ["Gather", "Identity"]


def masked_language_model(*, tied: bool = True, chunks: bool = False) -> ir.Model:
    """Words to the largest logit of each word [B, V]: rows of the table, and their products with it, as in SPLADE."""
    model, op, (ids, mask) = inputs()
    words = table_of(op)
    table = words if tied else op.named_constant("decoder.weight", TABLE[::-1].copy())
    tokens = shaped(op.Tanh(op.Gather(words, ids)), *TOKENS, HIDDEN)
    logits = shaped(op.MatMul(tokens, op.Transpose(table, perm=[1, 0])), *TOKENS, VOCABULARY)
    bias = op.constant(random(np.random.default_rng(2), VOCABULARY), "bias")
    logits = shaped(op.Add(logits, bias), *TOKENS, VOCABULARY)
    kept = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([2]))
    lowest = op.constant(np.array(-1e9, dtype=np.float32))
    best = op.ReduceMax(op.Where(kept, logits, lowest), op.vector([1]), keepdims=0)
    finished(model, shaped(op.Identity(best), "batch", VOCABULARY))
    if chunks:
        assert splade_chunks.run(model).fired == 1
    return model


def quantized(model: ir.Model, keep: tuple[str, ...] = ()) -> ir.Model:
    model = model.clone()
    ranges = {str(group.input.name): np.ones(HIDDEN, np.float32) for group in groups(model)}
    Quantizer(ranges, keep).run(model)
    assert tables.run(model).fired == 1
    model.graph.sort()
    return model


def float_tables(model: ir.Model) -> list[str]:
    large = {name: value for name, value in model.graph.initializers.items() if value.const_value.size > VOCABULARY}
    return [name for name, value in large.items() if value.dtype == ir.DataType.FLOAT]


def expected_logits(words: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """In numpy: rows of codes, tanh, a scale for each token, integer sums with the codes, both scales, the maximum."""
    codes, scale = quantize_rows(words)
    tokens = np.tanh((codes.astype(np.float32) * scale)[IDS])
    peak = np.abs(tokens).max(axis=-1, keepdims=True) * np.float32(1 / 127)
    rounded = np.rint(tokens / peak).astype(np.int64)
    codes, scale = quantize_rows(decoder)
    logits = (rounded @ codes.T.astype(np.int64)) * peak * scale[:, 0] + random(np.random.default_rng(2), VOCABULARY)
    return np.where(MASK[..., None] > 0, logits, -np.inf).max(axis=1)


class TestTiedTables:
    @pytest.mark.parametrize("chunks", [False, True], ids=["whole", "in pieces"])
    def test_words_and_logits_share_one_table_of_codes(self, chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splade_chunks, "CHUNK", 40)
        monkeypatch.setattr(products, "_SMALLEST", 16 * HIDDEN)
        model = quantized(masked_language_model(chunks=chunks))
        assert [name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.INT8] == [
            "embeddings.weight_codes"
        ]
        assert not float_tables(model)
        assert len(nodes_of(model, "MatMulIntegerToFloat")) == (3 if chunks else 1)
        np.testing.assert_allclose(run(model), expected_logits(TABLE, TABLE), rtol=1e-5, atol=1e-5)

    def test_a_decoder_with_a_table_of_its_own(self) -> None:
        model = quantized(masked_language_model(tied=False))
        assert sum(value.dtype == ir.DataType.INT8 for value in model.graph.initializers.values()) == 2
        assert not float_tables(model)
        np.testing.assert_allclose(run(model), expected_logits(TABLE, TABLE[::-1]), rtol=1e-5, atol=1e-5)

    def test_a_product_that_is_kept_reads_the_table_in_float32(self) -> None:
        before = masked_language_model()
        (group,) = groups(before)
        model = quantized(before, (group.name,))
        assert float_tables(model) == ["embeddings.weight"]
        codes, scale = quantize_rows(TABLE)
        tokens = np.tanh((codes.astype(np.float32) * scale)[IDS])
        logits = tokens @ TABLE.T + random(np.random.default_rng(2), VOCABULARY)
        np.testing.assert_allclose(
            run(model), np.where(MASK[..., None] > 0, logits, -np.inf).max(axis=1), rtol=1e-5, atol=1e-5
        )

    def test_the_shared_table_is_never_smoothed(self) -> None:
        """The embeddings read it as it is."""
        model, op, (ids, _) = inputs()
        table = table_of(op)
        ones = op.constant(np.ones(HIDDEN, dtype=np.float32))
        normal = op.LayerNormalization(op.Gather(table, ids), ones, axis=-1)
        logits = op.MatMul(shaped(normal, *TOKENS, HIDDEN), op.Transpose(table, perm=[1, 0]))
        finished(model, shaped(op.Identity(shaped(logits, *TOKENS, VOCABULARY)), *TOKENS, VOCABULARY))
        ranges = {str(normal.name): np.linspace(0.1, 10, HIDDEN, dtype=np.float32)}
        Quantizer(ranges).run(model)
        tables.run(model)
        (norm,) = nodes_of(model, "LayerNormalization")
        np.testing.assert_array_equal(norm.inputs[1].const_value.numpy(), np.ones(HIDDEN))
        assert len(nodes_of(model, "MatMulIntegerToFloat")) == 1
        assert "embeddings.weight_codes" in model.graph.initializers
