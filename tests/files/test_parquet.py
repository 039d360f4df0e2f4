"""Parquet in and out: every column comes back, types too; bad rows and damaged files are named; memory is bounded."""

from __future__ import annotations

import datetime
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import InvalidArgumentError, InvalidInputError, UnsupportedError
from stonnx._files import parquet
from stonnx._files.encode_file import EncodeFileReport, encode_file, encode_to_stream
from stonnx._files.results import EMBEDDING, SCORE, SPARSE

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
sparse = pytest.importorskip("scipy.sparse")

TEXTS = ["bread rises", "", "the river flows", "тепло", "a" * 300, "the sun", "shines"]
COLUMNS = {
    "id": pa.array(range(2**60, 2**60 + 7)),
    "text": pa.array(TEXTS),
    "when": pa.array([datetime.datetime(2026, 1, day) for day in range(1, 8)], pa.timestamp("us")),
    "price": pa.array([Decimal("1.10")] * 7),
    "tags": pa.array([["a"], [], None, ["b", "c"], [], [], []]),
    "kind": pa.array(["x", "y", "x", "x", None, "y", "x"]).dictionary_encode(),
    "score": pa.array([1.5, None, float("nan"), 0, 0, 0, 0]),
    "place": pa.array([{"town": "Ulm", "zip": 7}] * 7),
    "raw": pa.array([b"\x00\xff"] * 7),
}


def embed(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), sum(map(ord, text)), -1.5] for text in texts], np.float32)


def sparse_embed(texts: list[str]) -> Any:
    return sparse.csr_array(np.array([[0, len(text), 0, float("e" in text)] for text in texts], np.float32))


def score(pairs: list[tuple[str, str]]) -> np.ndarray:
    return np.array([len(query) - len(text) for query, text in pairs], np.float32)


def run(source: Path, output: Path, encode: Any = embed, **options: Any) -> EncodeFileReport:
    return encode_file(encode, source, output, **{"identity": {"model": 1}, **options})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pq.write_table(pa.table(COLUMNS), tmp_path / "in.parquet", row_group_size=3)
    return tmp_path / "in.parquet"


@pytest.mark.parametrize("window", [1, 2, 100])
def test_every_column_comes_back_with_its_type(source: Path, tmp_path: Path, window: int) -> None:
    report = run(source, tmp_path / "out.parquet", window=window)
    assert (report.rows, report.dimension) == (7, 3)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*COLUMNS, "embedding"]
    before = pa.table({**COLUMNS, "kind": COLUMNS["kind"].dictionary_decode()})
    assert found.drop_columns(["embedding", "score"]).equals(before.drop_columns(["score"]))
    np.testing.assert_array_equal(found["score"].to_numpy(), before["score"].to_numpy())
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    np.testing.assert_array_equal(found["embedding"].to_pylist(), embed(TEXTS))


@pytest.mark.parametrize("output", ["npy", "jsonl", "safetensors"])
def test_to_other_formats(source: Path, tmp_path: Path, output: str) -> None:
    run(source, tmp_path / f"out.{output}", window=2)
    if output == "npy":
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), embed(TEXTS))
    if output == "jsonl":
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["embedding"] for row in rows] == embed(TEXTS).tolist()
        assert rows[2]["score"] is None  # NaN
        assert rows[0] == {
            "id": 2**60,
            "text": "bread rises",
            "when": "2026-01-01T00:00:00",
            "price": "1.10",
            "tags": ["a"],
            "kind": "x",
            "score": 1.5,
            "place": {"town": "Ulm", "zip": 7},
            "raw": "AP8=",
            "embedding": embed(TEXTS[:1])[0].tolist(),
        }


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_an_interrupted_run_is_continued(source: Path, tmp_path: Path, window: int) -> None:
    run(source, tmp_path / "whole.parquet", window=window)
    calls: list[int] = []

    def interrupted(texts: list[str]) -> np.ndarray:
        if sum(calls) >= 3:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return embed(texts)

    try:
        run(source, tmp_path / "out.parquet", encode=interrupted, window=window)
    except KeyboardInterrupt:
        assert not (tmp_path / "out.parquet").exists()
        assert run(source, tmp_path / "out.parquet", window=window).resumed_rows == sum(calls)
    found, whole = (pq.read_table(tmp_path / name) for name in ("out.parquet", "whole.parquet"))
    assert found.drop_columns(["score"]).equals(whole.drop_columns(["score"]))  # NaN is not equal to itself
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet", "whole.parquet"]


