"""int8 of networks with a few channels that are far larger than the others, as trained ones have and random ones lack.

Weights of the model table are changed so that the network in float32 stays the same: channels become ten times as
large where that costs nothing (smooth_channels, backwards), and the weights that read them a tenth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from small_graphs import run_as_it_is
from zoo import build_checkpoint, row

from stonnx_export import RECIPES, pipeline
from stonnx_export.calibration.measure import random_sequences
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import smooth_channels
from stonnx_export.int8.products import groups
from stonnx_export.int8.scales import Quantization
from stonnx_export.texts import sentences

OUTLIER = 10.0
# Times what int8 costs (1 - mean cosine) without the outliers; 1.05 and 1.33 were seen.
COSTS_AT_MOST = 1.5

# With RMSNorm and SwiGLU, and with LayerNorm and GeGLU: in front of the products, where nothing else reads them.
MODELS = ["Qwen/Qwen3-Embedding-0.6B", "nomic-ai/modernbert-embed-base"]


def with_outliers(model: ir.Model) -> tuple[ir.Model, int]:
    """The same network with two outliers among the channels of each input that can have them, and how many can."""
    model, changed, rng = model.clone(), 0, np.random.default_rng(0)
    for group in groups(model):
        channels = np.ones(int(group.input.shape[-1]))
        channels[rng.choice(len(channels), 2, replace=False)] = OUTLIER
        readers = {use.node for use in group.input.uses()}
        if not readers <= set(group.products):  # a residual connection would need a multiplication
            continue
        exponent = smooth_channels.exponent_of(group.products)
        scales = smooth_channels.smooth(model.graph, group.input, group.products, channels ** (-1 / exponent))
        if scales is None:
            continue
        for product in group.products:
            weight = constant_array(product.inputs[1])
            changed_weight = GraphBuilder(model.graph).constant(weight * scales[:, None], "weight")
            product.replace_input_with(1, changed_weight)
        changed += 1
    model.graph.sort()
    return model, changed


def vectors(model: ir.Model, sequences: list[list[int]]) -> np.ndarray:
    model = model.clone()
    model.graph.sort()
    rows = [
        run_as_it_is(model, input_ids=np.array([ids]), attention_mask=np.ones((1, len(ids)), np.int64))[0][0]
        for ids in sequences
    ]
    return np.stack(rows).astype(np.float64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_outliers_cost_little(name: str, shared_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row(name)
    checkpoint = read_checkpoint(build_checkpoint(model, shared_directory / "zoo"), model.task)
    original = TracedOnce(checkpoint)
    graph = original.graph("default")
    pipeline._build(graph, checkpoint, "default", original, RECIPES["int8"])
    tokenizer = original.tokenizer("default")
    texts = [encoding.ids for encoding in tokenizer.backend.encode_batch(sentences()[::6])]
    expected = vectors(graph, texts)
    harder, changed = with_outliers(graph)
    assert changed >= 2
    assert cosines(expected, vectors(harder, texts)).min() > 0.99999
    calibration = random_sequences(tokenizer, 64)[:24]
    without_outliers = cosines(expected, vectors(Quantization(graph, calibration).apply()[0], texts)).mean()
    smoothed = cosines(expected, vectors(Quantization(harder, calibration).apply()[0], texts)).mean()
    assert 1 - smoothed < COSTS_AT_MOST * (1 - without_outliers)
    # Without the smoothing, this test would say so.
    monkeypatch.setattr(smooth_channels, "smooth", lambda *arguments: None)
    plain = cosines(expected, vectors(Quantization(harder, calibration).apply()[0], texts)).mean()
    assert 1 - smoothed < 0.5 * (1 - plain)
