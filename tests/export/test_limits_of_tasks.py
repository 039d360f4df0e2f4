"""query_length and document_length: dense and sparse models cut queries and documents at limits of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

import stonnx
from stonnx_export import export

pytestmark = pytest.mark.needs("sentence-transformers", "6", "limits of tasks")

TEXTS = ["", "flute", "rain " * 12, "He drove to the stadium in the rain. " * 20]


def with_limits(checkpoint: Path, directory: Path, **limits: int) -> Path:
    shutil.copytree(checkpoint, directory)
    file = directory / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | limits))
    return directory


def check(ours: Any, original: Any, **options: Any) -> None:
    for method in ("encode", "encode_query", "encode_document"):
        rows = [np.asarray(getattr(original, method)([text], **options)) for text in TEXTS]
        found = np.asarray(getattr(ours, method)(TEXTS, **options))
        np.testing.assert_allclose(found, np.concatenate(rows), atol=1e-5, err_msg=method)


@pytest.mark.parametrize("limits", [{"query_length": 8}, {"query_length": 8, "document_length": 20}])
def test_dense_vectors(tiny_checkpoint: Path, tmp_path: Path, limits: dict[str, int]) -> None:
    checkpoint = with_limits(tiny_checkpoint, tmp_path / "checkpoint", **limits)
    ours = stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle"))
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    check(ours, original)
    widths = {task: ours.preprocess(TEXTS, task=task)["input_ids"].shape[1] for task in ("query", "document")}
    assert widths == {"query": 8, "document": limits.get("document_length", 40)}
    # Another limit of the model leaves those of the tasks as they are.
    ours.max_seq_length = original.max_seq_length = 16
    check(ours, original)
    with pytest.raises(stonnx.TextTooLongError, match="8"):
        ours.encode_query(TEXTS, too_long="error")


def test_routes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts = [Transformer(str(tiny_checkpoint), query_length=8), Transformer(str(tiny_checkpoint), document_length=20)]
    chains = {"query": [parts[0], Pooling(32, "cls")], "document": [parts[1], Pooling(32, "mean")]}
    model = sentence_transformers.SentenceTransformer(modules=[Router(chains), Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    check(stonnx.SentenceTransformer(export(tmp_path / "saved", tmp_path / "bundle")), model)


def test_an_onnx_file_has_no_limits_of_tasks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = with_limits(tiny_checkpoint, tmp_path / "checkpoint", query_length=8)
    (checkpoint / "model.onnx").write_bytes(b"")
    with pytest.raises(stonnx.UnsupportedError, match=r"have query_length.*--source torch"):
        export(checkpoint, tmp_path / "bundle", source="onnx")