def test_an_embedding_column_that_exists_is_replaced(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": ["old"] * 7, "text": TEXTS}), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["text", "embedding"]
    np.testing.assert_array_equal(found["embedding"].to_pylist(), embed(TEXTS))


def records_to_parquet(tmp_path: Path, records: list[Any], **options: Any) -> Any:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run(tmp_path / "in.jsonl", tmp_path / "out.parquet", **options)
    return pq.read_table(tmp_path / "out.parquet")


@pytest.mark.parametrize("window", [1, 2, 100])
def test_types_of_json_do_not_depend_on_windows(tmp_path: Path, window: int) -> None:
    records = [
        {"id": 1, "text": "a", "n": 1, "mixed": 1, "nested": {"x": 1}, "flag": True, "big": 2**70},
        {"id": 2, "text": "b", "n": 2.5, "mixed": "one", "nested": {"y": [1]}, "flag": False, "big": 1},
        {"id": 3, "text": "c", "n": None, "mixed": None, "nested": None, "late": "x", "flag": 1, "big": None},
    ]
    found = records_to_parquet(tmp_path, records, window=window)
    types = {field.name: field.type for field in found.schema}
    assert types["id"] == pa.int64()
    assert types["n"] == pa.float64()
    assert types["mixed"] == types["flag"] == types["big"] == types["late"] == pa.string()
    assert found["n"].to_pylist() == [1.0, 2.5, None]
    assert found["mixed"].to_pylist() == ["1", '"one"', None]
    assert found["flag"].to_pylist() == ["true", "false", "1"]
    assert found["big"].to_pylist() == [str(2**70), "1", None]
    assert found["late"].to_pylist() == [None, None, "x"]
    assert found["nested"].to_pylist() == [{"x": 1, "y": None}, {"x": None, "y": [1]}, None]
    assert found.column_names[-1] == "embedding"


def test_lines_and_tables_to_parquet(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("bread\n\nriver\n")
    run(tmp_path / "in.txt", tmp_path / "lines.parquet", text_field="body")
    assert pq.read_table(tmp_path / "lines.parquet").column_names == ["body", "embedding"]
    (tmp_path / "in.csv").write_text("id,text\n007,bread\n008,river\n")
    run(tmp_path / "in.csv", tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet")["id"].to_pylist() == ["007", "008"]


@pytest.mark.parametrize("empty", ["parquet", "txt"])
def test_no_rows(tmp_path: Path, empty: str) -> None:
    source = tmp_path / f"in.{empty}"
    if empty == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), source)
    else:
        source.touch()
    for kind, encode, kinds in (
        (EMBEDDING, embed, [pa.list_(pa.float32(), 3)]),
        (SPARSE, sparse_embed, [pa.list_(pa.int32()), pa.list_(pa.float32())]),
        (SCORE, score, [pa.float32()]),
    ):
        output = tmp_path / f"{kind.fields[0]}.parquet"
        run(source, output, encode, kind=kind, dimension=0 if kind is SCORE else 3)
        found = pq.read_table(output)
        assert len(found) == 0
        assert [found.schema.field(name).type for name in kind.fields] == kinds


@pytest.mark.parametrize("window", [1, 3, 100])
def test_sparse_vectors(source: Path, tmp_path: Path, window: int) -> None:
    expected = sparse_embed(TEXTS)
    for name in ("parquet", "npz", "jsonl"):
        run(source, tmp_path / f"out.{name}", sparse_embed, kind=SPARSE, window=window)
    found = sparse.load_npz(tmp_path / "out.npz")
    assert type(found) is type(expected)
    assert (found.shape, found.dtype, found.indices.dtype) == (expected.shape, np.float32, np.int32)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    found.sum_duplicates()
    table = pq.read_table(tmp_path / "out.parquet", columns=["indices", "values"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for index, (start, end) in enumerate(zip(expected.indptr, expected.indptr[1:], strict=False)):
        parts = {"indices": expected.indices[start:end].tolist(), "values": expected.data[start:end].tolist()}
        assert {name: table[name][index].as_py() for name in parts} == parts
        assert {name: rows[index][name] for name in parts} == parts


def test_sparse_vectors_of_no_rows_and_of_no_values(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    run(tmp_path / "empty.txt", tmp_path / "a.npz", sparse_embed, kind=SPARSE, dimension=4)
    assert sparse.load_npz(tmp_path / "a.npz").shape == (0, 4)
    (tmp_path / "blank.txt").write_text("\n\n")
    run(tmp_path / "blank.txt", tmp_path / "b.npz", sparse_embed, kind=SPARSE, window=1)
    found = sparse.load_npz(tmp_path / "b.npz")
    assert (found.shape, found.nnz) == ((2, 4), 0)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("output", ["npy", "parquet", "jsonl", "safetensors"])
def test_scores(tmp_path: Path, ending: str, output: str) -> None:
    records = [{"id": str(index), "question": "what", "body": text} for index, text in enumerate(TEXTS)]
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{output}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), source)
    elif ending == "jsonl":
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        source.write_text("id,question,body\n" + "".join(",".join(record.values()) + "\n" for record in records))
    run(source, target, score, kind=SCORE, query_field="question", text_field="body", window=3)
    expected = score([("what", text) for text in TEXTS])
    if output == "npy":
        np.testing.assert_array_equal(np.load(target), expected)
    elif output == "safetensors":
        from safetensors.numpy import load_file

        np.testing.assert_array_equal(load_file(target)["scores"], expected)
    else:
        rows = (
            pq.read_table(target).to_pylist()
            if output == "parquet"
            else [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        )
        assert [{**row, "score": None} for row in rows] == [{**record, "score": None} for record in records]
        assert [row["score"] for row in rows] == expected.tolist()


def test_scores_of_several_labels(source: Path, tmp_path: Path) -> None:
    for name in ("npy", "parquet", "jsonl"):
        run(source, tmp_path / f"out.{name}", embed, kind=SCORE, window=2)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), embed(TEXTS))
    assert pq.read_table(tmp_path / "out.parquet")["score"].to_pylist() == embed(TEXTS).tolist()


@pytest.mark.parametrize(
    ("values", "message", "index"),
    [
        (["a", None, "c"], r'in\.parquet, row 2: the column "text" has no value', 1),
        (
            [1, 2],
            r'no texts in the column "text", but int64\. Its columns of texts: "other"\. Choose one with --field',
            None,
        ),
        ([None, None], r'no texts in the column "text", but null', None),
        ([["a"], ["b"]], 'no texts in the column "text", but list', None),
    ],
)
def test_rows_that_are_not_texts(values: list[Any], message: str, index: int | None, tmp_path: Path) -> None:
    table = pa.table({"text": values, "other": ["x"] * len(values)})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InvalidInputError, match=message) as caught:
        run(tmp_path / "in.parquet", tmp_path / "out.npy")
    assert caught.value.index == index
    assert not (tmp_path / "out.npy").exists()


