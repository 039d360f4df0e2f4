"""Errors and warnings that say what the original's say, because code and tests look for these words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sparse_networks import DOCUMENT_TABLE
from toy_networks import sparse_network

import stonnx

METHODS = ["encode", "encode_query", "encode_document"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"prompt_name": "absent"}, {"normalize_embeddings": True}], ids=repr)
def test_refused_arguments(model: stonnx.SparseEncoder, original: Any, method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"absent|normalize_embeddings") as expected:
        getattr(original, method)(["a"], **options)
    with pytest.raises(stonnx.InvalidArgumentError) as raised:
        getattr(model, method)(["a"], **options)
    assert str(raised.value) == str(expected.value)


def test_default_prompts_that_are_not_there(bundle: Path) -> None:
    options: Any = {"prompts": {"query": "query: "}, "default_prompt_name": "absent"}
    with pytest.raises(ValueError, match="absent") as expected:
        sentence_transformers.SparseEncoder(modules=[sparse_network(DOCUMENT_TABLE)], device="cpu", **options)
    with pytest.raises(stonnx.InvalidArgumentError) as raised:
        stonnx.SparseEncoder(bundle, **options)
    start, keys = str(expected.value).split("keys")
    assert str(raised.value).startswith(start)
    assert "'query', 'document'" in keys
    assert "'query', 'document'" in str(raised.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_besides_a_name(
    model: stonnx.SparseEncoder, original: Any, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        caplog.at_level(logging.WARNING, "sentence_transformers"),
        caplog.at_level(logging.WARNING, "stonnx"),
    ):
        getattr(original, method)(["a"], prompt="x: ", prompt_name="query")
        expected = [record.message for record in caplog.records]
        caplog.clear()
        getattr(model, method)(["a"], prompt="x: ", prompt_name="query")
    words = "Provide either a `prompt`, a `prompt_name`, or neither, but not both. "
    words += "Ignoring the `prompt_name` in favor of `prompt`."
    assert [record.message for record in caplog.records] == [words]
    # Other tests of the process may have silenced the original.
    assert expected in ([words], [])


@pytest.mark.parametrize(
    ("embeddings", "top_k", "words"),
    [
        ([1, 2, 3], None, "Expected torch.Tensor"),
        (torch.zeros(2, 3, 4), None, "Input tensor must be 1D or 2D"),
        (torch.ones(4), 0, "top_k must be a positive integer"),
        (torch.ones(4), -5, "top_k must be a positive integer"),
    ],
    ids=["a list", "three dimensions", "no tokens", "fewer than none"],
)
def test_what_decode_refuses(
    model: stonnx.SparseEncoder, original: Any, embeddings: Any, top_k: int | None, words: str
) -> None:
    for each in (original, model):
        with pytest.raises((TypeError, ValueError), match=words):
            each.decode(embeddings, top_k=top_k)
    if isinstance(embeddings, torch.Tensor):
        with pytest.raises(stonnx.InvalidArgumentError, match=words):
            model.decode(np.asarray(embeddings), top_k=top_k)


def test_similarity_of_late_interaction(model: stonnx.SparseEncoder, original: Any) -> None:
    for each in (original, model):
        with pytest.raises(ValueError, match=r"Use MultiVectorEncoder for MaxSim"):
            each.similarity_fn_name = "maxsim"
