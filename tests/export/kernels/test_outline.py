"""Blocks as operators for native kernels: which are found, what they say, and that without a kernel no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from fixture_types import TracedOnce
from small_graphs import HEADS, HIDDEN, INTERMEDIATE, encoder, nodes_of, random, shaped
from zoo import build_checkpoint, row

from stonnx_export import RECIPES, pipeline
from stonnx_export.calibration.measure import options
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.int8 import products as products_module
from stonnx_export.int8.scales import Quantization
from stonnx_export.kernels import functions, outline
from stonnx_export.kernels.bfloat16 import HalfWeights
from stonnx_export.passes import splade_chunks

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]

BATCHES = [(1,), (7, 2), (40, 1, 17)]
SEQUENCES = [[5, 9, 14, 3], [7, 7, 20]]


def outlined(model: ir.Model) -> tuple[ir.Model, outline.Outline]:
    """A copy with its blocks outlined."""
    copy = model.clone()
    copy.graph.sort()
    return copy, outline.run(copy, {"Float", "Int8"})


def same_bits(first: ir.Model, second: ir.Model, feeds: Mapping[str, np.ndarray]) -> bool:
    """Whether both give the same, without a kernel."""
    results = []
    for model in (first, second):
        session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options(), providers=["CPUExecutionProvider"]
        )
        known = {value.name for value in [*session.get_inputs(), *session.get_overridable_initializers()]}
        names = [value.name for value in session.get_outputs()]
        found = session.run(None, {name: array for name, array in feeds.items() if name in known})
        results.append(dict(zip(names, found, strict=True)))
    return results[0].keys() == results[1].keys() and all(
        array.tobytes() == results[1][name].tobytes() for name, array in results[0].items()
    )


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_module, "_SMALLEST", 1024)


def int8_of(model: ir.Model) -> ir.Model:
    quantized, _, _ = Quantization(model, SEQUENCES).apply()
    return quantized


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask": "bias"},
        {"mask": "none", "is_causal": 1},
        {"output_bias": False},
        {"activation": "Relu"},
        {"layers": 1},
    ],
    ids=str,
)
def test_no_bit_changes_without_a_kernel(dtype: str, settings: dict[str, Any], tiny_feeds: Feeds) -> None:
    model = encoder(**settings)
    if dtype == "int8":
        model = int8_of(model)
    copy, found = outlined(model)
    layers = settings.get("layers", 2)
    kind = {"fp32": "Float", "int8": "Int8"}[dtype]
    assert dict(found.blocks) == {f"Attention{kind}": layers, f"FeedForward{kind}": layers}
    assert not found.stock
    assert len(copy.graph) < len(model.graph)
    for lengths in BATCHES:
        assert same_bits(model, copy, tiny_feeds(lengths))


def test_what_a_block_says() -> None:
    copy, _ = outlined(encoder(scale=0.5))
    attention = next(node for node in copy.graph if node.op_type == "AttentionFloat")
    attributes = {name: attribute.value for name, attribute in attention.attributes.items()}
    assert attributes == pytest.approx(
        {"heads": HEADS, "kv_heads": HEADS, "head_size": HIDDEN // HEADS, "scale": 0.5, "epsilon": 1e-6}
    )
    inputs = dict(zip(formals(copy, attention), attention.inputs, strict=False))
    assert {name for name, value in inputs.items() if value is not None and not name.startswith("extra")} == {
        *("x", "lengths", "w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "w_o", "b_o", "post_gamma", "post_beta")
    }
    network = next(node for node in copy.graph if node.op_type == "FeedForwardFloat")
    assert network.attributes["activation"].as_string() == "gelu"
    inputs = dict(zip(formals(copy, network), network.inputs, strict=False))
    assert inputs["w_up"] is not None
    assert inputs["w_up"].const_value is not None
    assert list(inputs["w_up"].const_value.shape) == [HIDDEN, INTERMEDIATE]
    assert inputs["w_gate"] is None


def formals(model: ir.Model, node: ir.Node) -> list[str]:
    function = model.functions[(node.domain, node.op_type, "")]
    return [str(value.name) for value in function.inputs]


def test_replaceable_scalars_are_inputs(tiny_feeds: Feeds) -> None:
    """The runtime gives a graph other zero points and scales on a CPU that saturates, and bodies must follow."""
    model = encoder()
    quantized, _, safe = Quantization(model, SEQUENCES).apply()
    copy, _ = outlined(quantized)

    def run(graph: ir.Model) -> np.ndarray:
        settings = options()
        values = []
        for name, scalar in safe.items():
            array = np.array(scalar.value, dtype=scalar.dtype)
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
            settings.add_initializer(name, values[-1])
        source = ir.to_proto(graph).SerializeToString()
        session = onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        result: np.ndarray = session.run(None, dict(tiny_feeds((9, 4))))[0]
        return result

    assert safe
    np.testing.assert_array_equal(run(copy), run(quantized))
    assert not np.array_equal(run(copy), run_plain(copy, tiny_feeds((9, 4))))


def run_plain(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    source = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(source, options(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, dict(feeds))[0]
    return result


def test_layers_share_bodies() -> None:
    """So that a file grows by a body for each kind of layer, not for each layer."""
    copy, _ = outlined(encoder(layers=5))
    assert len(copy.functions) == 2
    quantized, _ = outlined(int8_of(encoder(layers=5)))
    assert len(quantized.functions) <= 4
    assert {function.name.partition("_")[0] for function in quantized.functions.values()} == {
        "AttentionInt8",
        "FeedForwardInt8",
    }


def test_a_product_outside_of_blocks_keeps_none_of_their_operators(tiny_feeds: Feeds) -> None:
    """All tokens share zero points, which are spread over the first block's tokens: that block is computed once."""

    def head(op: Any, tokens: ir.Value) -> ir.Value:
        weight = op.constant(random(np.random.default_rng(1), HIDDEN, HIDDEN))
        product = shaped(op.MatMul(shaped(op.Tanh(tokens), *(tokens.shape or ())), weight), *(tokens.shape or ()))
        return shaped(op.Tanh(product), *(tokens.shape or ()))

    model = int8_of(encoder(head))
    copy, found = outlined(model)
    assert found.blocks.total() == 4
    assert len(nodes_of(copy, "MatMulIntegerToFloat")) == 1
    assert not nodes_of(copy, "Attention")
    for lengths in BATCHES:
        assert same_bits(model, copy, tiny_feeds(lengths))


