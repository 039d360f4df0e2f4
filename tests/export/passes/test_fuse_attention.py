"""Attention that arrives as products and softmax: found, the same, and left alone where it is something else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import MPNetConfig, MPNetModel

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.originals.trace import trace
from stonnx_export.passes import attention_lengths, fuse_attention, shapes

LAYERS = 2
BATCHES = [(1,), (6,), (7, 2), (40, 1, 17, 40)]


@pytest.fixture(scope="module")
def mpnet() -> ir.Model:
    """The graph of a tiny random MPNet, whose attention has relative positions. Not to be changed: clone it."""
    config = MPNetConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trace(MPNetModel(config).eval(), token_types=False)
    shapes.run(model)
    return model


def outputs(model: ir.Model, lengths: tuple[int, ...]) -> list[np.ndarray]:
    model.graph.sort()
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, np.random.default_rng(0).integers(5, 50, mask.shape), 1)
    (tokens,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("with_lengths", [False, True], ids=["with a mask", "with lengths"])
def test_the_same_vectors(mpnet: ir.Model, lengths: tuple[int, ...], with_lengths: bool) -> None:
    fused = mpnet.clone()
    assert fuse_attention.run(fused).fired == LAYERS
    if with_lengths:
        assert attention_lengths.run(fused).fired == LAYERS
    operators = Counter(node.op_type for node in fused.graph)
    assert (operators["Attention"], operators["Softmax"]) == (LAYERS, 0)
    for before, after in zip(outputs(mpnet.clone(), lengths), outputs(fused, lengths), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_positions_stay_and_padding_becomes_lengths(mpnet: ir.Model) -> None:
    fused = mpnet.clone()
    fuse_attention.run(fused)
    attention_lengths.run(fused)
    for node in fused.graph:
        if node.op_type == "Attention":
            bias, lengths = node.inputs[3], node.inputs[6]
            assert bias is not None
            assert bias.shape is not None
            assert bias.shape[0] == 1, "the bias of positions is the same for every text"
            assert lengths is not None


def test_scores_that_are_used_elsewhere_stay(mpnet: ir.Model) -> None:
    model = mpnet.clone()
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    model.graph.outputs.append(softmax.outputs[0])
    assert fuse_attention.run(model).fired == LAYERS - 1


def test_softmax_of_something_else_stays() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    value = ir.Value(name="x", shape=ir.Shape(("batch", 4)), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    result = GraphBuilder(graph).Softmax(value, axis=-1)
    graph.outputs.append(result)
    assert fuse_attention.run(ir.Model(graph, ir_version=10)).fired == 0
