"""The pass that takes SPLADE's maximum in pieces of the vocabulary: it fires, it is exact, it declines."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.heads import graft
from stonnx_export.passes import splade_chunks

HIDDEN, VOCABULARY = 8, 50


def build(*, tied: bool = True) -> ir.Model:
    """states [B, S, H] and mask to SPLADE weights, with a random table and bias."""
    generator = np.random.default_rng(0)
    states = ir.Value(
        name="states", shape=ir.Shape(("batch", "sequence", HIDDEN)), type=ir.TensorType(ir.DataType.FLOAT)
    )
    mask = ir.Value(name="attention_mask", shape=ir.Shape(("batch", "sequence")), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph([states, mask], [], nodes=[], opset_imports={"": OPSET}, name="splade")
    op = GraphBuilder(graph)
    table = op.constant(generator.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32))
    bias = op.constant(generator.normal(size=VOCABULARY).astype(np.float32))
    weight = op.Transpose(table, perm=[1, 0]) if tied else op.Mul(op.Transpose(table, perm=[1, 0]), op.ReduceMax(table))
    logits = op.Add(op.MatMul(states, weight), bias)
    op.name_output(logits, "logits", ("batch", "sequence", VOCABULARY))
    graph.outputs.append(logits)
    model = ir.Model(graph, ir_version=11)
    graft.graft(model, (modules.Transformer(), modules.SpladePooling("max", twice=False)), task="sparse")
    return model


@pytest.mark.parametrize("chunk", [7, 25, 49])
def test_pieces_give_the_same_weights(run, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(splade_chunks, "CHUNK", chunk)
    generator = np.random.default_rng(1)
    states = generator.normal(size=(4, 6, HIDDEN)).astype(np.float32)
    # The last text has no token.
    mask = (np.arange(6) < np.array([[6], [1], [3], [0]])).astype(np.int64)
    expected = run(build(), states=states, attention_mask=mask)[0]
    model = build()
    assert splade_chunks.run(model).fired == 1
    assert sum(node.op_type == "MatMul" for node in model.graph) == -(-VOCABULARY // chunk)
    result = run(model, states=states, attention_mask=mask)[0]
    assert np.abs(expected - result).max() <= 1e-6
    assert not result[3].any()
    assert result[:3].any(axis=1).all()
    # The padding is not just ignored by chance: unmasked, the result is another.
    assert np.abs(expected - run(model, states=states, attention_mask=np.ones_like(mask))[0]).max() > 1e-2


def test_a_small_vocabulary_stays_whole() -> None:
    assert splade_chunks.run(build()).fired == 0


def test_it_says_why_it_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade_chunks, "CHUNK", 7)
    result = splade_chunks.run(build(tied=False))
    assert result.fired == 0
    assert "constant table" in result.declined[0]
