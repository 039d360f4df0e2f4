"""processing_kwargs of a call: the limits of its texts, beside the original in every class."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import stonnx
from stonnx import InvalidArgumentError, TextTooLongError, UnsupportedError
from stonnx_export import export

pytestmark = pytest.mark.needs("sentence-transformers", "6", "processing_kwargs")

TEXTS = ["", "flute", "A man is playing a large flute.", "rain " * 30, "the city of bread and the river " * 4]
FOLLOWED: list[dict[str, Any]] = [
    {},
    {"text": {}},
    {"text": {"max_length": 5}},
    {"text": {"max_length": 5, "truncation": True}},
    {"text": {"max_length": 9, "truncation": "longest_first", "padding": "longest"}},
    {"text": {"max_length": 60}},
    {"text": {"max_length": 12, "padding": "max_length"}},
    {"text": {"max_length": 12}, "common": {"max_length": 6, "return_tensors": "pt"}},
    {"text": {"truncation": False}},
    {"common": {"truncation": False}},
    {"chat_template": {}, "image": {}},
]
Make = Callable[[str], tuple[Any, Any]]


@pytest.fixture(scope="module")
def make(tiny_checkpoint: Path, small_builder: Any, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Ours and the original, by the name of the class."""
    known: dict[str, tuple[Any, Any]] = {}

    def load(name: str) -> tuple[Any, Any]:
        if name not in known:
            directory = tmp_path_factory.mktemp("limits")
            heads = {"SparseEncoder": AutoModelForMaskedLM, "CrossEncoder": AutoModelForSequenceClassification}
            tasks = {"SparseEncoder": "sparse", "CrossEncoder": "rerank"}
            checkpoint = tiny_checkpoint
            if name in heads:
                settings = {"num_labels": 1} if name == "CrossEncoder" else {}
                checkpoint = small_builder(directory)("bert", auto=heads[name], **settings)
            bundle = export(checkpoint, directory / "bundle", task=tasks.get(name))  # type: ignore[arg-type]
            original = getattr(sentence_transformers, name)(str(checkpoint), device="cpu", local_files_only=True)
            known[name] = getattr(stonnx, name)(bundle), original
        return known[name]

    return load


def results(name: str, model: Any, inputs: list[Any], **options: Any) -> np.ndarray:
    if name == "CrossEncoder":
        return np.asarray(model.predict(inputs, **options))
    if name == "SparseEncoder":
        return np.stack(
            [
                np.asarray(row.todense() if hasattr(row, "todense") else row.to_dense()).ravel()
                for row in (model.encode(text, **options) for text in inputs)
            ]
        )
    return np.asarray(model.encode(inputs, **options))


@pytest.mark.parametrize("processing_kwargs", FOLLOWED, ids=str)
@pytest.mark.parametrize("name", ["SentenceTransformer", "SparseEncoder", "CrossEncoder"])
def test_results_equal_the_original(make: Make, name: str, processing_kwargs: dict[str, Any]) -> None:
    ours, original = make(name)
    inputs: list[Any] = [*zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)] if name == "CrossEncoder" else TEXTS
    inputs = [each for each in inputs if ours.count_tokens([each])[0] <= 60]  # the network's positions
    before = results(name, ours, inputs)
    found, expected = (results(name, model, inputs, processing_kwargs=processing_kwargs) for model in (ours, original))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # The next call has the model's own limit again.
    np.testing.assert_array_equal(results(name, ours, inputs), before)


def test_queries_pools_streams_and_features(make: Make) -> None:
    ours, original = make("SentenceTransformer")
    kwargs: dict[str, Any] = {"text": {"max_length": 7}}
    expected = original.encode_query(TEXTS, processing_kwargs=kwargs)
    np.testing.assert_allclose(ours.encode_query(TEXTS, processing_kwargs=kwargs), expected, atol=2e-5)
    np.testing.assert_allclose(ours.encode_query(TEXTS, processing_kwargs=kwargs, device=["cpu"]), expected, atol=2e-5)
    parts = [*ours.encode_stream(TEXTS, task="query", processing_kwargs=kwargs)]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=2e-5)
    features = [model.preprocess(TEXTS, processing_kwargs=kwargs)["input_ids"] for model in (ours, original)]
    assert features[0].tolist() == features[1].tolist()
    assert ours.encode(TEXTS[3], output_value="token_embeddings", processing_kwargs=kwargs).shape[0] == 7
    assert ours.max_seq_length == original.max_seq_length
    for limit in range(3, 20):  # more than are kept
        ours.encode(TEXTS[:2], processing_kwargs={"text": {"max_length": limit}})


def test_a_text_that_must_not_be_cut(make: Make) -> None:
    ours, _ = make("SentenceTransformer")
    kwargs = {"text": {"truncation": False}}
    with pytest.raises(TextTooLongError) as raised:
        ours.encode(["a", "rain " * 500], processing_kwargs=kwargs)
    assert raised.value.index == 1


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"text": {"truncation": "only_first"}}, UnsupportedError, "truncation='only_first'"),
        ({"text": {"add_special_tokens": False}}, UnsupportedError, "add_special_tokens=False.*A bundle follows"),
        ({"text": {"stride": 2}}, UnsupportedError, "stride=2"),
        (
            {"chat_template": {"enable_thinking": False}},
            UnsupportedError,
            "'chat_template', which the export has fixed",
        ),
        ({"image": {"size": 3}}, UnsupportedError, "'image'"),
        ({"text": {"max_length": "5"}}, InvalidArgumentError, "an integer as max_length"),
        ({"text": {"max_length": True}}, InvalidArgumentError, "an integer as max_length"),
        ({"text": {"max_length": 2}}, InvalidArgumentError, "max_length=2.*more than the 2 special tokens"),
        ({"text": {"max_length": 5000}}, InvalidArgumentError, "max_length=5000"),
        ({"text": 5}, InvalidArgumentError, "must be a dict of dicts"),
        ("max_length", InvalidArgumentError, "must be a dict of dicts"),
    ],
)
def test_others_are_refused_by_name(make: Make, value: Any, error: type[Exception], message: str) -> None:
    for name, inputs in (("SentenceTransformer", ["a"]), ("CrossEncoder", [("a", "b")])):
        ours, _ = make(name)
        # A pair has three special tokens.
        if name == "SentenceTransformer" or "2 special" not in message:
            with pytest.raises(error, match=message):
                results(name, ours, inputs, processing_kwargs=value)


def test_unknown_keys_are_ignored_as_in_the_original(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    ours, _ = make("SentenceTransformer")
    with caplog.at_level(logging.WARNING, "stonnx"):
        found = ours.encode(TEXTS, processing_kwargs={"texts": {"max_length": 3}})
    np.testing.assert_array_equal(found, ours.encode(TEXTS))
    assert "unknown keys ['texts']" in caplog.text
