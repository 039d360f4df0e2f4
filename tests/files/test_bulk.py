"""`stonnx encode` with every kind of model, over many files: what is written, what is refused, and what goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

import stonnx
from stonnx import cli

load_npz = pytest.importorskip("scipy.sparse").load_npz

QUERIES = ["what rises", "the city", "of the sun", "what is"]
TEXTS = ["bread rises", "the river flows", "the sun shines", "what is the city"]
# What stonnx promises for a text in any batch.
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bulk")
    dense = {"task": "embedding", "embedding_dimension": 8, "prompts": {"document": "document: "}}
    sparse = {"task": "sparse", "embedding_dimension": 40, "prompts": {"query": "question: "}}
    rerank = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    labels = {"task": "rerank", "num_labels": 3, "activation": "identity"}
    one = pair_graph(toy_table(1, 5), np.float32([0.5]), "Sigmoid")
    three = pair_graph(toy_table(3, 5), np.float32([0.5, 1, 2]), "Identity")
    return {
        "dense": write_bundle(folder / "dense", {"default": dense_graph(toy_table(8, 5))}, **dense),
        "sparse": write_bundle(folder / "sparse", {"default": sparse_graph(toy_table(40, 6))}, **sparse),
        "rerank": write_bundle(folder / "rerank", {"default": one}, **rerank),
        "labels": write_bundle(folder / "labels", {"default": three}, **labels),
    }


def arrow() -> Any:
    """The package, with its part for Parquet; the test is skipped if it is not installed."""
    pytest.importorskip("pyarrow.parquet")
    return sys.modules["pyarrow"]


def encode(*arguments: Any) -> int:
    return cli.main(["encode", *map(str, arguments), "--quiet"])


def write_pairs(path: Path, count: int = 4, *, query: str = "query", text: str = "text") -> Path:
    rows = [{"id": number, query: QUERIES[number % 4], text: TEXTS[number % 4]} for number in range(count)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        pa = arrow()
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_sparse_vectors(ending: str, toys: dict[str, Path], tmp_path: Path) -> None:
    source = write_pairs(tmp_path / f"in.{ending}")
    assert encode(toys["sparse"], source, "-o", tmp_path / "out.npz", "--query", "--max-active-dims", 3) == 0
    expected = stonnx.SparseEncoder(toys["sparse"]).encode_query(TEXTS, max_active_dims=3)
    np.testing.assert_allclose(load_npz(tmp_path / "out.npz").toarray(), expected.toarray(), **SAME)
    assert expected.nnz == 12


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_scores(ending: str, toys: dict[str, Path], tmp_path: Path) -> None:
    source = write_pairs(tmp_path / f"in.{ending}", query="q", text="body")
    options = ("--query-field", "q", "--field", "body")
    assert encode(toys["rerank"], source, "-o", tmp_path / "out.npy", *options) == 0
    pairs = list(zip(QUERIES, TEXTS, strict=True))
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), stonnx.CrossEncoder(toys["rerank"]).predict(pairs), **SAME
    )
    assert encode(toys["labels"], source, "-o", tmp_path / "labels.npy", *options) == 0
    expected = stonnx.CrossEncoder(toys["labels"]).predict(pairs)
    np.testing.assert_allclose(np.load(tmp_path / "labels.npy"), expected, **SAME)


def test_parquet_keeps_ids(toys: dict[str, Path], tmp_path: Path) -> None:
    pa = arrow()
    source = write_pairs(tmp_path / "in.parquet")
    for name, columns in (("dense", ["embedding"]), ("sparse", ["indices", "values"]), ("rerank", ["score"])):
        assert encode(toys[name], source, "-o", tmp_path / f"{name}.parquet") == 0
        found = pa.parquet.read_table(tmp_path / f"{name}.parquet")
        assert found.column_names == ["id", "query", "text", *columns]
        assert found["id"].to_pylist() == [0, 1, 2, 3]
    expected = stonnx.SentenceTransformer(toys["dense"]).encode(TEXTS)
    found = pa.parquet.read_table(tmp_path / "dense.parquet")
    np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), expected, **SAME)


def test_search_and_rank_read_parquet(
    toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(tmp_path / "in.parquet")
    for command, name in (("search", "dense"), ("rank", "rerank")):
        assert cli.main([command, str(toys[name]), "what rises", str(source), "--json"]) == 0
        hits = json.loads(capsys.readouterr().out)
        assert sorted(hit["corpus_id"] for hit in hits) == [hit["id"] for hit in sorted_records(hits)] == [0, 1, 2, 3]
        assert all(hit["text"] == TEXTS[hit["record"]["id"]] for hit in hits)


def sorted_records(hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((hit["record"] for hit in hits), key=lambda record: record["id"])


def test_standard_output(toys: dict[str, Path], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    source = write_pairs(tmp_path / "in.jsonl")
    for name, fields in (("sparse", {"indices", "values"}), ("rerank", {"score"})):
        assert encode(toys[name], source, "-o", "-") == 0
        rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
        assert [row["id"] for row in rows] == [0, 1, 2, 3]
        assert all(fields < set(row) for row in rows)


@pytest.mark.parametrize("name", ["sparse", "rerank"])
@pytest.mark.parametrize("form", [None, "jsonl", "parquet"])
def test_shards(name: str, form: str | None, toys: dict[str, Path], tmp_path: Path) -> None:
    if form == "parquet":
        arrow()
    (tmp_path / "in").mkdir()
    sources = [write_pairs(tmp_path / "in" / f"{number}.jsonl", number) for number in range(1, 6)]
    options = [] if form is None else ["--output-format", form]
    for index in (1, 2):
        assert encode(toys[name], *sources, "-o", tmp_path / "out", "--shard", f"{index}/2", *options) == 0
    suffix = form or {"sparse": "npz", "rerank": "npy"}[name]
    outputs = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(f"*.{suffix}")}
    assert len(outputs) == 5
    manifests = [json.loads((tmp_path / "out" / f"shard-{index}-of-2.json").read_text()) for index in (1, 2)]
    rows = {Path(entry["input"]).name: entry["rows"] for manifest in manifests for entry in manifest["files"]}
    assert rows == {f"{number}.jsonl": number for number in range(1, 6)}
    assert encode(toys[name], *sources, "-o", tmp_path / "out", "--shard", "1/2", *options) == 0
    assert json.loads((tmp_path / "out" / "shard-1-of-2.json").read_text()) == manifests[0]
    assert outputs == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(f"*.{suffix}")}


def test_bad_files_stop_no_other(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = arrow()
    tables = {
        "null": {"id": [1, 2], "text": ["a", None]},
        "numbers": {"id": [1, 2], "text": [3, 4]},
        "column": {"id": [1, 2], "body": ["a", "b"]},
        "good": {"id": [1, 2], "text": ["a", "b"]},
    }
    sources = []
    for name, table in tables.items():
        sources.append(tmp_path / f"{name}.parquet")
        pa.parquet.write_table(pa.table(table), sources[-1])
    sources.append(tmp_path / "torn.parquet")
    sources[-1].write_bytes(sources[3].read_bytes()[:-20])
    sources.append(tmp_path / "record.jsonl")
    sources[-1].write_text('{"text": "a"}\n{"text": null}\n')
    assert encode(toys["dense"], *sources, "-o", tmp_path / "out", "--output-format", "parquet") == 1
    said = capsys.readouterr().err
    for expected in (
        'null.parquet, row 2: the column "text" has no value',
        'numbers.parquet has no texts in the column "text", but int64',
        'column.parquet has no column "text". Its columns of texts: "body"',
        "torn.parquet is not an intact Parquet file",
        'record.jsonl, line 2: the field "text" holds null',
        "5 of 6 files of shard 1/1 have no output",
    ):
        assert expected in said
    assert [path.name.partition("-")[0] for path in (tmp_path / "out").glob("*.parquet")] == ["good.parquet"]
    manifest = json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())
    assert not manifest["complete"]
    assert [entry["error"] is None for entry in manifest["files"]] == [
        entry["input"].endswith("good.parquet") for entry in manifest["files"]
    ]


@pytest.mark.parametrize("form", ["npy", "safetensors", "jsonl", "parquet"])
def test_an_output_that_is_not_complete(
    form: str, toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a full disk or an interrupted copy leave one: the name says what should be in it, so it has to be in it."""
    if form == "parquet":
        arrow()
    sources = [write_pairs(tmp_path / f"{number}.jsonl", number) for number in (2, 3)]
    arguments = (toys["dense"], *sources, "-o", tmp_path / "out", "--output-format", form)
    assert encode(*arguments) == 0
    torn = next((tmp_path / "out").glob(f"3.jsonl-*.{form}"))
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-7])
    assert encode(*arguments) == 1
    assert f"{torn} is there and is not complete" in (said := capsys.readouterr().err)
    assert "Delete it, and run the same command again" in said
    torn.unlink()
    assert encode(*arguments) == 0
    assert torn.read_bytes() == whole


