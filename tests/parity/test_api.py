"""SentenceTransformer has the API of the original: the same inputs, options, outputs, signatures and errors.

Tolerance: 1e-5 for vectors of length 1, as in test_embeddings.py; token embeddings are longer and get 1e-4. Where the
original gives tensors although nobody asked for them, stonnx gives numpy arrays of the same dtype.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

import stonnx
from stonnx import InvalidArgumentError, InvalidInputError, StonnxError, UnsupportedError

TOLERANCE = 1e-5
TOKEN_TOLERANCE = 1e-4

TEXTS = ["The weather is lovely today.", "He drove to the stadium."]
METHODS = ["encode", "encode_query", "encode_document"]
methods = pytest.mark.parametrize("method", METHODS)


def assert_same(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """The same structure, shapes, dtypes and, within the tolerance, values; numpy where the original has tensors."""
    if isinstance(expected, list):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs, tolerance)
    elif isinstance(expected, torch.Tensor | np.ndarray):
        expected = np.asarray(expected)
        assert isinstance(actual, np.ndarray)
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    else:
        assert type(actual) is type(expected)
        assert actual == expected


def assert_same_codes(actual: np.ndarray, expected: np.ndarray) -> None:
    """Codes of an integer precision: a rounding of the vectors moves some values on an edge into the next step."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max(initial=0) <= 1
    # The largest value of each dimension is on an edge.
    assert np.mean(difference > 0) <= 0.02


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bits = [np.unpackbits(codes.view(np.uint8), axis=-1) for codes in (actual, expected)]
    assert np.mean(bits[0] != bits[1]) <= 0.001


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of PyTorch wait for each other by spinning: beside other work, a short text takes ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def build(minilm_bundle: Path, minilm_checkpoint: Path) -> Callable[..., tuple[Any, Any]]:
    """(stonnx, original), both made with the same options."""

    def make(**options: Any) -> tuple[Any, Any]:
        original = sentence_transformers.SentenceTransformer(str(minilm_checkpoint), device="cpu", **options)
        return stonnx.SentenceTransformer(minilm_bundle, **options), original

    return make


PROMPTS = {"query": "query: ", "document": "passage: ", "topic": "The topic is "}


@pytest.fixture(scope="module")
def prompted(build: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
    """(stonnx, original) with prompts."""
    return build(prompts=PROMPTS)


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
    assert_same(*dimensions)
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


# Remove the mark once the setter in stonnx/_embedding_model.py takes None alone for the default.
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


# --- errors ---

Call = Callable[[Any], Any]

# Arguments that both refuse: stonnx with a subclass of the builtin that the original raises.
SAME_ERRORS: dict[str, Call] = {
    "precision": lambda model: model.encode(TEXTS, precision="int4"),
    "precision ''": lambda model: model.encode(TEXTS, precision=""),
    "precision, no inputs": lambda model: model.encode([], precision="int4"),
    "precision of everything": lambda model: model.encode(TEXTS, output_value=None, precision="int8"),
    "batch_size 0": lambda model: model.encode(TEXTS, batch_size=0),
    "batch_size -1": lambda model: model.encode_query([], batch_size=-1),
    "prompt_name": lambda model: model.encode(TEXTS, prompt_name="unknown"),
    "prompt_name, no inputs": lambda model: model.encode_document([], prompt_name="unknown"),
    "prompt": lambda model: model.encode(TEXTS, prompt=5),
    "keyword": lambda model: model.encode(TEXTS, unknown=1),
    "keyword, no inputs": lambda model: model.encode([], unknown=None),
    "keyword of a query": lambda model: model.encode_query(TEXTS, unknown=1),
    "None": lambda model: model.encode(None),
    "None in a list": lambda model: model.encode(["text", None]),
    "int": lambda model: model.encode([1, 2]),
    "bytes": lambda model: model.encode(b"text"),
    "three texts": lambda model: model.encode([("a", "b", "c")]),
    "a pair with None": lambda model: model.encode([("a", None)]),
    "a dict of more": lambda model: model.encode({"text": "a", "title": "b"}),
    "a message": lambda model: model.encode([{"role": "user", "content": "hello"}]),
    "an array of floats": lambda model: model.encode(np.zeros(3)),
    "an array of no dimension": lambda model: model.encode(np.array("text")),
    "an array of three columns": lambda model: model.encode(np.array([["a", "b", "c"]])),
    "a tensor": lambda model: model.encode([torch.zeros(3)]),
    "a generator": lambda model: model.encode(text for text in TEXTS),
    "lone surrogate": lambda model: model.encode(["text", "\ud800"]),
}


def builtin_of(error: BaseException) -> type[BaseException]:
    return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


@pytest.mark.parametrize("name", SAME_ERRORS)
def test_errors(minilm: Any, minilm_original: Any, name: str) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        SAME_ERRORS[name](minilm_original)
    with pytest.raises(StonnxError) as actual:
        SAME_ERRORS[name](minilm)
    assert isinstance(actual.value, builtin_of(expected.value))
    # An input that is not a text is a TypeError by the language's own rules, and a ValueError in the original.
    if isinstance(actual.value, InvalidInputError):
        assert isinstance(actual.value, TypeError)
        assert isinstance(actual.value, ValueError)


# Where the original fails by accident, with a builtin that says nothing about the argument, stonnx says what is wrong
# with a ValueError: (call, what the original raises, what stonnx raises).
OTHER_ERRORS: dict[str, tuple[Call, type[Exception], type[StonnxError]]] = {
    "output_value": (lambda model: model.encode(TEXTS, output_value="unknown"), KeyError, InvalidArgumentError),
    "batch_size 1.5": (lambda model: model.encode(TEXTS, batch_size=1.5), TypeError, InvalidArgumentError),
    "batch_size '32'": (lambda model: model.encode(TEXTS, batch_size="32"), TypeError, InvalidArgumentError),
    "batch_size None": (lambda model: model.encode(TEXTS, batch_size=None), TypeError, InvalidArgumentError),
    "precision []": (lambda model: model.encode(TEXTS, precision=["int8"]), TypeError, InvalidArgumentError),
    "device": (lambda model: model.encode(TEXTS, device="unknown"), RuntimeError, UnsupportedError),
    "device ''": (lambda model: model.encode(TEXTS, device=""), RuntimeError, UnsupportedError),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_other_errors(minilm: Any, minilm_original: Any, name: str) -> None:
    call, theirs, ours = OTHER_ERRORS[name]
    with pytest.raises(theirs):
        call(minilm_original)
    with pytest.raises(ours) as error:
        call(minilm)
    assert isinstance(error.value, ValueError)


# Errors of the language itself, or of the numpy slice.
@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.encode(),
        lambda model: model.encode(TEXTS, sentences=TEXTS),
        lambda model: model.encode_query(TEXTS, task="document"),
        lambda model: model.encode(TEXTS, prompt_name=["query"]),
        lambda model: model.encode(TEXTS, truncate_dim=1.5),
        lambda model: model.encode(TEXTS, truncate_dim="8"),
    ],
    ids=["no arguments", "both names", "task twice", "list as a name", "float as a width", "str as a width"],
)
def test_type_errors(minilm: Any, minilm_original: Any, call: Call) -> None:
    for model in (minilm_original, minilm):
        with pytest.raises(TypeError):
            call(model)


