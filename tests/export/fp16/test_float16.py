"""Half precision: what becomes float16, what has no room in it, and that neither can be missed on a CPU.

onnxruntime's CPU provider computes half-precision operators in float32, so graphs are run with numpy here, where every
result is rounded to 11 bits and overflows at 65,520, as on a GPU.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file
from small_graphs import HIDDEN, TOKENS, VOCABULARY, encoder, graph_of, nodes_of, random, run_as_it_is, shaped
from zoo import build_checkpoint, row
from zoo.exported import CachedOriginal

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx._errors import ExportError
from stonnx._tasks import TASKS
from stonnx_export import RECIPES, export
from stonnx_export.fp16 import float16
from stonnx_export.fp16.half_range import largest_values
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import constant_array
from stonnx_export.graph.save import check_finite
from stonnx_export.originals import load
from stonnx_export.passes import PassResult, plain_attention
from stonnx_export.texts import sentences

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
Build = Callable[[GraphBuilder, ir.Value], ir.Value]

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
BATCH = (7, 2, 12)


def network(build: Build, scale: float = 1.0) -> ir.Model:
    """input_ids through a table of numbers around ``scale`` and what ``build`` makes of them."""
    model, op, (ids,) = graph_of(("input_ids", ir.DataType.INT64, TOKENS))
    table = op.constant(random(np.random.default_rng(0), VOCABULARY, HIDDEN, scale=scale), "embeddings")
    output = build(op, shaped(op.Gather(table, ids), *TOKENS, HIDDEN))
    op.name_output(output, "output", (*TOKENS, HIDDEN))
    model.graph.outputs.append(output)
    return model


def number(op: GraphBuilder, value: float) -> ir.Value:
    return op.constant(np.array(value, dtype=np.float32))


def rms_norm(op: GraphBuilder, x: ir.Value) -> ir.Value:
    """As the tracer leaves it."""
    mean = op.ReduceMean(op.Pow(x, number(op, 2)), op.vector([-1]), keepdims=1)
    return op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, number(op, 1e-6)))))


def measured(model: ir.Model) -> Mapping[str, float]:
    rng = np.random.default_rng(1)
    return largest_values(model, [rng.integers(0, VOCABULARY, size).tolist() for size in (3, 20, 40)])


def converted(model: ir.Model, largest: Mapping[str, float] | None = None) -> tuple[ir.Model, PassResult]:
    """A copy in half precision. ``largest`` are the real magnitudes unless given."""
    half = model.clone()
    result = float16.run(half, measured(model) if largest is None else largest)
    half.graph.sort()
    return half, result


def unmeasured(model: ir.Model) -> Mapping[str, float]:
    """What a pass that trusted the CPU would know."""
    return dict.fromkeys((str(value.name) for value in float16.values(model.clone())), 0.0)


def as_on_a_gpu(model: ir.Model | Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output with every operator rounded to its own precision."""
    proto = onnx.load(model) if isinstance(model, Path) else ir.to_proto(model)
    known = {value.name for value in proto.graph.input}
    with np.errstate(all="ignore"):
        (result,) = ReferenceEvaluator(proto).run(
            [proto.graph.output[0].name], {name: array for name, array in feeds.items() if name in known}
        )
    return result


def types(model: ir.Model, operator: str) -> list[Any]:
    return [node.outputs[0].dtype for node in nodes_of(model, operator)]


