"""The formats of stonnx encode: what is read and what is written."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from encoded_files import OUTPUTS, fake_encode, load, names, records, run, stop_after, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from stonnx._files.results import EMBEDDING, Shape
from stonnx._files.writers import WRITERS


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("source", ["lines", "jsonl"])
def test_every_pair_of_formats(tmp_path: Path, source: str, output: str) -> None:
    texts = ["one", "", "zwei ü 三 🎉", "tab\there", 'quote " and \\', "last"]
    path = tmp_path / ("in.jsonl" if source == "jsonl" else "in.txt")
    given = [{"id": i, "text": text, "meta": {"n": [1.50, None]}} for i, text in enumerate(texts)]
    lines = [json.dumps(record, ensure_ascii=i % 2 == 0) for i, record in enumerate(given)]
    path.write_text("\n".join(lines if source == "jsonl" else texts), encoding="utf-8")
    report = run(path, tmp_path / f"out.{output}", window=4)
    assert (report.rows, report.resumed_rows, report.dimension) == (6, 0, 8)
    assert (report.output, report.restarted) == (tmp_path / f"out.{output}", None)
    assert report.seconds > 0
    embeddings = load(report.output)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, fake_encode(texts))
    assert names(tmp_path) == sorted([path.name, report.output.name])
    if output == "jsonl":
        kept = given if source == "jsonl" else [{"text": text} for text in texts]
        assert [{key: row[key] for key in row if key != "embedding"} for row in records(report.output)] == kept
        assert all(list(row)[-1] == "embedding" for row in records(report.output))


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_dtypes_in_all_outputs(tmp_path: Path, dtype: str) -> None:
    write_lines(tmp_path / "in.txt", 5)
    vectors = (np.arange(40).reshape(5, 8) * 3 - (60 if dtype != "uint8" else 0)).astype(dtype)
    for suffix in OUTPUTS:
        run(tmp_path / "in.txt", tmp_path / f"out.{suffix}", encode=lambda texts: vectors)
        found = load(tmp_path / f"out.{suffix}")
        assert suffix == "jsonl" or found.dtype == dtype
        np.testing.assert_array_equal(found, vectors)


def test_npy_is_byte_for_byte_what_numpy_saves(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "in.txt", 11)
    run(tmp_path / "in.txt", tmp_path / "out.npy", window=3)
    expected = io.BytesIO()
    np.save(expected, fake_encode(texts))
    assert (tmp_path / "out.npy").read_bytes() == expected.getvalue()


def test_headers_have_room_for_the_largest_files() -> None:
    for name in ("npy", "safetensors"):
        writer = WRITERS[name]
        for dimension in (1, 3, 4096, 10**9):  # 2**63 bytes is what file systems can count to
            shape = Shape(2**63 // 4 // dimension, dimension, "float32")
            assert len(writer.header(EMBEDDING, shape)) == writer.header_size


def test_big_endian_and_strided_arrays_are_written_little_endian_and_in_order(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "in.txt", 4)
    run(tmp_path / "in.txt", tmp_path / "out.npy", encode=lambda t: np.asfortranarray(fake_encode(t)).astype(">f4"))
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))


def test_jsonl_floats_are_the_shortest_that_round_trip_float32(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)][None]
    run(tmp_path / "in.txt", tmp_path / "out.jsonl", encode=lambda texts: values)
    np.testing.assert_array_equal(load(tmp_path / "out.jsonl").view(np.uint32), values.view(np.uint32))
    run(
        tmp_path / "in.txt", tmp_path / "0.jsonl", encode=lambda texts: np.array([[0.1, -0.0, 1e-5, 1 / 3]], np.float32)
    )
    assert (tmp_path / "0.jsonl").read_text() == '{"text": "a", "embedding": [0.1, -0.0, 1e-05, 0.33333334]}\n'


def test_jsonl_records_are_kept_as_they_were_written(tmp_path: Path) -> None:
    lines = [
        '{"b": 1.50, "n": 123456789012345678901234567890, "text": "x", "a": 1E5}',
        ' {"text":"\\u00e9 and \\u2028", "other":"\\ud83d"} ',
        '"a bare string"',
        '{"text": "again", "embedding": [9, 9], "z": "embedding"}',
        '{"text": "not a key", "z": "\\"embedding\\""}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", encode=lambda texts: np.ones((len(texts), 1), np.int8))
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n") == [
        lines[0][:-1] + ', "embedding": [1]}',
        lines[1].strip()[:-1] + ', "embedding": [1]}',
        '{"text": "a bare string", "embedding": [1]}',
        '{"text": "again", "z": "embedding", "embedding": [1]}',
        lines[4][:-1] + ', "embedding": [1]}',
        "",
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"\n\na\n", ["", "", "a"]),
        (b"\xef\xbb\xbfa\r\nb\r\n\r\nc", ["a", "b", "", "c"]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\nh".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "h"]),
        (b"a\rb\r\r\nc\r", ["a\rb\r", "c\r"]),
        (b"nul\x00 \n  spaces  \n", ["nul\x00 ", "  spaces  "]),
    ],
)
@pytest.mark.parametrize("window", [1, 100])
def test_lines(tmp_path: Path, content: bytes, texts: list[str], window: int) -> None:
    (tmp_path / "in.txt").write_bytes(content)
    report = run(tmp_path / "in.txt", tmp_path / "out.jsonl", window=window)
    assert report.rows == len(texts)
    assert [row["text"] for row in records(tmp_path / "out.jsonl")] == texts


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20), max_size=12
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    window=st.integers(1, 5),
    bom=st.booleans(),
)
def test_lines_round_trip(texts: list[str], end: str, window: int, bom: bool) -> None:
    if end == "\n":
        texts = [text.removesuffix("\r").rstrip("\r") for text in texts]
    content = "".join(text + end for text in texts).encode()
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory, "in.txt"), Path(directory, "out.jsonl")
        source.write_bytes((b"\xef\xbb\xbf" if bom or content.startswith(b"\xef\xbb\xbf") else b"") + content)
        assert run(source, output, window=window).rows == len(texts)
        assert [row["text"] for row in records(output)] == texts
        np.testing.assert_array_equal(load(output).reshape(-1, 8), fake_encode(texts))


@pytest.mark.parametrize("suffix", OUTPUTS)
@pytest.mark.parametrize("dimension", [None, 384])
def test_empty_input(tmp_path: Path, suffix: str, dimension: int | None) -> None:
    (tmp_path / "in.txt").touch()
    output = tmp_path / f"out.{suffix}"
    report = run(tmp_path / "in.txt", output, dimension=dimension, dtype="int8", encode=stop_after(0))
    assert (report.rows, report.dimension) == (0, dimension or 0)
    if suffix == "jsonl":
        assert output.read_bytes() == b""
    else:
        assert load(output).shape == (0, dimension or 0)
        assert load(output).dtype == np.int8
    assert names(tmp_path) == ["in.txt", output.name]
