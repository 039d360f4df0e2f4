"""The size of int8: in every architecture all weights that are large become 8 bits, and nothing is stored twice.

The whole bundle of all-MiniLM-L6-v2 is measured in test_int8.py. Models of the table are too small for that: names,
norms and the tokenizer are most of their bytes. So here it is the bytes of the weights that are counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from zoo import build_checkpoint, row
from zoo.exported import CachedOriginal

from stonnx_export import RECIPES, pipeline
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.int8 import tables
from stonnx_export.int8.scales import Quantization

# Of a weight with K inputs, a scale of 4 bytes comes with K bytes; 64 is the fewest that a model of the table has.
_LARGEST_SHARE = 0.28
_LARGE = 4096
# Matrices that stay: those of heads, which work on one vector for each text. All others become 8 bits.
HEADS = {
    "all-mpnet-base-v2": 0,
    "minishlab/potion-base-8M": 0,
    # One table is both the embeddings and the vocabulary of the head.
    "naver/splade-v3-distilbert": 0,
    "nomic-ai/modernbert-embed-base": 0,
    "Qwen/Qwen3-Embedding-0.6B": 0,
    "google/embeddinggemma-300m": 2,
    "distiluse-base-multilingual-cased-v1": 1,
    "cross-encoder/nli-roberta-base": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_weights_become_a_quarter(name: str, shared_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tables are quantized from 1 MB on, which those of the published models have, and those of the zoo have not.
    monkeypatch.setattr(tables, "_SMALLEST", _LARGE)
    model, folder = row(name), shared_directory / "zoo"
    directory = build_checkpoint(model, folder)
    checkpoint, original = read_checkpoint(directory, model.task), CachedOriginal(directory, model, folder)
    for route in checkpoint.routes:
        graph = original.graph(route)
        pipeline._build(graph, checkpoint, route, original, RECIPES["int8"])
        quantization = pipeline._calibrate(
            Quantization, graph, checkpoint, route, original, None, lambda done, total: None
        )
        quantized, _, _ = quantization.apply()
        before, after = arrays(graph), arrays(quantized)
        large = [array for array in after.values() if array.dtype == np.float32 and is_matrix(array)]
        assert len([array for array in large if array.size >= _LARGE]) == HEADS[name]
        # What is in both graphs: heads, biases, norms.
        common = {key for key in before.keys() & after.keys() if before[key].dtype == after[key].dtype}
        sizes = [sum(array.nbytes for key, array in one.items() if key not in common) for one in (before, after)]
        assert sizes[0] > 400_000, "there has to be something to save"
        assert sizes[1] <= _LARGEST_SHARE * sizes[0]


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    """The weights of a graph that something reads."""
    values = model.graph.initializers.values()
    return {str(value.name): value.const_value.numpy() for value in values if value.uses()}


def is_matrix(array: np.ndarray) -> bool:
    return array.ndim == 2 and min(array.shape) > 1
