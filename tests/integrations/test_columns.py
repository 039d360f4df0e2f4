"""Batches of columns, as the engines for bulk work pass them: the same results in every kind of batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stonnx
from stonnx.integrations._columns import Columns, EmbedColumns, RankColumns, SparseColumns

TEXTS = ["bread rises", "the river flows", "", "what is the city"]
QUERIES = ["what rises", "the sun", "the city", "of the city"]
# Batches form runs of their own: what stonnx promises for a text in any of them.
SAME = {"rtol": 0, "atol": 1e-6}


def arrays(columns: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
    return {name: np.array(values, object if name != "id" else None) for name, values in columns.items()}


def arrow(columns: Mapping[str, list[Any]]) -> Any:
    return pytest.importorskip("pyarrow").table(dict(columns))


def arrow_batch(columns: Mapping[str, list[Any]]) -> Any:
    return pytest.importorskip("pyarrow").RecordBatch.from_pydict(dict(columns))


def frame(columns: Mapping[str, list[Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(dict(columns))


KINDS = [arrays, arrow, arrow_batch, frame]
Kind = Callable[[Mapping[str, list[Any]]], Any]


def lists(batch: Any) -> dict[str, list[Any]]:
    """The columns of any batch."""
    if isinstance(batch, dict):
        return {name: list(values) for name, values in batch.items()}
    if hasattr(batch, "to_pydict"):
        return batch.to_pydict()
    # Newer versions of pandas have NaN for a text that is not there.
    return {
        name: [None if isinstance(value, float) and np.isnan(value) else value for value in batch[name]]
        for name in batch.columns
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [None, "query", "document"])
def test_embeddings(kind: Kind, task: Any, toys: dict[str, Path]) -> None:
    model = stonnx.SentenceTransformer(toys["dense"])
    method = {None: model.encode, "query": model.encode_query, "document": model.encode_document}[task]
    batch = kind({"id": [3, 1, 2, 0], "text": TEXTS})
    options = {"normalize_embeddings": True}
    result = EmbedColumns(toys["dense"], task=task, encode_kwargs=options, threads=1)(batch)
    assert type(result) is type(batch)
    found = lists(result)
    assert list(found) == ["id", "text", "embedding"]
    assert (found["id"], found["text"]) == ([3, 1, 2, 0], TEXTS)
    np.testing.assert_allclose(np.stack(found["embedding"]), method(TEXTS, **options), **SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_vectors(kind: Kind, toys: dict[str, Path]) -> None:
    expected = stonnx.SparseEncoder(toys["sparse"]).encode(TEXTS)
    found = lists(SparseColumns(toys["sparse"], column="body", output_columns=("i", "v"))(kind({"body": TEXTS})))
    assert list(found) == ["body", "i", "v"]
    for row, (indices, values) in enumerate(zip(found["i"], found["v"], strict=True)):
        start, end = expected.indptr[row : row + 2]
        assert list(indices) == expected.indices[start:end].tolist()
        np.testing.assert_allclose(values, expected.data[start:end], **SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind: Kind, toys: dict[str, Path]) -> None:
    expected = stonnx.CrossEncoder(toys["rerank"]).predict(list(zip(QUERIES, TEXTS, strict=True)))
    found = lists(RankColumns(toys["rerank"], query_column="q")(kind({"q": QUERIES, "text": TEXTS})))
    np.testing.assert_allclose(found["score"], expected, **SAME)
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("precision", ["float32", "binary", "ubinary"])
def test_types_in_tables(kind: Kind, precision: str, toys: dict[str, Path]) -> None:
    found = EmbedColumns(toys["dense"], encode_kwargs={"precision": precision})(kind({"text": TEXTS}))
    expected = stonnx.SentenceTransformer(toys["dense"]).encode(TEXTS, precision=precision)
    np.testing.assert_allclose(np.stack(lists(found)["embedding"]), expected, **SAME)
    if kind is not frame:
        pa = pytest.importorskip("pyarrow")
        assert found.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(expected.dtype), expected.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind: Kind, toys: dict[str, Path]) -> None:
    empty = kind({"query": [], "text": []})
    for columns in (EmbedColumns(toys["dense"]), SparseColumns(toys["sparse"]), RankColumns(toys["rerank"])):
        found = columns(empty)
        assert {len(values) for values in lists(found).values()} == {0}
        assert set(lists(found)) == {"query", "text", *columns.outputs}


def test_no_rows_have_the_type_of_others(toys: dict[str, Path]) -> None:
    pa = pytest.importorskip("pyarrow")
    few, none = (pa.table({"text": pa.array(texts, pa.string())}) for texts in (TEXTS, []))
    for columns in (EmbedColumns(toys["dense"]), SparseColumns(toys["sparse"])):
        assert columns(none).schema == columns(few).schema


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_exists_is_replaced(kind: Kind, toys: dict[str, Path]) -> None:
    found = lists(RankColumns(toys["rerank"])(kind({"score": [0] * 4, "query": QUERIES, "text": TEXTS})))
    assert sorted(found) == ["query", "score", "text"]
    assert max(found["score"]) > 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "has no value"),
        (float("nan"), "has no value"),
        (7, r"has 7 \(int\), which is not a text"),
        (b"a", "bytes"),
        ("\ud83d", "surrogate"),
    ],
)
def test_a_row_that_is_not_a_text(value: Any, said: str, toys: dict[str, Path]) -> None:
    batch = {"id": np.arange(3) + 70, "text": np.array(["a", value, "b"], object)}
    with pytest.raises(stonnx.InvalidInputError, match=said) as caught:
        EmbedColumns(toys["dense"])(batch)
    assert caught.value.index == 1
    assert "Row 1 of a batch of 3 (id=" in str(caught.value)
    assert "71" in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))  # engines send errors from process to process
    assert (copy.index, str(copy)) == (1, str(caught.value))


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_can_be_kept(kind: Kind, toys: dict[str, Path]) -> None:
    texts = ["the sun", None, "bread rises"]
    found = lists(EmbedColumns(toys["dense"], error_column="why")(kind({"id": [1, 2, 3], "text": texts})))
    expected = stonnx.SentenceTransformer(toys["dense"]).encode(["the sun", "bread rises"])
    np.testing.assert_allclose(np.stack([found["embedding"][0], found["embedding"][2]]), expected, **SAME)
    assert found["why"][0] is found["why"][2] is None
    assert "no value" in found["why"][1]
    assert found["embedding"][1] is None or np.isnan(found["embedding"][1]).all()
    assert found["id"] == [1, 2, 3]
    queries = [None, "a", "b"]
    scores = lists(RankColumns(toys["rerank"], error_column="why")(kind({"query": queries, "text": texts})))
    assert [bool(reason) for reason in scores["why"]] == [True, True, False]
    assert "'query'" in scores["why"][0]
    assert scores["score"][2] > 0
    sparse = lists(SparseColumns(toys["sparse"], error_column="why")(kind({"text": texts})))
    assert sparse["indices"][1] is sparse["values"][1] is None
    assert len(sparse["indices"][0]) > 0


def test_texts_that_only_the_tokenizer_refuses(toys: dict[str, Path]) -> None:
    long = "river " * 40
    batch = {"text": np.array(["the sun", long, "bread", long], object)}
    options = {"too_long": "error"}
    found = EmbedColumns(toys["dense"], encode_kwargs=options, error_column="why")(batch)
    assert [bool(reason) for reason in found["why"]] == [False, True, False, True]
    assert "tokens" in found["why"][3]
    assert np.isfinite(found["embedding"][[0, 2]]).all()
    assert np.isnan(found["embedding"][[1, 3]]).all()
    with pytest.raises(stonnx.InvalidInputError, match="Row 1 of a batch of 4: Text 1 has"):
        EmbedColumns(toys["dense"], encode_kwargs=options)(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_column(kind: Kind, toys: dict[str, Path]) -> None:
    with pytest.raises(stonnx.InvalidArgumentError, match="no column 'body'; its columns: id, text"):
        EmbedColumns(toys["dense"], column="body")(kind({"id": [1], "text": ["a"]}))


def test_what_is_not_a_batch(toys: dict[str, Path]) -> None:
    for wrong in (["a"], "a", None, np.array(["a"])):
        with pytest.raises(stonnx.InvalidArgumentError, match=r"a dict of arrays, a pyarrow\.Table or a pandas"):
            EmbedColumns(toys["dense"])(wrong)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (EmbedColumns, {"column": ""}, "must be a str"),
        (EmbedColumns, {"column": 3}, "must be a str"),
        (EmbedColumns, {"output_column": "text"}, "different names"),
        (EmbedColumns, {"error_column": "embedding"}, "different names"),
        (EmbedColumns, {"task": "passage"}, "'query', 'document' or None"),
        (EmbedColumns, {"encode_kwargs": {"output_value": None}}, "must not have output_value"),
        (EmbedColumns, {"encode_kwargs": {"precision": "int8"}}, "batches would have different ones"),
        (SparseColumns, {"output_columns": "iv"}, "two names"),
        (RankColumns, {"query_column": "text"}, "different names"),
    ],
)
def test_refused_arguments(kind: type[Columns[Any]], options: dict[str, Any], said: str) -> None:
    with pytest.raises(stonnx.StonnxError, match=said):
        kind("bundle", **options)


def test_it_travels_without_its_model(toys: dict[str, Path]) -> None:
    columns = EmbedColumns(toys["dense"], threads=1)
    batch = {"text": np.array(TEXTS, object)}
    expected = columns(batch)["embedding"]
    sent = pickle.dumps(columns)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent)(batch)["embedding"], expected)


@pytest.mark.parametrize("library", ["pyarrow", "pandas"])
def test_two_columns_of_a_name(library: str, toys: dict[str, Path]) -> None:
    host = pytest.importorskip(library)
    if library == "pandas":
        batch = host.DataFrame([["a", 1, 2]], columns=["text", "id", "id"])
    else:
        batch = host.table([host.array(["a"]), host.array([1]), host.array([2])], names=["text", "id", "id"])
    with pytest.raises(stonnx.InvalidArgumentError, match="two columns 'id'"):
        EmbedColumns(toys["dense"])(batch)
