"""Limits that are longer than the network's positions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from fixture_types import Build

import stonnx
from stonnx_export import export
from stonnx_export.originals import load, text_limits

# A table of 40, of which RoBERTa leaves out those up to its padding token, here 0.
POSITIONS, USED = 40, 39


def roberta(build_small: Build, max_length: int | None, **files: Any) -> Path:
    directory = build_small("roberta", max_length, max_position_embeddings=POSITIONS, pad_token_id=0)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def words(count: int) -> str:
    return " ".join(["a"] * count)


@pytest.mark.parametrize("written", ["nothing", "the table", "max_seq_length"])
def test_roberta(build_small: Build, written: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever says so, the original fails for a text of as many tokens as the table has rows."""
    files = {"sentence_bert_config": {"max_seq_length": POSITIONS}} if written == "max_seq_length" else {}
    checkpoint = roberta(build_small, None if written == "nothing" else POSITIONS, **files)
    model = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    assert model.max_seq_length == POSITIONS
    model.encode(words(USED - 2))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        model.encode(words(USED - 1))
    with caplog.at_level(logging.WARNING, "stonnx"):
        read, original = load.open_checkpoint(checkpoint, None, "torch")
    assert f"allow {POSITIONS} tokens, and it has positions for {USED}" in caplog.text
    assert len(original.token_ids("default", words(100))) == USED
    assert text_limits.text_limit(read, "default", original) == USED


def test_the_bundle_cuts_at_the_last_position(build_small: Build, tmp_path: Path) -> None:
    checkpoint = roberta(build_small, POSITIONS)
    ours = stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle"))
    assert ours.max_seq_length == USED
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    original.max_seq_length = USED
    for count in (USED - 3, USED - 2, USED - 1, USED, 100):
        np.testing.assert_allclose(ours.encode(words(count)), original.encode(words(count)), atol=1e-5)


def test_no_warning_where_the_limit_fits(build_small: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stonnx"):
        load.open_checkpoint(roberta(build_small, USED), None, "torch")
    assert not caplog.text


def test_a_network_that_reads_on_is_refused(build_small: Build) -> None:
    """It computes its positions: the original has a result for texts that a bundle would cut."""
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    checkpoint = build_small("modernbert", 80, global_attn_every_n_layers=1, **tokens)
    (checkpoint / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 80}))
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    modules = {"": "Transformer", "1_Pooling": "Pooling"}
    rows = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules.items()]
    numbered = [{"idx": index, "name": str(index)} | row for index, row in enumerate(rows)]
    (checkpoint / "modules.json").write_text(json.dumps(numbered))
    with pytest.raises(stonnx.UnsupportedError, match=r"up to 80 tokens.*for 64 in.*max_seq_length in"):
        load.open_checkpoint(checkpoint, "embedding", "torch")
