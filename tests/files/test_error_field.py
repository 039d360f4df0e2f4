"""Rows without a text that can be encoded: with an error field they are kept, and the rest goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from encoded_files import StopError, fake_encode, records, run, stop_after

from stonnx import InvalidArgumentError, InvalidInputError
from stonnx._files.encode_file import encode_to_stream
from stonnx._files.results import SCORE, SPARSE

INPUTS = {
    "lines.txt": (b"one\n\xff two\nthree\n", ["one", None, "three"]),
    "objects.jsonl": (
        b'{"text": "one", "id": 1}\n{"text": null, "id": 2}\n\n{"id": 3}\n[1]\n{"text": 5}\n{"te\n"three"\n'
        b'{"text": "\\ud83d"}\n{"text": "last"}\n',
        ["one", None, None, None, None, None, None, "three", None, "last"],
    ),
    "table.csv": (
        b'id,text\n1,one\n2\n3,three,more,"and more"\n4,"a "quote" here"\n5,\xe9\n6,last\n',
        ["one", None, None, None, None, "last"],
    ),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    if path.suffix == ".jsonl":
        rows = records(path)
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return rows


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", INPUTS)
def test_bad_rows_are_kept_with_the_reason(name: str, suffix: str, tmp_path: Path) -> None:
    content, texts = INPUTS[name]
    (tmp_path / name).write_bytes(content)
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    report = run(tmp_path / name, tmp_path / f"out{suffix}", error_field="problem", window=3)
    rows = rows_of(tmp_path / f"out{suffix}")
    assert report.rows == len(rows) == len(texts)
    assert report.failed_rows == texts.count(None)
    for row, text in zip(rows, texts, strict=True):
        if text is None:
            assert row["embedding"] is None
            assert row["problem"].startswith(str(tmp_path / name))
        else:
            assert row["problem"] is None
            np.testing.assert_array_equal(np.float32(row["embedding"]), fake_encode([text])[0])
    numbers = [row["problem"].split("line ")[1].split(":")[0] for row in rows if row["problem"]]
    first = 2 if name == "table.csv" else 1
    assert numbers == [str(index + first) for index, text in enumerate(texts) if text is None]
    with pytest.raises(InvalidInputError):
        run(tmp_path / name, tmp_path / f"other{suffix}")


def test_nothing_of_a_bad_row_is_lost(tmp_path: Path) -> None:
    for name, (content, _) in INPUTS.items():
        (tmp_path / name).write_bytes(content)
        run(tmp_path / name, tmp_path / f"{name}.out", output_format="jsonl", error_field="error")
    lines, objects, table = (records(tmp_path / f"{name}.out") for name in INPUTS)
    assert lines[1]["text"] == r"\xff two"
    assert [row.get("id") for row in objects[:4]] == [1, 2, None, 3]
    assert [row["text"] for row in objects[4:7]] == [[1], 5, '{"te']
    assert table[1]["id"] == "2"
    assert '["more", "and more"]' in table[2]["error"]
    assert table[3]["text"] == '4,"a "quote" here"'
    assert table[4]["text"] == r"5,\xe9"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_parquet_columns(suffix: str, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.table({"q": ["a", None, "c"], "text": ["x", "y", None], "id": [1, 2, 3]}), tmp_path / "in.parquet"
    )

    def score(pairs: list[Any]) -> Any:
        return np.array([len(query) + len(text) for query, text in pairs], np.float32)

    options: dict[str, Any] = {"encode": score, "kind": SCORE, "query_field": "q", "error_field": "error"}
    assert run(tmp_path / "in.parquet", tmp_path / f"out{suffix}", **options).failed_rows == 2
    rows = rows_of(tmp_path / f"out{suffix}")
    assert [row["score"] for row in rows] == [2, None, None]
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert ['"q"' in (row["error"] or "") for row in rows] == [False, True, False]
    assert ['"text"' in (row["error"] or "") for row in rows] == [False, False, True]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_texts_that_the_model_refuses_and_results_that_are_not_finite(suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "in.txt").write_text("a\nrefused\nb\nnan\nrefused\n")

    def encode(texts: list[str]) -> Any:
        if "refused" in texts:
            raise InvalidInputError("not this one", texts.index("refused"))
        matrix = np.array([[0, 1, np.nan if text == "nan" else 2] for text in texts], np.float32)
        return scipy.sparse.csr_array(matrix)

    report = run(tmp_path / "in.txt", tmp_path / f"out{suffix}", encode=encode, kind=SPARSE, error_field="error")
    rows = rows_of(tmp_path / f"out{suffix}")
    assert report.failed_rows == 3
    assert [row["text"] for row in rows] == ["a", "refused", "b", "nan", "refused"]
    assert [row["values"] for row in rows] == [[1, 2], None, [1, 2], None, None]
    assert [row["error"] for row in rows[1:4:2]] == ["not this one", "the values is not finite (NaN or infinity)"]


def test_an_interrupted_run_goes_on_and_counts(tmp_path: Path) -> None:
    content, texts = INPUTS["objects.jsonl"]
    (tmp_path / "in.jsonl").write_bytes(content)
    options: dict[str, Any] = {"error_field": "error", "window": 3}
    with pytest.raises(StopError):
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", encode=stop_after(6), **options)
    report = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", **options)
    assert (report.resumed_rows, report.failed_rows) == (6, texts.count(None))
    run(tmp_path / "in.jsonl", tmp_path / "at_once.jsonl", error_field="error")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()


def test_streams(tmp_path: Path) -> None:
    sink = io.BytesIO()
    stdin = io.BytesIO(INPUTS["lines.txt"][0])
    assert encode_to_stream(fake_encode, None, sink, error_field="error", stdin=stdin) == 3
    assert [json.loads(line)["embedding"] is None for line in sink.getvalue().splitlines()] == [False, True, False]


@pytest.mark.parametrize("name", ["text", "embedding", ""])
def test_names_that_are_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(InvalidArgumentError, match="field for errors"):
        run(tmp_path / "in.txt", tmp_path / "out.jsonl", error_field=name)


def test_files_without_fields(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(InvalidArgumentError, match="--output-format jsonl or parquet"):
        run(tmp_path / "in.txt", tmp_path / "out.npy", error_field="error")


def test_a_quote_that_never_ends_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,text\n1,a\n2,"b\n3,c\n')
    with pytest.raises(InvalidInputError, match="unexpected end of data"):
        run(tmp_path / "in.csv", tmp_path / "out.jsonl", error_field="error")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npy"])
def test_two_columns_of_a_name(suffix: str, tmp_path: Path) -> None:
    """One of them would be lost. A file of vectors has none of them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in.csv").write_text("text,id,id\na,1,2\n")
    pq.write_table(pa.table([pa.array(["a"])] + [pa.array([1])] * 2, ["text", "id", "id"]), tmp_path / "in.parquet")
    for source in (tmp_path / "in.csv", tmp_path / "in.parquet"):
        output = tmp_path / f"{source.name}{suffix}"
        if suffix == ".npy":
            assert run(source, output).rows == 1
            continue
        with pytest.raises(InvalidInputError, match='two columns "id"'):
            run(source, output)


def test_an_empty_parquet_file_keeps_its_columns(tmp_path: Path) -> None:
    """Otherwise a reader of many files, which takes the columns of the first one, would lose them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["a"], "id": [1], "kind": pa.array(["x"]).dictionary_encode()})
    for name, rows in (("full", table), ("empty", table.slice(0, 0))):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        report = run(tmp_path / f"{name}.parquet", tmp_path / f"{name}.out.parquet", error_field="e", dimension=8)
        assert report.rows == len(rows)
    assert pq.read_schema(tmp_path / "empty.out.parquet").equals(pq.read_schema(tmp_path / "full.out.parquet"))


def test_an_input_that_changes_while_it_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\n")

    def encode(texts: list[str]) -> Any:
        (tmp_path / "in.txt").write_text("a\nb\nand more\n")
        return fake_encode(texts)

    with pytest.raises(InvalidInputError, match="changed while it was encoded"):
        run(tmp_path / "in.txt", tmp_path / "out.npy", encode=encode, window=1)
    assert not (tmp_path / "out.npy").exists()
