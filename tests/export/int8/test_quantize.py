"""int8 of a graph as a whole: layers that it harms stay in float32 until the tolerance holds, or nothing is written."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import TracedOnce
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from small_graphs import VOCABULARY, encoder, nodes_of, run_as_it_is
from zoo import build_checkpoint, row

import stonnx
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._errors import ExportError, FidelityError, InvalidArgumentError
from stonnx_export import RECIPES, export, pipeline
from stonnx_export.calibration import tokens
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import products as products_module
from stonnx_export.int8 import quantization as quantization_module
from stonnx_export.int8.products import groups
from stonnx_export.int8.quantization import Quantization
from stonnx_export.originals import load

SEQUENCES = [np.random.default_rng(seed).integers(0, VOCABULARY, 12).tolist() for seed in range(8)]
GROUPS_OF_A_LAYER = 4


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here have fewer weights than are worth it."""
    monkeypatch.setattr(products_module, "_SMALLEST", 1024)


def make_hostile(bias: np.ndarray, following: np.ndarray) -> None:
    """One neuron that is always on, far stronger than all others, and hardly read.

    The scale of 8 bits follows it, and what the other neurons say is lost.
    """
    bias[0] = 1000
    following[0] *= 1e-4


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
        monkeypatch.setattr(quantization_module, "_STATIC_NOISE", 1.0)
        every = Quantization(model, SEQUENCES)
        built, results, safe = every.apply()
        scales = [node.inputs[1] for node in nodes_of(built, "QuantizeLinear")]
        assert [scale.is_initializer() for scale in scales] == [True, False, True, False] * 3
        assert (results[-1].name, results[-1].fired) == ("static_scales", 6)
        assert results[1].fired == 0  # the products have taken the biases in front of GELU
        assert {str(scale.name) for scale in scales if scale.is_initializer()} < set(safe)
        norms = nodes_of(model, "LayerNormalization")
        peaks = [
            np.concatenate([a[str(norm.outputs[0].name)] for a in tokens(model, [norm.outputs[0]], SEQUENCES)])
            for norm in norms[:-1]
        ]
        smoothed = [constant_array(norm.inputs[1]) for norm in nodes_of(built, "LayerNormalization")]
        for scale, values, norm, gamma in zip(scales[::2], peaks, norms, smoothed, strict=False):
            even = np.abs(values).max(axis=0) * gamma / constant_array(norm.inputs[1])
            assert 127 * float(constant_array(scale)) == pytest.approx(float(even.max()), rel=1e-4)
        monkeypatch.setattr(quantization_module, "_STATIC_NOISE", 0.0)
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
        monkeypatch.setattr(quantization_module, "_STATIC_NOISE", 1.0)
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
            monkeypatch.setattr(quantization_module, "_MOST_INPUTS", limit)
            monkeypatch.setattr(quantization_module, "_MOMENTS", memory)
            built, _, _ = Quantization(model, SEQUENCES).apply()
            found[limit, memory] = [constant_array(node.inputs[1]) for node in nodes_of(built, "MatMulIntegerToFloat")]
        for one, other in zip(found[64, 1], found[64, 1 << 29], strict=True):
            np.testing.assert_array_equal(one, other)
        same = [np.array_equal(*pair) for pair in zip(found[32, 1 << 29], found[64, 1], strict=True)]
        # The moments of the hostile layer are those of one neuron, which goes together with nothing.
        assert same == [*[True] * 5, False, *[True] * 6, *[True] * 5, False]

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


