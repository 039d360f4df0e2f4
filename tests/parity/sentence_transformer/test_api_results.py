"""SentenceTransformer has the API of the original: the same inputs, and outputs of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from same_results import TEXTS, TOKEN_TOLERANCE, TOLERANCE, assert_same, assert_same_bits, assert_same_codes, methods

from stonnx import InvalidArgumentError

# --- inputs ---


class _Name(str):
    """What other libraries have: a str of another class."""


INPUTS: dict[str, Any] = {
    "a text": "one text",
    "a subclass of str": _Name("one text"),
    "np.str_": np.str_("one text"),
    "a dict": {"text": "one text"},
    "a dict of a pair": {"text": ("a question", "and an answer")},
    "a list": TEXTS,
    "a list of one": TEXTS[:1],
    "a tuple": tuple(TEXTS),
    "a pair in a list": [("a question", "and an answer")],
    "a list as a pair": [["a question", "and an answer"]],
    "pairs of different lengths": [("a question", "and an answer"), ("short", "")],
    "dicts": [{"text": text} for text in TEXTS],
    "all of them": ["a text", ("a question", "an answer"), {"text": "text"}, np.str_("string")],
    "an array of U": np.array(TEXTS),
    "an array of O": np.array(TEXTS, dtype=object),
    "an array of pairs": np.array([TEXTS, TEXTS[::-1]]),
    "equal texts": ["the same"] * 3,
    "no text": "",
    "no text in a list": ["", "  "],
    "an address": "https://example.com/cat.jpg",
}


@methods
@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(minilm: Any, minilm_original: Any, method: str, kind: str) -> None:
    expected = getattr(minilm_original, method)(INPUTS[kind])
    assert_same(getattr(minilm, method)(INPUTS[kind]), expected)


def test_a_column_of_a_dataset_is_a_list(minilm: Any) -> None:
    # `datasets` is not among the dependencies of the tests: a class of the same name stands in for its Column.
    column = type("Column", (Sequence,), {"__module__": "datasets.arrow_dataset"} | _methods_of(TEXTS))()
    np.testing.assert_array_equal(minilm.encode(column), minilm.encode(TEXTS))


def _methods_of(items: list[str]) -> dict[str, Any]:
    return {"__getitem__": lambda self, index: items[index], "__len__": lambda self: len(items)}


@methods
@pytest.mark.parametrize("empty", [[], (), np.array([], dtype="U1"), np.array([], dtype=object)], ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"precision": "int8"},
        {"precision": "binary"},
        {"normalize_embeddings": True, "truncate_dim": 8, "prompt": "query: "},
    ],
    ids=repr,
)
def test_no_inputs(minilm: Any, minilm_original: Any, method: str, empty: Any, options: dict[str, Any]) -> None:
    expected = getattr(minilm_original, method)(empty, **options)
    actual = getattr(minilm, method)(empty, **options)
    assert_same(actual, expected)
    if not options:
        assert (actual.dtype, actual.shape) == (np.float64, (0,))


@pytest.mark.parametrize("name", ["sentences", "inputs"])
@methods
def test_inputs_by_name(minilm: Any, minilm_original: Any, method: str, name: str) -> None:
    # Before version 5 the argument was called `sentences`.
    expected = getattr(minilm_original, method)(**{name: TEXTS})
    assert_same(getattr(minilm, method)(**{name: TEXTS}), expected)


# --- outputs ---


@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS], ids=["single", "list"])
@pytest.mark.parametrize("convert_to_numpy", [True, False])
@pytest.mark.parametrize("precision", ["float32", "ubinary", None])
def test_conversions(
    minilm: Any, minilm_original: Any, inputs: Any, convert_to_numpy: bool, precision: str | None
) -> None:
    options = {"precision": precision, "convert_to_numpy": convert_to_numpy}
    expected = minilm_original.encode(inputs, **options)
    # A list holds tensors there, and arrays here.
    assert_same(minilm.encode(inputs, **options), expected)
    expected = minilm_original.encode(inputs, **options, convert_to_tensor=True)
    actual = minilm.encode(inputs, **options, convert_to_tensor=True)
    assert isinstance(actual, torch.Tensor)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_no_inputs_as_a_tensor(minilm: Any, minilm_original: Any) -> None:
    for precision in ("float32", "int8"):
        expected = minilm_original.encode([], convert_to_tensor=True, precision=precision)
        actual = minilm.encode([], convert_to_tensor=True, precision=precision)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape) == (torch.float32, (0,))


def test_arrays_can_be_written_to(minilm: Any) -> None:
    for inputs in (TEXTS, TEXTS[0]):
        for options in ({}, {"truncate_dim": 8}, {"precision": "ubinary"}, {"output_value": "token_embeddings"}):
            values = minilm.encode(inputs, **options)
            for array in values if isinstance(values, list) else [values]:
                assert array.flags.writeable


TEXTS_OF_MANY_LENGTHS = [*TEXTS, "short", "word " * 40, "", ("a question", "an answer")]


@pytest.mark.parametrize("convert_to_tensor", [False, True])
@pytest.mark.parametrize("options", [{}, {"truncate_dim": 8, "normalize_embeddings": True}], ids=repr)
def test_token_embeddings(minilm: Any, minilm_original: Any, options: dict[str, Any], convert_to_tensor: bool) -> None:
    options = {"output_value": "token_embeddings", "convert_to_tensor": convert_to_tensor} | options
    expected = minilm_original.encode(TEXTS_OF_MANY_LENGTHS, **options)
    assert_same(minilm.encode(TEXTS_OF_MANY_LENGTHS, **options), expected, TOKEN_TOLERANCE)
    assert_same(minilm.encode(TEXTS[0], **options), expected[0], TOKEN_TOLERANCE)


@pytest.mark.parametrize("truncate_dim", [None, 8])
@pytest.mark.parametrize("prompt", [None, "", "query: ", "   "])
def test_everything_of_each_text(
    minilm: Any, minilm_original: Any, prompt: str | None, truncate_dim: int | None
) -> None:
    options: dict[str, Any] = {"output_value": None, "prompt": prompt, "truncate_dim": truncate_dim}
    expected = minilm_original.encode(TEXTS_OF_MANY_LENGTHS, **options)
    actual = minilm.encode(TEXTS_OF_MANY_LENGTHS, **options)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert list(ours) == list(theirs)
        # The original pads to the longest text of the batch.
        length = int(theirs["attention_mask"].sum())
        for key, value in theirs.items():
            padded = isinstance(value, torch.Tensor) and key != "sentence_embedding"
            assert_same(ours[key], value[:length] if padded else value, TOKEN_TOLERANCE)
    one = minilm.encode(TEXTS[0], **options)
    assert isinstance(one, dict)
    assert_same(one["sentence_embedding"], expected[0]["sentence_embedding"])


def test_a_prompt_that_fills_everything(minilm: Any, minilm_original: Any) -> None:
    ours, theirs = (
        model.encode("text", prompt="word " * 300, output_value=None) for model in (minilm, minilm_original)
    )
    assert ours["prompt_length"] == theirs["prompt_length"] == 255
    assert_same(ours["sentence_embedding"], theirs["sentence_embedding"])


# --- truncation and normalization ---


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("truncate_dim", [None, 0, -1, 8, 384, 1000, -1000, np.int64(8)], ids=repr)
def test_truncate_dim(minilm: Any, minilm_original: Any, truncate_dim: Any, normalize: bool) -> None:
    options = {"normalize_embeddings": normalize}
    expected = minilm_original.encode(TEXTS, truncate_dim=truncate_dim, **options)
    actual = minilm.encode(TEXTS, truncate_dim=truncate_dim, **options)
    assert_same(actual, expected)
    dimensions = []
    for model in (minilm, minilm_original):
        with model.truncate_embeddings(truncate_dim):
            dimensions.append(model.get_embedding_dimension())
    assert dimensions[0] == dimensions[1]  # the original returns a number of numpy if it got one
    with minilm.truncate_embeddings(truncate_dim):
        assert_same(minilm.encode(TEXTS, **options), expected)
    if truncate_dim == 8:
        assert np.allclose(np.linalg.norm(actual, axis=1), 1) == normalize


def test_truncations_one_in_another(minilm: Any, minilm_original: Any) -> None:
    shapes = []
    for model in (minilm, minilm_original):
        with model.truncate_embeddings(8):
            with model.truncate_embeddings(16):
                # The argument wins, but None is not an argument.
                shapes += [model.encode("text", truncate_dim=width).shape for width in (None, 5, 20)]
            shapes.append(model.encode("text").shape)
            with model.truncate_embeddings(None):
                shapes.append(model.encode("text").shape)
        with pytest.raises(KeyError), model.truncate_embeddings(8):
            raise KeyError
        assert model.truncate_dim is None
    assert shapes == [(16,), (5,), (20,), (8,), (384,)] * 2


# --- precision ---

MANY = [f"number {index}" for index in range(100)]


@pytest.mark.parametrize("options", [{}, {"truncate_dim": 20, "normalize_embeddings": True}], ids=repr)
@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary", None])
def test_precision(
    minilm: Any,
    minilm_original: Any,
    precision: str | None,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = minilm_original.encode(MANY, precision=precision, **options)
    actual = minilm.encode(MANY, precision=precision, **options)
    check: Callable[..., None] = assert_same
    if precision in ("int8", "uint8"):
        check = assert_same_codes
    elif precision in ("binary", "ubinary"):
        check = assert_same_bits
    check(actual, expected)
    assert not caplog.records


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS[:1]], ids=["single", "list"])
def test_one_text_has_no_range(minilm: Any, minilm_original: Any, inputs: Any, precision: str) -> None:
    with pytest.raises(ValueError, match="single embedding"):
        minilm_original.encode(inputs, precision=precision)
    with pytest.raises(InvalidArgumentError, match="no range to divide"):
        minilm.encode(inputs, precision=precision)


def test_few_texts_are_warned_about(minilm: Any, caplog: pytest.LogCaptureFixture) -> None:
    minilm.encode(TEXTS, precision="int8")
    assert "2 embeddings" in caplog.text


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS_OF_MANY_LENGTHS], ids=["single", "list"])
def test_precision_of_token_embeddings(minilm: Any, minilm_original: Any, inputs: Any, precision: str) -> None:
    options = {"output_value": "token_embeddings", "precision": precision}
    expected, actual = minilm_original.encode(inputs, **options), minilm.encode(inputs, **options)
    assert isinstance(actual, list) == isinstance(expected, list)
    pairs = zip(actual, expected, strict=True) if isinstance(expected, list) else [(actual, expected)]
    for ours, theirs in pairs:
        (assert_same_codes if "int8" in precision else assert_same_bits)(ours, theirs)