class TestThePass:
    @pytest.mark.parametrize(
        "options", [{}, {"kv_heads": 2, "is_causal": 1, "mask": "none"}, {"mask": "bias"}], ids=str
    )
    def test_a_network_in_half_precision(self, options: dict[str, Any], tiny_feeds: Feeds) -> None:
        model = encoder(**options)
        assert plain_attention.run(model).fired == 2
        feeds = tiny_feeds(BATCH)
        (expected,) = run_as_it_is(model, **feeds)
        half, result = converted(model)
        assert (result.name, result.declined, result.kept) == ("float16", (), ())
        operators = [node for node in half.graph if node.outputs[0].dtype == HALF and node.op_type != "Cast"]
        assert result.fired == len(operators) > 40
        for operator in ("MatMul", "Softmax", "LayerNormalization", "Gelu"):
            assert set(types(half, operator)) == {HALF}, operator
        # The weights too, and nothing behind the network.
        arrays = [constant_array(node.inputs[1]) for node in nodes_of(half, "MatMul")]
        assert {array.dtype for array in arrays if array is not None} == {np.dtype(np.float16)}
        assert half.graph.outputs[0].dtype == FLOAT
        assert half.graph.outputs[0].name == "output"
        onnx.checker.check_model(ir.to_proto(half), full_check=True)
        for values in (as_on_a_gpu(half, feeds), run_as_it_is(half, **feeds)[0]):
            assert values.dtype == np.float32
            real = feeds["attention_mask"] > 0
            assert 0 < np.abs(values - expected)[real].max() <= 0.03

    def test_what_is_computed_from_the_inputs_alone_stays(self) -> None:
        """Positions beyond 2,048 are not half-precision numbers."""

        def build(op: GraphBuilder, x: ir.Value) -> ir.Value:
            size = op.Squeeze(op.Shape(x, start=1, end=2), op.vector([0]))
            positions = op.Cast(op.Range(op.scalar(0), size, op.scalar(1)), to=int(FLOAT))
            angles = op.Mul(positions, number(op, 0.001))
            return op.Mul(x, op.Unsqueeze(op.Cos(angles), op.vector([0, 2])))

        half, result = converted(network(build))
        assert result.fired == 2  # the table, and the last product
        assert types(half, "Cos") == [FLOAT]
        assert types(half, "Mul") == [FLOAT, HALF]

    def test_sums_of_squares_stay(self) -> None:
        """The mean square of 300 is 90,000."""
        model = network(rms_norm, scale=300)
        feeds = {"input_ids": np.arange(VOCABULARY)[None]}
        half, result = converted(model)
        for operator in ("Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal"):
            assert types(half, operator) == [FLOAT], operator
        assert types(half, "Mul") == types(half, "Gather") == [HALF]
        assert (result.fired, result.declined) == (2, ())
        values = as_on_a_gpu(half, feeds)
        assert np.abs(values - as_on_a_gpu(model, feeds)).max() <= 0.01

    def test_a_network_without_a_table_is_left_alone(self) -> None:
        model, op, (x,) = graph_of(("x", ir.DataType.INT64, ("batch", HIDDEN)))
        output = op.MatMul(op.Cast(x, to=FLOAT), op.constant(np.eye(HIDDEN, dtype=np.float32)))
        op.name_output(output, "output", ("batch", HIDDEN))
        model.graph.outputs.append(output)
        assert float16.values(model) == []
        assert float16.run(model, {}) == PassResult("float16", 0)
        assert [node.op_type for node in model.graph] == ["Cast", "MatMul"]


def squared(op: GraphBuilder, x: ir.Value) -> ir.Value:
    """(300 * 300) * 0.001, where x is around 300: 90 in float32."""
    return op.Mul(op.Mul(x, number(op, 300)), number(op, 0.001))


class TestRange:
    def test_the_cpu_hides_an_overflow(self) -> None:
        """Why ranges are measured: with the pass alone, an export that is verified on the CPU finds nothing."""
        model = network(squared, scale=300)
        feeds = {"input_ids": np.arange(VOCABULARY)[None]}
        blind, result = converted(model, unmeasured(model))
        assert result.declined == ()
        hidden, real = run_as_it_is(blind, **feeds)[0], as_on_a_gpu(blind, feeds)
        assert np.isfinite(hidden).all()
        assert np.isinf(real).any()

    def test_what_has_no_room_stays_in_float32(self) -> None:
        model = network(squared, scale=300)
        feeds = {"input_ids": np.arange(VOCABULARY)[None]}
        half, result = converted(model)
        # Both products: the first gives what is too large, the second reads it.
        assert types(half, "Mul") == [FLOAT, FLOAT]
        assert types(half, "Gather") == [HALF]
        large = str(nodes_of(model, "Mul")[0].outputs[0].name)
        assert result.fired == 1
        assert result.kept == (large, "output")
        assert all(f"values {large!r} reach " in reason for reason in result.declined)
        assert all("half precision has 65,504 at most" in reason for reason in result.declined)
        values = as_on_a_gpu(half, feeds)
        assert np.abs(values / as_on_a_gpu(model, feeds) - 1).max() <= 1e-3

    def test_half_of_the_range_is_left_for_other_texts(self) -> None:
        model = network(lambda op, x: op.Mul(x, number(op, 1)))
        names = unmeasured(model)
        assert converted(model, dict.fromkeys(names, 32_752.0))[1].kept == ()
        assert len(converted(model, dict.fromkeys(names, 32_753.0))[1].kept) == 2
        assert len(converted(model, dict.fromkeys(names, float("nan")))[1].kept) == 2

    def test_padding_is_measured_too(self) -> None:
        """A mask that is added, as older exports have it, is at its lowest there alone."""
        model, op, (ids, mask) = graph_of(
            *((name, ir.DataType.INT64, TOKENS) for name in ("input_ids", "attention_mask"))
        )
        table = op.constant(random(np.random.default_rng(0), VOCABULARY, HIDDEN), "embeddings")
        x = shaped(op.Gather(table, ids), *TOKENS, HIDDEN)
        away = op.Sub(number(op, 1), op.Cast(mask, to=int(FLOAT)))
        lowest = op.Unsqueeze(op.Mul(away, number(op, float(np.finfo(np.float32).min))), op.vector([2]))
        output = op.Softmax(op.Add(x, lowest), axis=1)
        op.name_output(output, "output", (*TOKENS, HIDDEN))
        model.graph.outputs.append(output)
        half, result = converted(model)
        assert types(half, "Add") == types(half, "Softmax") == [FLOAT]
        assert result.fired == 1
        feeds = {"input_ids": np.ones((2, 5), dtype=np.int64), "attention_mask": np.array([[1] * 5, [1, 0, 0, 0, 0]])}
        assert np.abs(as_on_a_gpu(half, feeds) - as_on_a_gpu(model, feeds)).max() <= 1e-6

    def test_largest_values(self) -> None:
        model = network(squared, scale=300)
        before = [node.op_type for node in model.graph]
        largest = largest_values(model, [[0, 1, 2], [*range(VOCABULARY)]])
        table = np.abs(constant_array(nodes_of(model, "Gather")[0].inputs[0])).max()
        names = [str(node.outputs[0].name) for node in model.graph]
        assert largest == {name: pytest.approx(table * scale) for name, scale in zip(names, (1, 300, 0.3), strict=True)}
        assert [node.op_type for node in model.graph] == before
        assert len(model.graph.outputs) == 1

    def test_a_value_that_is_no_number(self) -> None:
        model = network(lambda op, x: op.Log(op.Neg(op.Abs(x))))
        assert np.isnan(measured(model)["output"])
        assert converted(model)[1].kept == ("output",)


