"""processing_kwargs of a checkpoint: arguments of the tokenizer, followed as sentence-transformers follows them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

import stonnx
from stonnx_export import export

pytestmark = pytest.mark.needs("sentence-transformers", "6", "processing_kwargs")

TEXTS = ["", "flute", "rain " * 80]


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ({"text": {"max_length": 12}}, 12),
        ({"text": {"max_length": 12}, "common": {"max_length": 10, "padding": "max_length"}}, 10),
        ({"text": {"truncation": True, "padding_side": "left", "return_tensors": "pt"}}, 40),
    ],
)
def test_results_equal_the_original(tiny_checkpoint: Path, tmp_path: Path, value: Any, tokens: int) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    file = checkpoint / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processing_kwargs": value}))
    ours = stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle"))
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    # One at a time: if the original pads on the left, the position of a word depends on the texts beside its own.
    expected = np.stack([original.encode(text) for text in TEXTS])
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    assert ours.preprocess(TEXTS[2:])["input_ids"].shape == (1, tokens)


def test_max_length_wins_over_the_limits_of_tasks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    file = checkpoint / "sentence_bert_config.json"
    settings = {"processing_kwargs": {"text": {"max_length": 12}}, "query_length": 8, "document_length": 20}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    ours = stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle"))
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    for method in ("encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(ours, method)(TEXTS), getattr(original, method)(TEXTS), atol=1e-5)
