"""Input files: tables, compressed files, and what is refused because it is not texts in lines."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stonnx import InvalidInputError, UnsupportedError
from stonnx._files import inputs
from stonnx._files.encode_file import encode_file

RECORDS = [
    {"id": "1", "text": "bread, rises"},
    {"id": "2", "text": 'the "river"\nflows'},
    {"id": "3", "text": ""},
    {"id": "4", "text": "Сегодня тепло"},
]
Write = Callable[[Path], None]


def encode(texts: list[str]) -> npt.NDArray[Any]:
    return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32)


def write_table(path: Path, delimiter: str, encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)


def compress(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def rows_of(source: Path, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    output = tmp_path / "out.jsonl"
    encode_file(encode, source, output, identity={}, overwrite=True, **options)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("A.CSV", ","), ("a.tsv", "\t"), ("a.tab", "\t")])
def test_tables(name: str, delimiter: str, window: int, packed: bool, tmp_path: Path) -> None:
    source = tmp_path / name
    write_table(source, delimiter)
    rows = rows_of(compress(source) if packed else source, tmp_path, window=window)
    assert [{"id": row["id"], "text": row["text"]} for row in rows] == RECORDS
    assert [row["embedding"] for row in rows] == encode([record["text"] for record in RECORDS]).tolist()


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_compressed_lines(ending: str, tmp_path: Path) -> None:
    texts = ["one", "", "drei"]
    source = tmp_path / f"a.{ending}"
    source.write_text("".join(f"{json.dumps({'text': t}) if ending == 'jsonl' else t}\n" for t in texts))
    assert rows_of(compress(source), tmp_path) == rows_of(source, tmp_path)


def test_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    """As spreadsheets write them."""
    source = tmp_path / "a.csv"
    source.write_bytes("\ufefftext,n\r\nbread,1\r\n\r\nriver,2\r\n\r\n".encode())
    assert [row["text"] for row in rows_of(source, tmp_path)] == ["bread", "river"]


def test_a_single_column_needs_no_name(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("passage\nbread\nriver\n")
    assert [row["passage"] for row in rows_of(source, tmp_path)] == ["bread", "river"]


def test_long_fields(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(f"id,text\n1,{'bread ' * 100_000}\n")
    (row,) = rows_of(source, tmp_path)
    assert len(row["text"]) == 600_000


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "txt"])
def test_an_interrupted_run_is_continued(kind: str, packed: bool, tmp_path: Path) -> None:
    source = tmp_path / f"a.{kind}"
    if kind == "txt":
        source.write_text("".join(f"{record['id']} text\n" for record in RECORDS))
    else:
        write_table(source, "," if kind == "csv" else "\t")
    source = compress(source) if packed else source
    whole = rows_of(source, tmp_path, window=2)
    calls = []

    def interrupted(texts: list[str]) -> npt.NDArray[Any]:
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(texts)

    output = tmp_path / "again.jsonl"
    with pytest.raises(KeyboardInterrupt):
        encode_file(interrupted, source, output, identity={}, window=2)
    report = encode_file(encode, source, output, identity={}, window=2)
    assert report.resumed_rows == 2
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,body\n1,bread\n", r'no column "text".*names: "id", "body".*--field'),
        ("text,text\n1,bread\n", r'two columns "text"'),
        ("id,text\n1,bread,too\n", r"line 2: the row has 3 columns, and the first one names 2 \(id, text\)"),
        ("id,text\n1,bread\n2\n", r"line 3: the row has 1 columns"),
        ('id,text\n1,"bread\n', r"not a valid table"),
        (b"id,text\n1,br\xffad\n", r"line 2: byte 0xff at byte offset 12 is not valid UTF-8"),
    ],
)
def test_tables_that_are_none(content: str | bytes, message: str, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInputError, match=message):
        rows_of(source, tmp_path)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:20] + b"?" * 9])
def test_damaged_compression(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    source = tmp_path / "a.txt.gz"
    source.write_bytes(damage(gzip.compress("\n".join(map(str, range(5000))).encode())))
    with pytest.raises(OSError, match=r"not an intact gzip file.*gzip -t"):
        rows_of(source, tmp_path)


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in inputs._REMEDIES] + ["A.JSON", "a.parquet.gz"])
def test_files_that_are_not_texts_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_bytes(b"[]\n")
    with pytest.raises(UnsupportedError, match=f"does not read .*{name} as it is"):
        rows_of(source, tmp_path)
    # Who knows better says so.
    if not name.endswith(".gz"):
        assert len(rows_of(source, tmp_path, input_format="lines")) == 1