class TestDeclined:
    """What does not fit stays as it is, and the result says why."""

    def reasons(self, model: ir.Model) -> dict[str, int]:
        _, found = outlined(model)
        assert found.result.fired == sum(found.blocks.values())
        return dict(found.stock)

    def test_no_residual_connection(self) -> None:
        copy, found = outlined(encoder(residuals=False))
        assert not found.blocks
        assert not copy.functions

    def test_an_activation_that_no_kernel_has(self) -> None:
        reasons = self.reasons(encoder(activation="Tanh"))
        assert reasons == {"its product reads neither attention nor an activation": 2}

    def test_bounded_scores(self) -> None:
        assert list(self.reasons(encoder(softcap=5.0)).values()) == [2]

    def test_a_value_that_is_needed_elsewhere(self) -> None:
        def head(op: Any, tokens: ir.Value) -> ir.Value:
            inner = nodes_of(ir.Model(op.graph, ir_version=11), "Gelu")[-1].outputs[0]
            narrow = op.ReduceMean(inner, op.vector([2]), keepdims=1)
            return shaped(op.Add(tokens, narrow), *(tokens.shape or ()))

        reasons = self.reasons(encoder(head))
        assert any("is needed outside" in reason for reason in reasons)

    def test_mixed_precision(self) -> None:
        quantization = Quantization(encoder(), SEQUENCES)
        quantization.kept = (quantization._names[0],)
        _, found = outlined(quantization.apply()[0])
        assert dict(found.stock) == {"its products are of different precision: Float, Int8": 1}
        assert found.blocks.total() == 3

    def test_more_forms_than_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(functions, "MOST_BODIES", 1)
        model = int8_of(encoder(mask="bias"))
        copy, found = outlined(model)
        assert len(copy.functions) == 2
        assert all("more than 1 forms" in reason for reason in found.stock)