class TestWeights:
    @pytest.mark.parametrize("weight", [40_000.0, 1e5, -3.4e38])
    def test_weights_that_have_no_room(self, weight: float) -> None:
        def build(op: GraphBuilder, x: ir.Value) -> ir.Value:
            weights = np.eye(HIDDEN, dtype=np.float32)
            weights[0, 0] = weight
            return op.Mul(op.MatMul(op.Mul(x, number(op, 1e-4)), op.constant(weights, "weight")), number(op, 1e-4))

        half, result = converted(network(build, scale=1e-38))
        assert types(half, "MatMul") == [FLOAT]
        (product,) = nodes_of(half, "MatMul")
        assert constant_array(product.inputs[1])[0, 0] == np.float32(weight)
        assert "weights" in result.declined[0]

    @pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
    def test_broken_weights_are_refused(self, broken: float) -> None:
        """Beside finite ones that have no room either, where clipping to the range would repair them for nobody."""

        def build(op: GraphBuilder, x: ir.Value) -> ir.Value:
            weights = np.eye(HIDDEN, dtype=np.float32)
            weights[0, :2] = broken, 1e5
            return op.MatMul(x, op.constant(weights, "weight"))

        model = network(build)
        half, _ = converted(model)
        with pytest.raises(ExportError, match="weights 'stonnx_weight_0' are NaN or infinite"):
            check_finite(half)


