"""Writes small checkpoint directories in every layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.read import read_checkpoint

# The path of each class in checkpoints of before version 5.4, and from version 6 on.
LEGACY = "sentence_transformers.models."
PATHS = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "WeightedLayerPooling": (
        "sentence_transformers.sentence_transformer.modules.weighted_layer_pooling.WeightedLayerPooling"
    ),
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
    "SpladePooling": "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
    "SparseAutoEncoder": "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder",
}
BERT = {"model_type": "bert", "max_position_embeddings": 512, "architectures": ["BertModel"]}


# AttributeError, KeyError, SafetensorError and UnpicklingError come through instead of ExportError.
def write(directory: Path, *names: str, paths: str = "6.x", config: Mapping[str, Any] = BERT, **files: Any) -> Path:
    """A checkpoint with these modules behind a Transformer, and with files: ``{"1_Pooling/config.json": {...}}``.

    The folder of a module is ``INDEX_NAME``. A name with a dot is a whole path, the class of which is anything.
    """
    rows = []
    for index, name in enumerate(("Transformer", *names)):
        reference = name if "." in name else PATHS[name] if paths == "6.x" else LEGACY + name
        rows.append({"idx": index, "name": str(index), "path": f"{index}_{name}" if index else "", "type": reference})
    written = {"modules.json": rows, "config.json": config, **files}
    for name, content in written.items():
        if content is None:
            continue
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    save_file({"weight": torch.ones(2)}, directory / "model.safetensors")
    return directory


def saved(directory: Path, name: str, module: Any, **options: Any) -> Path:
    """A checkpoint with one module behind the Transformer, in the files that the module itself writes."""
    (directory / f"1_{name}").mkdir(parents=True)
    module.save(str(directory / f"1_{name}"), **options)
    return write(directory, name)


def only(directory: Path) -> Any:
    """The one module behind the Transformer."""
    (transformer, module) = read_checkpoint(directory).chain
    assert isinstance(transformer, modules.Transformer)
    return module