@pytest.mark.parametrize("form", ["npy", "safetensors", "jsonl", "parquet", "npz"])
def test_a_file_without_rows_is_done_once(form: str, toys: dict[str, Path], tmp_path: Path) -> None:
    if form == "parquet":
        arrow()
    (tmp_path / "empty.txt").touch()
    arguments = ("-o", tmp_path / "out", "--output-format", form, "--shard", "1/1")
    for _ in range(2):
        assert encode(toys["sparse" if form == "npz" else "dense"], tmp_path / "empty.txt", *arguments) == 0
    assert len([*(tmp_path / "out").iterdir()]) == 2


def test_an_npz_that_is_not_complete(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (toys["sparse"], write_pairs(tmp_path / "a.jsonl"), "-o", tmp_path / "out", "--shard", "1/1")
    assert encode(*arguments) == 0
    (torn,) = (tmp_path / "out").glob("*.npz")
    torn.write_bytes(torn.read_bytes()[:-30])
    assert encode(*arguments) == 1
    assert "is not complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sparse", ["--normalize"], "--normalize has no meaning for"),
        ("sparse", ["--precision", "binary"], "--precision has no meaning for"),
        ("sparse", ["--query-field", "q"], "--query-field has no meaning for"),
        ("dense", ["--max-active-dims", "3"], "which gives dense vectors"),
        ("rerank", ["--document"], "--document has no meaning for"),
        ("rerank", ["--truncate-dim", "3"], "which scores pairs of texts"),
        ("rerank", ["--query-field", "text"], "both be in the field 'text'"),
        ("rerank", ["--query-field", "q"], 'no field "q"; its fields: "id", "query", "text".'),
        ("sparse", ["-o", "x.npy"], r"a CSR matrix [n, dim] fits into npz, parquet, jsonl"),
        ("dense", ["-o", "x.npz"], r"an array [n, dim] fits into npy, parquet, jsonl, safetensors"),
        ("dense", ["--shard", "0/2"], "A shard is i/n"),
        ("dense", ["-o", "-", "--output-format", "parquet"], "Standard output gets --output-format jsonl"),
    ],
)
def test_refused(
    name: str, options: list[str], said: str, toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(tmp_path / "in.jsonl")
    default = {"sparse": "x.npz"}.get(name, "x.npy")
    os.chdir(tmp_path)
    assert encode(toys[name], source, "-o", default, *options) == 1
    assert said in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x.np")]


def test_lines_hold_no_pairs(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("bread rises\n")
    assert encode(toys["rerank"], tmp_path / "in.txt", "-o", tmp_path / "x.npy") == 1
    assert 'a query in "query" and a text in "text"' in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text('"bread rises"\n')
    assert encode(toys["rerank"], tmp_path / "in.jsonl", "-o", tmp_path / "x.npy") == 1
    assert 'Each line must be an object with a string in "query" and in "text".' in capsys.readouterr().err


def test_a_damaged_bundle(toys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(toys["dense"], tmp_path / "damaged")
    next((tmp_path / "damaged").glob("*.onnx")).write_bytes(b"torn")
    source = write_pairs(tmp_path / "in.jsonl")
    assert encode(tmp_path / "damaged", source, "-o", tmp_path / "out", "--shard", "1/1") == 1
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = write_pairs(tmp_path / "in.jsonl")
    assert encode(toys["dense"], source, "-o", tmp_path / "out.parquet") == 1
    assert 'pip install "stonnx[cpu,parquet]"' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(("name", "suffix"), [("sparse", "npz"), ("rerank", "parquet")])
def test_killed_again_and_again(name: str, suffix: str, toys: dict[str, Path], tmp_path: Path) -> None:
    """Whatever is under a final name is complete, and in the end everything is there once."""
    if suffix == "parquet":
        arrow()
    (tmp_path / "in").mkdir()
    sources = [write_pairs(tmp_path / "in" / f"{number}.jsonl", 400 + number) for number in range(5)]
    script = Path(sys.executable).with_name("stonnx")
    command: list[Any] = [script, "encode", toys[name], *sources, "-o", tmp_path / "out", "--threads", "1", "--quiet"]
    command += ["--output-format", suffix]
    for wanted in (1, 2, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len([*(tmp_path / "out").glob(f"*.{suffix}")]) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert [*(tmp_path / "out").glob("*.part*")] == []
    rows = [entry["rows"] for entry in json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())["files"]]
    assert rows == ([400, 401, 402, 403, 404] if suffix != "jsonl" else [None] * 5)