class TestZoo:
    """Models of the table. The last layer of rerankers and CLS pooling is computed for some tokens only."""

    @pytest.mark.parametrize(("dtype", "kind"), [("fp32", "Float"), ("bf16", "BFloat16")])
    def test_the_vocabulary_of_splade(
        self, dtype: str, kind: str, tmp_path: Path, tiny_feeds: Feeds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(splade_chunks, "CHUNK", 500)
        model = row("naver/splade-v3-distilbert")
        original = TracedOnce(read_checkpoint(build_checkpoint(model, tmp_path), model.task))
        graph = original.graph("default")
        pipeline._build(graph, original._checkpoint, "default", original, RECIPES[dtype])
        if dtype == "bf16":
            graph, _, _ = HalfWeights(graph, []).apply()
        graph.graph.sort()
        copy = graph.clone()
        found = outline.run(copy, RECIPES[dtype].outline)
        assert dict(found.blocks) == {f"Attention{kind}": 2, f"FeedForward{kind}": 2, f"Vocabulary{kind}": 1}
        assert not found.stock
        (node,) = nodes_of(copy, f"Vocabulary{kind}")
        # One table is both the embeddings and the vocabulary, and the file has it once.
        table = node.inputs[2]
        assert table is not None
        assert [value for value in copy.graph.initializers.values() if value.shape == table.shape] == [table]
        for lengths in BATCHES:
            assert same_bits(graph, copy, tiny_feeds(lengths))

    @pytest.mark.parametrize(
        ("name", "blocks"),
        [
            ("all-mpnet-base-v2", 4),
            ("BAAI/bge-small-en-v1.5", 4),
            ("nomic-ai/modernbert-embed-base", 8),
            ("Qwen/Qwen3-Embedding-0.6B", 4),
            pytest.param("all-MiniLM-L6-v2", 4, marks=pytest.mark.slow),
            pytest.param("cross-encoder/ms-marco-electra-base", 4, marks=pytest.mark.slow),
            pytest.param(
                "nomic-ai/nomic-embed-text-v1.5",
                4,
                marks=[pytest.mark.slow, pytest.mark.needs("transformers", "5", "nomic_bert")],
            ),
            pytest.param("paraphrase-distilroberta-base-v2", 4, marks=pytest.mark.slow),
            pytest.param("multi-qa-distilbert-cos-v1", 4, marks=pytest.mark.slow),
            pytest.param("paraphrase-multilingual-mpnet-base-v2", 4, marks=pytest.mark.slow),
            pytest.param("cross-encoder/nli-roberta-base", 4, marks=pytest.mark.slow),
            pytest.param("google/embeddinggemma-300m", 4, marks=pytest.mark.slow),
        ],
    )
    def test_int8(self, name: str, blocks: int, tmp_path: Path, tiny_feeds: Feeds) -> None:
        model = row(name)
        original = TracedOnce(read_checkpoint(build_checkpoint(model, tmp_path), model.task))
        checkpoint, graph = original._checkpoint, original.graph("default")
        pipeline._build(graph, checkpoint, "default", original, RECIPES["int8"])
        quantized, _, _ = pipeline._calibrate(
            Quantization, graph, checkpoint, "default", original, None, lambda *_: None
        ).apply()
        quantized.graph.sort()
        copy, found = outlined(quantized)
        assert found.blocks.total() == blocks
        assert not [node for node in copy.graph if node.op_type == "MatMulIntegerToFloat"] or found.stock
        for lengths in BATCHES:
            feeds = tiny_feeds(lengths)
            assert same_bits(quantized, copy, feeds)
            assert same_bits(quantized, copy, {**feeds, "token_limit": np.array([1])})