@pytest.fixture(scope="module")
def hostile_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a hostile neuron in its first layer."""
    directory = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("hostile") / "hostile")
    file = directory / "model.safetensors"
    weights = {name: tensor.numpy().copy() for name, tensor in load_file(file).items()}
    make_hostile(weights["encoder.layer.0.intermediate.dense.bias"], weights["encoder.layer.0.output.dense.weight"].T)
    save_file({name: torch.from_numpy(array) for name, array in weights.items()}, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def hostile_original(hostile_checkpoint: Path) -> TracedOnce:
    return TracedOnce(read_checkpoint(hostile_checkpoint))


@pytest.fixture
def hostile_once(hostile_original: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> TracedOnce:
    """Every export in this test takes the hostile original, and with it the graph that was traced before."""
    monkeypatch.setattr(load, "_load_original", lambda checkpoint: hostile_original)
    return hostile_original


def with_tolerance(monkeypatch: pytest.MonkeyPatch, **bounds: float) -> None:
    """int8 with other bounds for vectors. Random weights of so few channels lose more than trained ones."""
    recipe = RECIPES["int8"]
    tolerance = {"embedding": {"invariance_cosine": 0.999999, **bounds}}
    monkeypatch.setitem(RECIPES, "int8", dataclasses.replace(recipe, tolerance=tolerance))


class TestMixedPrecision:
    @pytest.fixture
    def names(self, hostile_once: TracedOnce) -> list[str]:
        """The groups of the network, in the order of the graph."""
        graph = hostile_once.graph("default")
        pipeline._build(graph, hostile_once._checkpoint, "default", hostile_once, RECIPES["int8"])
        return [group.name for group in groups(graph)]

    def test_what_harms_stays_in_float32(
        self, hostile_checkpoint: Path, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_tolerance(monkeypatch, cosine_mean=0.9)
        everything = read_manifest(export(hostile_checkpoint, tmp_path / "loose", dtype="int8"))
        assert everything.kept == ()
        assert everything.fidelity.cosine_mean < 0.99
        with_tolerance(monkeypatch, cosine_mean=0.99)
        bundle = export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        manifest = read_manifest(bundle)
        assert len(names) == 2 * GROUPS_OF_A_LAYER
        assert manifest.kept == (names[3],)  # the product that reads the hostile neuron
        assert manifest.fidelity.cosine_mean >= 0.99
        assert (manifest.precision, manifest.recipe) == ("int8", "int8")
        check_files(bundle, manifest)
        self.assert_kept(bundle, manifest)
        text = "Nothing about this is hostile."
        expected = SentenceTransformer(str(hostile_checkpoint), device="cpu").encode(text)
        models = [stonnx.SentenceTransformer(path, threads=1) for path in (bundle, tmp_path / "loose")]
        cosines = [model.encode(text) @ expected for model in models]
        assert cosines[0] > 0.98
        assert cosines[1] < cosines[0]

    @staticmethod
    def assert_kept(bundle: Path, manifest: Manifest) -> None:
        products = {str(node.outputs[0].name) for node in nodes_of(ir.load(bundle / "model.onnx"), "MatMul")}
        assert set(manifest.kept) <= products
        card = (bundle / "README.md").read_text(encoding="utf-8")
        assert f"In float32 for accuracy: the matrix products `{'`, `'.join(manifest.kept)}`." in card

    def test_the_first_share_that_is_enough(
        self, hostile_checkpoint: Path, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bound between what an eighth and what a half of the layers reach."""
        reached = []
        for bound in (0.99, 0.0):
            with_tolerance(monkeypatch, cosine_mean=bound)
            reached.append(read_manifest(export(hostile_checkpoint, tmp_path / str(bound), dtype="int8")))
        first = reached[0].fidelity.cosine_mean
        with_tolerance(monkeypatch, cosine_mean=first + (1 - first) / 10)
        manifest = read_manifest(export(hostile_checkpoint, tmp_path / "bundle", dtype="int8"))
        assert len(manifest.kept) in (2, 4)
        assert manifest.kept[0] == names[3]
        assert manifest.fidelity.cosine_mean > first

    def test_half_is_not_enough(
        self,
        hostile_checkpoint: Path,
        names: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with_tolerance(monkeypatch, cosine_min=1.1)
        with pytest.raises(FidelityError) as raised:
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8", show_progress=True)
        message = str(raised.value)
        assert "lowest cosine 0.9" in message
        assert "Nothing was written." in message
        assert f"Half of its layers were kept in float32 already; the one that loses most is {names[3]}." in message
        assert "--dtype fp32" in message
        assert "--calibrate FILE" in message
        assert not list(tmp_path.iterdir())
        stages = [line.partition(" ...")[0] for line in capsys.readouterr().err.splitlines()]
        tried = ["writing the files", "verifying against the original"]
        static = [*tried, "giving every token a scale of its own"]
        assert stages[3:] == ["calibrating", *static, *[*tried, "finding the layers that lose most"] * 4]

    @pytest.mark.parametrize("terminal", [True, False])
    def test_progress_of_long_stages(
        self,
        hostile_checkpoint: Path,
        names: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        terminal: bool,
    ) -> None:
        """On a terminal only: in a file there would be a line of it."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        with_tolerance(monkeypatch, cosine_mean=0.99)
        export(hostile_checkpoint, tmp_path / "bundle", dtype="int8", show_progress=True)
        written = capsys.readouterr().err
        count = len(names)
        for stage in ("calibrating", "finding the layers that lose most"):
            line = next(line for line in written.split("\n") if line.startswith(stage))
            steps = [f"{stage} ... {done} of {count}" for done in range(1, count + 1)]
            *shown, last = [part.rstrip() for part in line.split("\r")]
            assert shown == ([f"{stage} ...", *steps] if terminal else [])
            assert re.fullmatch(rf"{stage} \.\.\. [0-9.]+ s", last)

    def test_more_precision_is_tried_for_figures_only(
        self, hostile_checkpoint: Path, hostile_once: TracedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not for a tokenizer that differs, which it would not help."""
        monkeypatch.setattr(hostile_once, "token_ids", lambda *_: [1, 2, 3])
        monkeypatch.setattr(Quantization, "keep_more", lambda *_: pytest.fail("tried"))
        with pytest.raises(FidelityError, match="tokenizer differs") as raised:
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        assert "layers" not in str(raised.value)
        assert not list(tmp_path.iterdir())

    def test_calibrated_with_texts(
        self, hostile_checkpoint: Path, hostile_once: TracedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their ranges are others, and so are the weights."""
        seen = []
        ranges = quantization_module.channel_ranges
        monkeypatch.setattr(quantization_module, "channel_ranges", lambda *args: seen.append(args[2]) or ranges(*args))
        with_tolerance(monkeypatch, cosine_mean=0.9)
        lines = [f"A man is playing {number} flutes in the park." for number in range(20)]
        (tmp_path / "texts.txt").write_text("\n".join(lines))
        given = export(hostile_checkpoint, tmp_path / "a", dtype="int8", calibrate=tmp_path / "texts.txt")
        without = export(hostile_checkpoint, tmp_path / "b", dtype="int8")
        assert seen[0] == [hostile_once.token_ids("default", line) for line in lines]
        # Static scales hold random tokens as well.
        assert [len(sequences) for sequences in seen[1:]] == [64, 64]
        assert (given / "model.onnx").read_bytes() != (without / "model.onnx").read_bytes()


class TestDamagedWeights:
    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_table_with_one_number_that_is_none(self, tmp_path: Path, value: float, dtype: str) -> None:
        """In a row that no text of the verification may ever read."""
        model = shutil.copytree(build_checkpoint(row("minishlab/potion-base-8M"), tmp_path / "zoo"), tmp_path / "model")
        weights = load_file(model / "model.safetensors")
        weights["embeddings"][1234, 5] = value
        save_file(weights, model / "model.safetensors")
        with pytest.raises(ExportError, match=r"^1 of the 116,672 weights '.*embeddings.*' are NaN or infinite"):
            export(model, tmp_path / "new" / "bundle", dtype=dtype)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "zoo"]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_network(
        self,
        hostile_checkpoint: Path,
        hostile_once: TracedOnce,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        value: float,
    ) -> None:
        graph = hostile_once.graph("default").clone()
        weight = nodes_of(graph, "MatMul")[5].inputs[1]
        array = constant_array(weight).copy()
        array[3, 4] = value
        weight.const_value = ir.tensor(array, name=weight.name)
        monkeypatch.setattr(hostile_once, "graph", lambda route: graph)
        with pytest.raises(ExportError, match=f"1 of the 2,048 weights {weight.name!r} are NaN or infinite"):
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        assert not list(tmp_path.iterdir())

    def test_a_mask_is_no_damage(self) -> None:
        from stonnx_export.graph.builder import GraphBuilder
        from stonnx_export.graph.save import check_finite

        model = encoder()
        op = GraphBuilder(model.graph)
        op.constant(np.triu(np.full((9, 9), -np.inf, dtype=np.float32), 1), "causal")
        op.constant(np.array(np.inf, dtype=np.float32), "bound")
        op.constant(np.array([np.iinfo(np.int64).max] * 70), "ends")
        check_finite(model)
        op.constant(np.full(100, -np.inf, dtype=np.float32) + np.eye(1, 100, dtype=np.float32)[0], "all")
        check_finite(model)
        op.constant(np.array([1, -np.inf], dtype=np.float32), "weights")
        with pytest.raises(ExportError, match="1 of the 2 weights 'stonnx_weights_0'"):
            check_finite(model)


# An export in a process of its own, without PyTorch, killed while it calibrates, or while it looks for the layers
# that lose most because its bundle was refused.
KILLED = """
import os, signal, sys
import onnx_ir as ir, tokenizers
from stonnx_export import export, pipeline
from stonnx_export.int8 import quantization as quantize
from stonnx_export.originals import load
from stonnx_export.originals.original import LoadReport, OriginalTokenizer
from stonnx_export.int8 import products as quantize_products
from stonnx_export.verify.figures import ToleranceError

stage, graph, tokenizer, checkpoint, target = sys.argv[1:]

class FromFile:
    loaded = LoadReport()
    def outputs_as_loaded(self, *_):
        return None
    def graph(self, route):
        return ir.load(graph)
    def tokenizer(self, route):
        return OriginalTokenizer(tokenizers.Tokenizer.from_file(tokenizer), 40, 0, 0, "right", (), True)

def refuse(*arguments, **options):
    raise ToleranceError("too far")

quantize_products._SMALLEST = 1024
load._load_original = lambda checkpoint: FromFile()
pipeline.verify_fidelity = refuse
owner = quantize.Quantization if stage == "_errors" else quantize
setattr(owner, stage, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
export(checkpoint, target, dtype="int8")
"""


class TestAllOrNothing:
    """What tests/export/test_pipeline.py shows for fp32, for the steps that int8 adds."""

    @pytest.fixture(autouse=True)
    @staticmethod
    def _retries(hostile_once: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
        with_tolerance(monkeypatch, cosine_mean=0.99)

    @pytest.mark.parametrize(
        ("step", "error"),
        [
            ("_calibrate", KeyboardInterrupt()),
            ("_quantize", RuntimeError("boom")),
            ("keep_more", KeyboardInterrupt()),
            ("clear", RuntimeError("boom")),
            ("second _quantize", OSError(errno.ENOSPC, "No space left on device")),
        ],
        ids=str,
    )
    def test_a_failure_leaves_nothing(
        self, hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        calls = []

        def fail(*arguments: Any) -> Any:
            calls.append(step)
            if step.startswith("second") and len(calls) == 1:
                return original(*arguments)
            raise error

        owner, name = (Quantization, step) if step == "keep_more" else (pipeline, step.removeprefix("second "))
        original: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, fail)
        expected = ExportError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected, match=str(error.args[-1]) if error.args else None):
            export(hostile_checkpoint, tmp_path / "new" / "bundle", dtype="int8")
        assert calls
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("stage", ["channel_ranges", "_errors"])
    def test_killed(self, hostile_checkpoint: Path, hostile_original: TracedOnce, tmp_path: Path, stage: str) -> None:
        """What is left behind is hidden, is not a bundle, and goes with the next export."""
        ir.save(hostile_original.graph("default"), tmp_path / "traced.onnx")
        folder = tmp_path / "bundles"
        folder.mkdir()
        arguments = [stage, tmp_path / "traced.onnx", hostile_checkpoint / "tokenizer.json", hostile_checkpoint]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments), str(folder / "bundle")])
        assert process.wait(120) == -signal.SIGKILL
        (partial,) = (path.name for path in folder.iterdir() if path.is_dir())
        assert sorted(path.name for path in folder.iterdir()) == [partial, f"{partial}.lock"]
        with pytest.raises(stonnx.ModelNotFoundError):
            stonnx.SentenceTransformer(folder / "bundle", local_files_only=True)
        export(hostile_checkpoint, folder / "bundle", dtype="int8")
        assert [path.name for path in folder.iterdir()] == ["bundle"]


def test_unknown_recipes_name_this_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'int4' is not known\. Allowed: fp32, fp16, bf16, int8\."):
        export("no/such/model", tmp_path / "bundle", dtype="int4")
