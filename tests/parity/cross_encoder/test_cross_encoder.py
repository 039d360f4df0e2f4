"""CrossEncoder against sentence-transformers with the same toy network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rerankers import (
    DOCUMENTS,
    LABELS,
    PAIRS,
    PROMPTS,
    QUERY,
    TOLERANCE,
    assert_same_scores,
    make_original,
    write_reranker,
)

import stonnx
from stonnx._results.activations import ACTIVATIONS


@pytest.mark.parametrize(
    "inputs",
    [
        PAIRS,
        [list(pair) for pair in PAIRS],
        tuple(PAIRS),
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        PAIRS[:1],
        PAIRS[0],
        list(PAIRS[0]),
        np.array(PAIRS[0]),
    ],
    ids=["tuples", "lists", "tuple", "array", "objects", "one in a list", "pair", "list pair", "array pair"],
)
def test_scores_equal_the_original(
    one: stonnx.CrossEncoder, three: stonnx.CrossEncoder, original_one: Any, original_three: Any, inputs: Any
) -> None:
    assert_same_scores(original_one.predict(inputs), one.predict(inputs))
    assert_same_scores(original_three.predict(inputs), three.predict(inputs))


def test_a_single_pair_is_a_number(one: stonnx.CrossEncoder, three: stonnx.CrossEncoder) -> None:
    assert type(one.predict(PAIRS[0])) is np.float32
    assert one.predict(PAIRS[0]) == one.predict(PAIRS)[0]
    assert three.predict(PAIRS[0]).shape == (3,)


def test_the_order_of_the_two_texts_counts(one: stonnx.CrossEncoder) -> None:
    scores = one.predict(PAIRS)
    assert abs(scores[6] - scores[7]) > 0.01


@pytest.mark.parametrize("count", [0, 1, 4])
def test_kinds_of_results_equal_the_original(three: stonnx.CrossEncoder, original_three: Any, count: int) -> None:
    pairs = PAIRS[:count]
    assert_same_scores(original_three.predict(pairs), three.predict(pairs))
    expected = original_three.predict(pairs, convert_to_tensor=True)
    torch.testing.assert_close(three.predict(pairs, convert_to_tensor=True), expected, **TOLERANCE)
    expected = original_three.predict(pairs, convert_to_numpy=False)
    result = three.predict(pairs, convert_to_numpy=False)
    assert isinstance(result, list)
    for wanted, scores in zip(expected, result, strict=True):
        np.testing.assert_allclose(scores, wanted.numpy(), **TOLERANCE)


def test_a_single_pair_as_a_tensor(one: stonnx.CrossEncoder, original_one: Any) -> None:
    expected = original_one.predict(PAIRS[0], convert_to_tensor=True)
    torch.testing.assert_close(one.predict(PAIRS[0], convert_to_tensor=True), expected, **TOLERANCE)


def test_softmax_over_labels(three: stonnx.CrossEncoder) -> None:
    scores = three.predict(PAIRS, apply_softmax=True)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(scores.argmax(axis=1), three.predict(PAIRS).argmax(axis=1))


@pytest.mark.parametrize("options", [{}, {"prompt": "what is "}, {"prompt_name": "shout"}, {"prompt_name": "query"}])
def test_prompts_equal_the_original(one: stonnx.CrossEncoder, original_one: Any, options: dict[str, Any]) -> None:
    assert_same_scores(original_one.predict(PAIRS, **options), one.predict(PAIRS, **options))


def test_the_prompt_stands_before_the_first_text(bundle: Path, one: stonnx.CrossEncoder) -> None:
    assert one.predict(("a", "b"), prompt="zzz ") == one.predict(("zzz a", "b")) != one.predict(("a", "zzz b"))
    model = stonnx.CrossEncoder(bundle, default_prompt_name="shout")
    assert model.predict(("a", "b")) == one.predict(("zzz a", "b"))
    assert model.prompts == PROMPTS  # no "query" and "document" of their own, as in the original


@pytest.mark.parametrize("length", [6, 16, 24])
def test_long_pairs_are_cut_as_in_the_original(bundle: Path, length: int) -> None:
    model, original = stonnx.CrossEncoder(bundle, max_length=length), make_original(1)
    assert model.max_length == model.max_seq_length == length
    original[0].max_seq_length = length
    pairs = [("bread rises " * 10, "the river"), ("the river", "bread rises " * 10), ("city " * 20, "sun " * 20)]
    assert_same_scores(original.predict(pairs), model.predict(pairs))
    model.max_length = 16
    assert model.max_seq_length == 16


def test_a_length_beyond_the_positions_is_refused(bundle: Path) -> None:
    with pytest.raises(stonnx.InvalidArgumentError, match="at most 24 positions"):
        stonnx.CrossEncoder(bundle, max_length=25)


def test_many_pairs_come_back_in_order(three: stonnx.CrossEncoder) -> None:
    pairs = [(f"{'bread ' * (index % 5)}{'abcdefghij'[index % 10]}", f"river {index}") for index in range(1500)]
    scores = three.predict(pairs, batch_size=3)
    for index in (0, 1, 127, 128, 129, 1151, 1152, 1499):
        np.testing.assert_allclose(scores[index], three.predict(pairs[index]), **TOLERANCE)


def test_a_pool_gives_the_same_scores(three: stonnx.CrossEncoder) -> None:
    pool = three.start_multi_process_pool(["cpu", "cpu"])
    try:
        options = {"activation_fn": lambda logits: logits * 2, "apply_softmax": True}
        pooled = three.predict(PAIRS, pool=pool, chunk_size=2, **options)
    finally:
        three.stop_multi_process_pool(pool)
    np.testing.assert_allclose(pooled, three.predict(PAIRS, **options), **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 100}, {"return_documents": True}, {"prompt": "zzz "}])
def test_ranking_equals_the_original(one: stonnx.CrossEncoder, original_one: Any, options: dict[str, Any]) -> None:
    expected, result = original_one.rank(QUERY, DOCUMENTS, **options), one.rank(QUERY, DOCUMENTS, **options)
    for wanted, found in zip(expected, result, strict=True):
        assert found.keys() == wanted.keys()
        assert found["corpus_id"] == wanted["corpus_id"]
        assert type(found["score"]) is float
        assert found["score"] == pytest.approx(wanted["score"], rel=1e-6)
        assert found.get("text") == wanted.get("text")


def test_equal_documents_stay_in_their_order(one: stonnx.CrossEncoder, original_one: Any) -> None:
    documents = ["a", "the river", "a", "the river", "a"]
    expected = [result["corpus_id"] for result in original_one.rank(QUERY, documents)]
    assert [result["corpus_id"] for result in one.rank(QUERY, documents)] == expected
    assert [index for index in expected if documents[index] == "a"] == [0, 2, 4]


def test_ranking_takes_any_documents(one: stonnx.CrossEncoder) -> None:
    expected = one.rank(QUERY, DOCUMENTS, return_documents=True)
    assert one.rank(QUERY, (document for document in DOCUMENTS), return_documents=True) == expected
    assert one.rank(QUERY, []) == []


def test_ranking_refuses_what_gives_no_order(one: stonnx.CrossEncoder, three: stonnx.CrossEncoder) -> None:
    with pytest.raises(ValueError, match=r"num_labels=1.*This model has 3 labels"):
        three.rank(QUERY, DOCUMENTS)
    with pytest.raises(TypeError, match="single str"):
        one.rank(QUERY, "the river")
    with pytest.raises(stonnx.InvalidInputError, match="Input 1 is not a pair") as raised:
        one.rank(QUERY, ["the river", None])  # type: ignore[list-item]
    assert raised.value.index == 1


@pytest.mark.parametrize(
    ("inputs", "index", "message"),
    [
        ("a", None, r"The input is not a pair of texts but str \('a'\)"),
        (3, None, "but int"),
        (("a",), None, "a tuple of 1"),
        (["a", "b", "c"], None, "a list of 3"),
        (["a", None], None, "as its second text"),
        (zip(["a"], ["b"], strict=True), None, r"list\(zip\(queries, documents\)\)"),
        ([("a", "b"), "c"], 1, r"Input 1 is not a pair of texts but str \('c'\)"),
        ([("a", "b"), ("c", "d", "e")], 1, "a tuple of 3"),
        ([("a", "b"), ("c", "d"), (None, "f")], 2, r"has NoneType \(None\) as its first text"),
        ([("a", "b"), ("c", float("nan"))], 1, "has float"),
        ([("a", "b"), ("c", b"d")], 1, "has bytes"),
        ([("a", "b"), ("c", "\ud800")], 1, "surrogate"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_index(
    one: stonnx.CrossEncoder, inputs: Any, index: int | None, message: str
) -> None:
    with pytest.raises(stonnx.InvalidInputError, match=message) as raised:
        one.predict(inputs)
    assert raised.value.index == index


def test_a_task_is_taken_as_in_the_original(one: stonnx.CrossEncoder, original_one: Any) -> None:
    expected = original_one.predict(PAIRS, task="query")
    assert_same_scores(expected, one.predict(PAIRS, task="query"))


def test_errors_of_a_call(one: stonnx.CrossEncoder) -> None:
    with pytest.raises(ValueError, match=r"CrossEncoder\.predict\(\) .* does not use: \['normalize'\]"):
        one.predict(PAIRS, normalize=True)
    with pytest.raises(ValueError, match="batch_size"):
        one.predict(PAIRS, batch_size=0)
    with pytest.raises(ValueError, match="Prompt name 'absent' not found"):
        one.predict(PAIRS, prompt_name="absent")


def test_old_arguments_of_the_constructor(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="stonnx")
    model = stonnx.CrossEncoder(bundle, 1, 8, torch.nn.Identity(), "cpu")  # type: ignore[misc]
    assert (model.num_labels, model.max_length, model.activation_fn) == (1, 8, ACTIVATIONS["identity"])
    assert "CrossEncoder takes max_length by name now, not by position." in caplog.messages
    model = stonnx.CrossEncoder(model_name=bundle, default_activation_function="tanh", classifier_dropout=0.1)  # type: ignore[call-arg]
    assert model.activation_fn is ACTIVATIONS["tanh"]
    assert "CrossEncoder ignores classifier_dropout, which has no effect." in caplog.messages
    with pytest.raises(TypeError, match="positional"):
        stonnx.CrossEncoder(bundle, 1, 8, None, "cpu", "more")  # type: ignore[misc]
    with pytest.raises(stonnx.UnsupportedError, match="model_kwargs"):
        stonnx.CrossEncoder(bundle, automodel_args={"torch_dtype": "float16"})  # type: ignore[call-arg]


def test_old_arguments_of_calls(one: stonnx.CrossEncoder) -> None:
    logits = one.predict(PAIRS, activation_fn="identity")
    np.testing.assert_array_equal(
        logits,
        one.predict(sentences=PAIRS, activation_fct=torch.nn.Identity(), num_workers=2),
    )
    expected = one.rank(QUERY, DOCUMENTS, activation_fn="identity")
    old = {"activation_fct": "identity", "num_workers": 1, "convert_to_tensor": True, "apply_softmax": True}
    assert one.rank(QUERY, DOCUMENTS, **old) == expected


def test_what_would_be_another_model_is_refused(bundle: Path) -> None:
    assert stonnx.CrossEncoder(bundle, num_labels=1).num_labels == 1
    with pytest.raises(stonnx.UnsupportedError, match="num_labels=2"):
        stonnx.CrossEncoder(bundle, num_labels=2)
    with pytest.raises(stonnx.UnsupportedError, match="keep_in_fp32_modules"):
        stonnx.CrossEncoder(bundle, keep_in_fp32_modules=["0.model.classifier"])


@pytest.mark.parametrize("fields", [{"num_labels": None}, {"activation": None}, {"activation": "swish"}])
def test_a_bundle_without_labels_or_activation_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = write_reranker(tmp_path / "bundle", 1, "Sigmoid", **fields)
    with pytest.raises(stonnx.BundleFormatError, match=r"num_labels .* activation"):
        stonnx.CrossEncoder(path)


def test_labels_by_index(one: stonnx.CrossEncoder, three: stonnx.CrossEncoder) -> None:
    assert three.config.id2label == dict(enumerate(LABELS))
    assert three.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert three.config.num_labels == three.num_labels == 3
    assert one.config.id2label == {0: "LABEL_0"}