class TestExport:
    """``stonnx export --dtype fp16``, from checkpoint to vectors."""

    @pytest.fixture(scope="class")
    @staticmethod
    def overflowing_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """As EmbeddingGemma's: values of a layer are beyond 65,504, and those behind it are not."""
        directory = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("overflowing") / "tiny")
        file = next(directory.rglob("model.safetensors"))
        weights = load_file(file)
        for name in weights:
            if "layer.0.intermediate.dense" in name:
                weights[name] = weights[name] * np.float32(1e5)
            if name.endswith("layer.0.output.dense.weight"):
                weights[name] = weights[name] * np.float32(1e-5)
        save_file(weights, file, metadata={"format": "pt"})
        return directory

    def test_the_bundle(
        self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, traced_once: TracedOnce
    ) -> None:
        bundle = export(tiny_checkpoint, tmp_path / "bundle", dtype="fp16")
        manifest = read_manifest(bundle)
        assert (manifest.recipe, manifest.precision, manifest.kept) == ("fp16", "float16", ())
        rewrites = dict(manifest.rewrites)
        assert rewrites["attention_lengths"] == rewrites["plain_attention"] == 2
        assert rewrites["float16"] > 40
        fidelity = manifest.fidelity
        assert fidelity is not None
        assert fidelity.tolerance == RECIPES["fp16"].tolerance["embedding"]
        assert 0 < fidelity.max_abs_difference < 0.01
        assert fidelity.cosine_min >= 0.9999
        assert manifest.probe is not None
        assert manifest.probe.cosine_min == RECIPES["fp16"].probe_cosine
        sizes = [(path / "model.onnx").stat().st_size for path in (bundle, tiny_bundle)]
        assert sizes[0] < 0.8 * sizes[1]  # so small a network has more names than weights
        card = (bundle / "README.md").read_text(encoding="utf-8")
        assert "measured on the CPU, where onnxruntime computes half precision in float32" in card
        assert "In float32" not in card.replace("in float32", "")
        model, expected = stonnx.SentenceTransformer(bundle), stonnx.SentenceTransformer(tiny_bundle)
        assert np.vecdot(model.encode(sentences()), expected.encode(sentences())).min() >= 0.9999

    def test_its_graph_as_a_gpu_computes_it(
        self, tiny_checkpoint: Path, tmp_path: Path, traced_once: TracedOnce, tiny_feeds: Feeds
    ) -> None:
        bundle = export(tiny_checkpoint, tmp_path / "bundle", dtype="fp16")
        feeds = tiny_feeds(BATCH)
        expected = stonnx.SentenceTransformer(bundle)._engine.route().session.run(["sentence_embedding"], feeds)[0]
        assert np.vecdot(as_on_a_gpu(bundle / "model.onnx", feeds), expected).min() >= 0.9999

    def test_what_overflows_stays_in_float32(
        self,
        overflowing_checkpoint: Path,
        tmp_path: Path,
        tiny_feeds: Feeds,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.DEBUG, "stonnx"):
            bundle = export(overflowing_checkpoint, tmp_path / "bundle", dtype="fp16")
        manifest = read_manifest(bundle)
        # The product, its bias, GELU and the product behind it; all else has room.
        assert 3 <= len(manifest.kept) <= 5
        half = ir.load(bundle / "model.onnx")
        assert types(half, "Gelu") == [FLOAT, HALF]
        card = (bundle / "README.md").read_text(encoding="utf-8")
        assert "half precision has no room for values this large: the operators `" in card
        assert all(f"`{name}`" in card for name in manifest.kept)
        declined = [
            record.getMessage() for record in caplog.records if record.getMessage().startswith("float16 declined")
        ]
        assert len(declined) == len(manifest.kept)
        assert "half precision has 65,504 at most" in declined[0]
        feeds = tiny_feeds(BATCH)
        expected = stonnx.SentenceTransformer(bundle)._engine.route().session.run(["sentence_embedding"], feeds)[0]
        assert np.vecdot(as_on_a_gpu(bundle / "model.onnx", feeds), expected).min() >= 0.9999

    def test_without_ranges_the_overflow_would_be_exported(
        self, overflowing_checkpoint: Path, tmp_path: Path, tiny_feeds: Feeds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fidelity report, made on the CPU, says that all is well."""
        monkeypatch.setattr("stonnx_export.fp16.half_range.largest_values", lambda model, _: unmeasured(model))
        bundle = export(overflowing_checkpoint, tmp_path / "bundle", dtype="fp16")
        assert not np.isfinite(as_on_a_gpu(bundle / "model.onnx", tiny_feeds(BATCH))).all()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name",
        [
            "all-mpnet-base-v2",
            pytest.param("nomic-ai/modernbert-embed-base", marks=pytest.mark.slow),
            pytest.param("Qwen/Qwen3-Embedding-0.6B", marks=pytest.mark.slow),
            pytest.param("google/embeddinggemma-300m", marks=pytest.mark.slow),
            pytest.param("minishlab/potion-base-8M", marks=pytest.mark.slow),
            pytest.param("naver/splade-cocondenser-ensembledistil", marks=pytest.mark.slow),
            pytest.param("opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill", marks=pytest.mark.slow),
            "cross-encoder/nli-roberta-base",
        ],
    )
    def test_models_of_the_table(
        self, name: str, tmp_path: Path, shared_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, folder = row(name), shared_directory / "zoo"
        checkpoint = build_checkpoint(model, folder)
        original = CachedOriginal(checkpoint, model, folder)
        monkeypatch.setattr(load, "_load_original", lambda _: original)
        bundle = export(checkpoint, tmp_path / "bundle", dtype="fp16", name=name)
        manifest = read_manifest(bundle)
        assert manifest.rewrites["float16"] > 0
        assert manifest.kept == ()
        assert manifest.fidelity is not None
        assert manifest.fidelity.cosine_min >= 0.9999
        loaded = getattr(stonnx, TASKS[model.task].class_name)(bundle, threads=1)
        assert loaded.info.precision == "float16"