@pytest.mark.parametrize(
    "options",
    [
        {"default_prompt_name": "unknown"},
        {"default_prompt_name": ""},
        {"prompts": ["query"]},
        {"similarity_fn_name": "maxsim"},
        {"similarity_fn_name": ""},
        {"backend": "unknown"},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_constructor_errors(minilm_bundle: Path, minilm_checkpoint: Path, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        sentence_transformers.SentenceTransformer(str(minilm_checkpoint), device="cpu", **options)
    with pytest.raises(builtin_of(expected.value)):
        stonnx.SentenceTransformer(minilm_bundle, **options)


def test_one_token_argument_is_enough(minilm_bundle: Path, minilm_checkpoint: Path) -> None:
    for kind, path in (
        (sentence_transformers.SentenceTransformer, str(minilm_checkpoint)),
        (stonnx.SentenceTransformer, minilm_bundle),
    ):
        with pytest.warns(FutureWarning, match="use_auth_token"), pytest.raises(ValueError, match="use_auth_token"):
            kind(path, token="a", use_auth_token="b")


@pytest.mark.parametrize(
    "name",
    ["modules", "model_kwargs", "processor_kwargs", "tokenizer_kwargs", "config_kwargs", "model_card_data"],
)
def test_options_that_change_the_network_are_refused(minilm_bundle: Path, name: str) -> None:
    # A bundle is built already: ignoring the option would give other vectors than the original does.
    expected = "processor_kwargs" if name == "tokenizer_kwargs" else name
    with pytest.raises(UnsupportedError, match=f"^{expected} changes how"):
        stonnx.SentenceTransformer(minilm_bundle, **{name: {"dtype": "float16"}})


def test_trust_remote_code_has_no_effect(minilm_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    stonnx.SentenceTransformer(minilm_bundle, trust_remote_code=True)
    assert "stonnx never runs code" in caplog.text


class TestDevice:
    """A model does not move; saying where it is already is not an error, since scripts do so."""

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=["str", "torch"])
    def test_where_it_is(self, minilm: Any, device: Any) -> None:
        assert minilm.to(device) is minilm
        assert minilm.to(device).eval().cpu() is minilm

    @pytest.mark.parametrize(
        ("move", "named"),
        [
            (lambda model: model.to("cuda"), "'cuda'"),
            (lambda model: model.to(0), "'cuda:0'"),
            (lambda model: model.to(torch.device("cuda:1")), "'cuda:1'"),
            (lambda model: model.to(torch.float16), "'torch.float16'"),
            (lambda model: model.cuda(), "'cuda'"),
            (lambda model: model.cuda(1), "'cuda:1'"),
        ],
    )
    def test_elsewhere(self, minilm: Any, move: Any, named: str) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=rf"cannot move to {named}.*device=\.\.\."):
            move(minilm)