def test_a_bad_row_far_inside_keeps_what_was_done(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(50)]
    pq.write_table(pa.table({"text": [*texts[:40], None, *texts[41:]]}), tmp_path / "in.parquet", row_group_size=7)
    with pytest.raises(InvalidInputError, match="row 41: ") as caught:
        run(tmp_path / "in.parquet", tmp_path / "out.npy", window=4)
    assert caught.value.index == 40
    assert (tmp_path / "out.npy.part").stat().st_size > 128


def test_invalid_utf8(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "in.parquet")
    with pytest.raises(InvalidInputError, match=r"row 2: the column \"text\" is not valid UTF-8"):
        run(tmp_path / "in.parquet", tmp_path / "out.npy")


def test_unknown_columns(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r'no column "body"\. Its columns of texts: "text", "kind"\. .*--field'):
        run(source, tmp_path / "out.npy", text_field="body")
    with pytest.raises(InvalidInputError, match=r'no column "q"\. .*--query-field'):
        run(source, tmp_path / "out.npy", score, kind=SCORE, query_field="q")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-10], lambda data: b"PAR1", lambda data: b"", lambda data: b"x" * 99]
)
def test_damaged_files(source: Path, tmp_path: Path, damage: Any) -> None:
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(OSError, match=r"in\.parquet is not an intact Parquet file"):
        run(source, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_progress_counts_the_bytes_of_the_file(source: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    encode_to_stream(embed, source, io.BytesIO(), progress=lambda done, _: seen.append(done), window=2)
    assert seen == sorted(seen)
    assert seen[-1] == source.stat().st_size
    run(source, tmp_path / "out.npy", progress=lambda *facts: seen.append(facts))
    assert seen[-1] == (source.stat().st_size, source.stat().st_size)


def test_what_cannot_be_read(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "in.parquet.gz")
    with pytest.raises(UnsupportedError, match="Unpack it first"):
        run(tmp_path / "in.parquet.gz", tmp_path / "out.npy")


def test_results_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"a CSR matrix \[n, dim\] fits into npz, parquet, jsonl"):
        run(source, tmp_path / "out.npy", sparse_embed, kind=SPARSE)
    with pytest.raises(InvalidArgumentError, match="both be in the field 'text'"):
        run(source, tmp_path / "out.npy", score, kind=SCORE, query_field="text")
    with pytest.raises(RuntimeError, match=r"returned shape \[2, 4\] for 3 texts, not a CSR matrix \[3, dim\]"):
        run(source, tmp_path / "out.npz", lambda texts: sparse_embed(texts[1:]), kind=SPARSE)


def test_long_rows_make_short_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_WINDOW_BYTES", 10_000)
    # Different characters, so that the file is about as large as its texts.
    texts = ["".join(chr(97 + (row * 7919 + place * place) % 26) for place in range(3000)) for row in range(40)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet", use_dictionary=False)
    sizes: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return embed(texts)

    run(tmp_path / "in.parquet", tmp_path / "out.npy", encode)
    assert max(sizes) <= 4
    assert sum(sizes) == 40


def test_the_output_has_large_row_groups(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n" * 1000)
    run(tmp_path / "in.txt", tmp_path / "out.parquet", window=10)
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """One row group of 200 MB of texts, in a process that may have 150 MB more than it starts with."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from stonnx._files.encode_file import encode_file
source, target = map(Path, sys.argv[1:])
encode = lambda texts: np.zeros((len(texts), 4), np.float32)
pq.write_table(pa.table({"text": ["warm"]}), source.with_name("warm.parquet"))
encode_file(encode, source.with_name("warm.parquet"), target.with_name("warm" + target.name), identity={})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encode_file(encode, source, target, identity={}, window=1024)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(tmp_path / "in.parquet", pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
        letters = rng.integers(97, 123, 200_000_000, np.uint8).tobytes().decode("ascii")
        writer.write_table(pa.table({"text": [letters[at : at + 2000] for at in range(0, len(letters), 2000)]}))
    assert pq.read_metadata(tmp_path / "in.parquet").num_row_groups == 1
    for target in ("out.npy", "out.parquet"):
        command = [sys.executable, "-c", code, tmp_path / "in.parquet", tmp_path / target]
        grown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert float(grown) < 150
