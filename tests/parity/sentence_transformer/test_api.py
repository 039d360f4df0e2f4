"""SentenceTransformer has the API of the original: the same options, signatures and properties."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from same_results import METHODS, PROMPTS, TEXTS, TOLERANCE, assert_same, methods

import stonnx
from stonnx import InvalidArgumentError

# --- prompts ---


@methods
@pytest.mark.parametrize("inputs", ["one text", ["a text", ("a question", "an answer"), {"text": "another"}]], ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "query: "},
        {"prompt": ""},
        {"prompt_name": "topic"},
        {"prompt_name": "query"},
        {"prompt": "Represent this: ", "prompt_name": "topic"},
        {"prompt": "Represent this: ", "prompt_name": "unknown"},
    ],
    ids=repr,
)
def test_prompts(prompted: tuple[Any, Any], method: str, inputs: Any, options: dict[str, Any]) -> None:
    actual, expected = (getattr(model, method)(inputs, **options) for model in prompted)
    assert_same(actual, expected)


def test_prompts_make_a_difference(prompted: tuple[Any, Any]) -> None:
    model = prompted[0]
    vectors = [getattr(model, method)("text") for method in METHODS]
    assert len({vector.tobytes() for vector in vectors}) == 3
    np.testing.assert_array_equal(vectors[1], model.encode("query: text"))
    np.testing.assert_array_equal(model.encode([("a", "b")], prompt="x "), model.encode([("x a", "b")]))


def test_prompt_wins_over_prompt_name(prompted: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    for model, logger in zip(prompted, ("stonnx", "sentence_transformers"), strict=True):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger):
            model.encode("text", prompt="query: ", prompt_name="topic")
        (record,) = caplog.records
        assert record.name.startswith(logger)
        assert record.levelno == logging.WARNING
        assert "prompt_name" in record.getMessage()


CONSTRUCTOR_OPTIONS: list[dict[str, Any]] = [
    {"prompts": PROMPTS, "default_prompt_name": "topic"},
    {"prompts": PROMPTS, "default_prompt_name": "query"},
    {"prompts": {"query": None, "topic": None}, "default_prompt_name": "topic"},
    {"prompts": {"passage": "passage: ", "corpus": "corpus: "}},
    {"prompts": {}, "default_prompt_name": "document", "model_kwargs": {}, "token": False},
    {"truncate_dim": 0, "similarity_fn_name": "dot"},
    {"truncate_dim": -1, "similarity_fn_name": "euclidean"},
    {"truncate_dim": 8, "similarity_fn_name": "manhattan", "local_files_only": True},
    {"truncate_dim": 1000, "similarity_fn_name": sentence_transformers.SimilarityFunction.DOT_PRODUCT},
]


@pytest.mark.parametrize("options", CONSTRUCTOR_OPTIONS, ids=repr)
def test_constructor(build: Callable[..., tuple[Any, Any]], options: dict[str, Any]) -> None:
    ours, theirs = build(**options)
    assert ours.prompts == theirs.prompts
    for name in ("default_prompt_name", "truncate_dim", "similarity_fn_name", "max_seq_length"):
        assert_same(getattr(ours, name), getattr(theirs, name))
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    for method in METHODS:
        assert_same(getattr(ours, method)("text"), getattr(theirs, method)("text"))
    # An empty prompt is a prompt: the default one is not used then.
    assert_same(ours.encode("text", prompt=""), theirs.encode("text", prompt=""))
    if options.get("truncate_dim"):
        assert_same(ours.encode("text", truncate_dim=16), theirs.encode("text", truncate_dim=16))
        with ours.truncate_embeddings(None):
            assert ours.encode("text").shape == (384,)


SAVED = {
    "prompts": {"query": "query: ", "passage": "passage: ", "topic": "The topic is "},
    "default_prompt_name": "topic",
    "similarity_fn_name": "dot",
    "truncate_dim": 16,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompts": {"query": "ask: ", "passage": ""}, "default_prompt_name": "passage", "truncate_dim": 8},
        {"prompts": {"query": None, "document": "document: "}, "similarity_fn_name": "euclidean"},
    ],
    ids=repr,
)
def test_options_win_over_what_the_model_saved(
    minilm_bundle: Path, minilm_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    for source, name, file in (
        (minilm_bundle, "bundle", "stonnx.json"),
        (minilm_checkpoint, "checkpoint", "config_sentence_transformers.json"),
    ):
        shutil.copytree(source, tmp_path / name, copy_function=os.symlink)
        settings = json.loads((source / file).read_text(encoding="utf-8")) | SAVED
        (tmp_path / name / file).unlink()
        (tmp_path / name / file).write_text(json.dumps(settings), encoding="utf-8")
    ours = stonnx.SentenceTransformer(tmp_path / "bundle", **options)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "checkpoint"), device="cpu", **options)
    assert ours.prompts == theirs.prompts
    for attribute in ("default_prompt_name", "truncate_dim", "similarity_fn_name"):
        assert_same(getattr(ours, attribute), getattr(theirs, attribute))
    for method in METHODS:
        assert_same(getattr(ours, method)("text"), getattr(theirs, method)("text"))


# --- similarity ---


@pytest.mark.parametrize("method", ["similarity", "similarity_pairwise"])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan", None])
def test_similarity(minilm: Any, minilm_original: Any, name: str | None, method: str) -> None:
    first, second = minilm_original.encode(TEXTS), minilm_original.encode(["It is sunny.", "A stadium."])
    # Every vector has length 1, except that the sum of 384 distances is longer.
    tolerance = 1e-4 if name == "manhattan" else TOLERANCE
    try:
        for model in (minilm, minilm_original):
            model.similarity_fn_name = name
            assert model.similarity_fn_name == (name or "cosine")
        for a, b in ((first, second), (first[0], second[1]), (list(first), list(second))):
            expected = getattr(minilm_original, method)(a, b)
            assert_same(getattr(minilm, method)(a, b), expected, tolerance)
            tensors = [torch.as_tensor(np.array(value)) for value in (a, b)]
            actual = getattr(minilm, method)(*tensors)
            assert isinstance(actual, torch.Tensor)
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    finally:
        minilm.similarity_fn_name = minilm_original.similarity_fn_name = None


@pytest.mark.parametrize(
    "value",
    ["DOT", "foo", "maxsim", 5, "", [], {}],
    ids=repr,
)
def test_similarity_functions_that_there_are_not(minilm: Any, minilm_original: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="similarity_fn_name"):
        minilm_original.similarity_fn_name = value
    with pytest.raises(InvalidArgumentError, match="must be one of 'cosine', 'dot', 'euclidean', 'manhattan'"):
        minilm.similarity_fn_name = value
    assert minilm.similarity_fn_name == "cosine"


# --- properties ---


def test_properties(minilm: Any, minilm_original: Any) -> None:
    for name in ("max_seq_length", "modalities", "default_prompt_name", "truncate_dim", "prompts"):
        assert getattr(minilm, name) == getattr(minilm_original, name)
    for name in ("get_embedding_dimension", "get_max_seq_length", "get_model_kwargs"):
        assert getattr(minilm, name)() == getattr(minilm_original, name)()
    for modality in ("text", "image", "audio", "message", ("image", "text")):
        assert minilm.supports(modality) == minilm_original.supports(modality)
    assert str(minilm.device) == str(minilm_original.device)
    assert minilm.get_sentence_embedding_dimension() == 384


@pytest.mark.parametrize("limit", [2 + 1, 64, np.int64(64), 512])
def test_max_seq_length(build: Callable[..., tuple[Any, Any]], limit: int) -> None:
    ours, theirs = build()
    ours.max_seq_length = theirs.max_seq_length = limit
    assert ours.max_seq_length == ours.get_max_seq_length() == theirs.max_seq_length == limit
    assert_same(ours.encode("word " * 600), theirs.encode("word " * 600))
    ours.max_seq_length = None  # as many tokens as the model has positions
    assert ours.max_seq_length == 512


@pytest.mark.parametrize("limit", [0, -1, 2, 513, 10**9, 1.5, "64", True], ids=repr)
def test_max_seq_length_out_of_bounds(minilm: Any, limit: Any) -> None:
    # The original takes any value; texts that reach it fail in the network, or are not cut at all.
    with pytest.raises(InvalidArgumentError, match="more than the 2 special tokens and at most 512 positions"):
        minilm.max_seq_length = limit
    assert minilm.max_seq_length == 256


# --- progress ---


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
@pytest.mark.parametrize("show", [None, True, False])
def test_progress_bar(
    minilm: Any,
    minilm_original: Any,
    show: bool | None,
    level: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    printed = []
    for model, logger in ((minilm, "stonnx"), (minilm_original, "sentence_transformers")):
        with caplog.at_level(level, logger):
            model.encode(TEXTS, show_progress_bar=show)
        captured = capfd.readouterr()
        assert captured.out == ""
        printed.append("100%" in captured.err)
    assert printed[0] == printed[1] == (show if show is not None else level <= logging.INFO)


def test_a_subclass_with_an_encode_of_its_own(prompted: tuple[Any, Any]) -> None:
    """encode_query and encode_document pass everything by keyword, as in the original."""
    seen = []
    for model in prompted:
        kind = type("Own", (type(model),), {"encode": lambda self, inputs, **options: (inputs, options)})
        own = kind.__new__(kind)
        own.__dict__.update(model.__dict__)
        inputs, options = own.encode_query(["a"], None, None, 16, normalize_embeddings=True)
        chosen = ("prompt_name", "prompt", "batch_size", "normalize_embeddings", "task")
        seen.append((inputs, {name: options[name] for name in chosen}))
    assert seen[0] == seen[1]
    with pytest.raises(TypeError, match="arguments by position, not 40"):
        prompted[0].encode_query(*["a"] * 40)
    with pytest.raises(TypeError, match="batch_size"):
        prompted[0].encode_query(["a"], None, None, 16, batch_size=8)
