"""stonnx encode: what is read, what is written, and that no interruption leaves a torn or wrong file."""

from __future__ import annotations

import doctest
import errno
import hashlib
import inspect
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stonnx._errors import InvalidArgumentError, InvalidInputError, UnsupportedError
from stonnx._files import encode_file as encode_file_module
from stonnx._files import formats, part_file
from stonnx._files.encode_file import EncodeFileReport, encode_file

IDENTITY = {"model": "sha256:0", "normalize": True, "prompt": None}
OUTPUTS = ["npy", "jsonl", "safetensors"]
ROOT = Path(encode_file_module.__file__).parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def fake_encode(texts):
    """[n, 8] float32 of a hash: the same text has the same row everywhere, and any other text another one."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=32).digest() for text in texts)
    return (np.frombuffer(digests, "<u4").reshape(len(texts), 8) / 2**31 - 1).astype(np.float32)


def run(source: Path | None, output: Path, **options: Any) -> EncodeFileReport:
    return encode_file(options.pop("encode", fake_encode), source, output, **{"identity": IDENTITY, **options})


def load(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.array(np.load(path, mmap_mode="r"))
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        assert list(tensors) == ["embeddings"]
        return tensors["embeddings"]
    return np.array([row["embedding"] for row in records(path)], np.float32)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_lines(path: Path, count: int) -> list[str]:
    texts = [f"text {i} " + "é" * (i % 7) for i in range(count)]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", newline="")
    return texts


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class StopError(Exception):
    """Ends a run from inside `encode`."""


def stop_after(rows: int, error: BaseException | None = None) -> Callable[[list[str]], np.ndarray]:
    seen = 0

    def encode(texts: list[str]) -> np.ndarray:
        nonlocal seen
        if seen >= rows:
            raise error or StopError
        seen += len(texts)
        return fake_encode(texts)

    return encode


# --- formats ---------------------------------------------------------------------------------------------------------


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
        writer = formats.WRITERS[name]
        for dimension in (1, 3, 4096, 10**9):  # 2**63 bytes is what file systems can count to
            assert len(writer.header(2**63 // 4 // dimension, dimension, "float32")) == writer.header_size


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


# --- input that is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_invalid_utf8_names_line_and_byte_offset(tmp_path: Path, bom: bytes) -> None:
    (tmp_path / "in.txt").write_bytes(bom + b"\xc3\xa9\nok\r\nbad \xff here\n")
    with pytest.raises(
        InvalidInputError, match=rf"in\.txt, line 3: byte 0xff at byte offset {len(bom) + 11} "
    ) as error:
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=2)
    assert error.value.index == 2
    (tmp_path / "in.txt").write_bytes(bom + b"\xff")
    with pytest.raises(InvalidInputError, match=rf"line 1: byte 0xff at byte offset {len(bom)} "):
        run(tmp_path / "in.txt", tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"not valid JSON \(Expecting property name.*column 2\)"),
        ("text", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ('["a"]', "found a list"),
        ("1.5", "found a number"),
        ("null", "found null"),
        ("true", "found true"),
        ("{}", 'no field "text"; its fields: none'),
        ('{"body": "a", "id": 1}', 'no field "text"; its fields: "body", "id".*--field'),
        ('{"text": 1}', 'the field "text" holds a number'),
        ('{"text": null}', 'the field "text" holds null'),
        ('{"text": {}}', 'the field "text" holds an object'),
        ('{"text": "\\ud83d"}', "surrogate"),
        ("", "the line is blank"),
        (" \t\r", "the line is blank"),
    ],
)
def test_bad_jsonl(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "in.jsonl").write_text(f'"fine"\n"fine"\n{line}\n"fine"\n', newline="")
    with pytest.raises(InvalidInputError, match=rf"(?s)in\.jsonl, line 3: .*{problem}") as error:
        run(tmp_path / "in.jsonl", tmp_path / "out.npy")
    assert error.value.index == 2
    if "surrogate" not in problem:
        assert 'Each line must be an object with a string in "text", or a JSON string.' in str(error.value)
    assert names(tmp_path) == ["in.jsonl"]


def test_two_blank_lines_at_the_end_of_jsonl_are_refused_and_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n \n')
    assert run(tmp_path / "in.jsonl", tmp_path / "one.npy").rows == 1
    (tmp_path / "in.jsonl").write_text('"a"\n\n\n')
    with pytest.raises(InvalidInputError, match="line 2: the line is blank"):
        run(tmp_path / "in.jsonl", tmp_path / "two.npy")


def test_text_field_and_explicit_formats(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text('{"body": "a"}\n"b"\n')
    run(tmp_path / "in.txt", tmp_path / "out", input_format="jsonl", output_format="jsonl", text_field="body")
    assert [row["body"] for row in records(tmp_path / "out")] == ["a", "b"]
    run(tmp_path / "in.txt", tmp_path / "OUT.NPY")
    assert np.load(tmp_path / "OUT.NPY").shape == (2, 8)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out.csv", {}, r"out\.csv does not say .*\.npy, \.jsonl, \.safetensors do\..*npy, safetensors, jsonl"),
        ("out.npy", {"output_format": "csv"}, "output_format is 'csv'; allowed are npy, safetensors, jsonl"),
        ("out.npy", {"input_format": "xml"}, "input_format is 'xml'; allowed are lines, jsonl"),
        ("out.npy", {"window": 0}, "window is 0"),
        ("out.npy", {"dtype": "float16"}, "dtype is 'float16'; allowed are float32, int8, uint8"),
        ("out.npy", {"identity": {"model": object()}}, "identity cannot become JSON"),
        ("in.txt", {"output_format": "npy", "overwrite": True}, "both read and written"),
    ],
)
def test_bad_arguments(tmp_path: Path, output: str, options: dict[str, Any], message: str) -> None:
    texts = write_lines(tmp_path / "in.txt", 3)
    with pytest.raises(InvalidArgumentError, match=message):
        run(tmp_path / "in.txt", tmp_path / output, **options)
    assert names(tmp_path) == ["in.txt"]
    assert (tmp_path / "in.txt").read_text(encoding="utf-8").splitlines() == texts


def test_the_input_is_never_the_part_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "out.npy.part", 3)
    with pytest.raises(InvalidArgumentError, match="both read and written"):
        run(tmp_path / "out.npy.part", tmp_path / "out.npy")
    assert (tmp_path / "out.npy.part").stat().st_size > 0


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda texts: fake_encode(texts)[1:], r"returned shape \[1, 8\] for 2 texts"),
        (lambda texts: fake_encode(texts)[0], r"returned shape \[8\] for 2 texts"),
        (lambda texts: fake_encode(texts).tolist(), "returned list for 2 texts"),
        (lambda texts: fake_encode(texts).astype(np.float64), "dtype float64; allowed are float32, int8, uint8"),
        (lambda texts: fake_encode(texts)[:, : 8 - ("text 2 éé" in texts)], "7 dimensions of float32 after row 2"),
        (lambda texts: fake_encode(texts).astype("i1" if "text 2 éé" in texts else "f4"), "of int8 after row 2"),
    ],
)
def test_an_encoder_that_breaks_its_contract(tmp_path: Path, encode: Any, message: str) -> None:
    write_lines(tmp_path / "in.txt", 4)
    with pytest.raises(RuntimeError, match=f"Internal error: .*{message}"):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=2, encode=encode)
    assert not (tmp_path / "out.npy").exists()


def test_an_encoder_that_changes_after_a_resume(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 4)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=2, encode=stop_after(2))
    with pytest.raises(RuntimeError, match="after row 2"):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=2, encode=lambda texts: fake_encode(texts)[:, :4])


def test_jsonl_refuses_numbers_that_json_lacks(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("fine\nbroken\n")
    vectors = np.array([[1, 2], [3, np.nan]], np.float32)
    with pytest.raises(UnsupportedError, match=r"'broken' is not finite .*\.npy"):
        run(tmp_path / "in.txt", tmp_path / "out.jsonl", encode=lambda texts: vectors)
    run(tmp_path / "in.txt", tmp_path / "out.npy", encode=lambda texts: vectors)
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), vectors)


# --- streams and progress --------------------------------------------------------------------------------------------


def test_standard_input_is_read_in_windows_and_never_resumed(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    content = b"a\nb\nc\nd\ne"
    with pytest.raises(StopError):
        run(None, tmp_path / "out.npy", stdin=io.BytesIO(content), window=2, encode=stop_after(2))
    assert names(tmp_path) == []
    report = run(
        None, tmp_path / "out.npy", stdin=io.BytesIO(content), window=2, progress=lambda *call: calls.append(call)
    )
    assert (report.rows, report.resumed_rows) == (5, 0)
    assert calls == [(2, None), (4, None), (5, None)]
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(list("abcde")))


def test_a_stream_takes_over_the_part_file_of_a_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 9)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=2, encode=stop_after(4))
    (tmp_path / "out.npy.part.json.tmp").touch()  # it was killed while it wrote a journal
    report = run(None, tmp_path / "out.npy", stdin=io.BytesIO(b"x\n"))
    assert report.rows == 1
    assert "stream" in (report.restarted or "")
    assert names(tmp_path) == ["in.txt", "out.npy"]


@posix
def test_a_pipe_as_the_source_is_read_like_a_stream(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a\nb\nc\n")
    os.close(write)
    calls: list[tuple[int, int | None]] = []
    try:
        run(Path(f"/dev/fd/{read}"), tmp_path / "out.npy", window=2, progress=lambda *call: calls.append(call))
    finally:
        os.close(read)
    assert calls == [(2, None), (3, None)]
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(["a", "b", "c"]))


def test_progress_counts_bytes_and_windows_are_kept(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfaa\nbb\ncc")
    calls: list[tuple[int, int | None]] = []
    sizes: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return fake_encode(texts)

    run(
        tmp_path / "in.txt",
        tmp_path / "out.npy",
        window=2,
        encode=encode,
        progress=lambda *call: calls.append(call),
    )
    assert (sizes, calls) == ([2, 1], [(9, 11), (11, 11)])


def test_long_lines_end_a_window_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_WINDOW_BYTES", 1000)
    (tmp_path / "in.txt").write_text(("x" * 599 + "\n") * 5)
    sizes: list[int] = []
    run(tmp_path / "in.txt", tmp_path / "out.npy", encode=lambda t: sizes.append(len(t)) or fake_encode(t))
    assert sizes == [2, 2, 1]


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    with (tmp_path / "in.txt").open("w") as file:
        for _ in range(50):
            file.write(("x" * 999 + "\n") * 1000)
    zeros = np.zeros((1000, 256), np.float32)
    tracemalloc.start()
    try:
        report = run(tmp_path / "in.txt", tmp_path / "out.npy", window=1000, encode=lambda texts: zeros[: len(texts)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.rows == 50_000
    assert peak < 7e6  # two windows of text, one of vectors, and the read buffer; the files have 50 and 51 MB


# --- an interrupted run is continued ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", OUTPUTS)
@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_resume(tmp_path: Path, suffix: str, error: BaseException) -> None:
    write_lines(tmp_path / "in.txt", 100)
    run(tmp_path / "in.txt", tmp_path / f"whole.{suffix}", window=7)
    output = tmp_path / f"out.{suffix}"
    with pytest.raises(type(error)):
        run(tmp_path / "in.txt", output, window=7, encode=stop_after(50, error))
    assert names(tmp_path) == [
        "in.txt",
        *sorted([output.name + ".part", output.name + ".part.json"]),
        f"whole.{suffix}",
    ]
    with (tmp_path / f"out.{suffix}.part").open("ab") as file:
        file.write(b"written, but not in the journal" * 1000)
    calls: list[tuple[int, int | None]] = []
    report = run(tmp_path / "in.txt", output, window=13, progress=lambda *call: calls.append(call))
    assert (report.rows, report.resumed_rows, report.restarted) == (100, 56, None)
    assert len(calls) == 4
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert names(tmp_path) == ["in.txt", output.name, f"whole.{suffix}"]


def test_lines_are_counted_from_the_start_of_the_file_after_a_resume(tmp_path: Path) -> None:
    content = "é\n".encode() * 20 + b"bad \xff\n"
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(InvalidInputError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=4)
    with pytest.raises(InvalidInputError, match="line 21: byte 0xff at byte offset 64 ") as error:
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=4, encode=stop_after(0))
    assert error.value.index == 20


def test_a_clean_start_leaves_nothing_of_the_earlier_run(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 30)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=4, encode=stop_after(20))
    part = tmp_path / "out.npy.part"
    part.write_bytes(b"\x93NUMPY" + part.read_bytes()[6:])

    def encode(texts: list[str]) -> np.ndarray:
        assert part.read_bytes() == b"\0" * 128
        assert names(tmp_path) == ["in.txt", "out.npy.part"]
        raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", identity={}, encode=encode)
    assert names(tmp_path) == ["in.txt"]


def change_identity(directory: Path, options: dict[str, Any]) -> None:
    options["identity"] = {**IDENTITY, "model": "sha256:1"}


def change_true_to_one(directory: Path, options: dict[str, Any]) -> None:
    options["identity"] = {**IDENTITY, "normalize": 1}


def change_text_field(directory: Path, options: dict[str, Any]) -> None:
    options["text_field"] = "body"


def change_output_format(directory: Path, options: dict[str, Any]) -> None:
    options["output_format"] = "safetensors"


def change_input_content(directory: Path, options: dict[str, Any]) -> None:
    before = (directory / "in.txt").stat()
    content = (directory / "in.txt").read_bytes().replace(b"text 1 ", b"TEXT 1 ")
    (directory / "in.txt").write_bytes(content)
    os.utime(directory / "in.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def change_input_time(directory: Path, options: dict[str, Any]) -> None:
    os.utime(directory / "in.txt", ns=(1, 1))


def change_input_size(directory: Path, options: dict[str, Any]) -> None:
    before = (directory / "in.txt").stat()
    with (directory / "in.txt").open("a") as file:
        file.write("one more\n")
    os.utime(directory / "in.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def shorten_part_file(directory: Path, options: dict[str, Any]) -> None:
    os.truncate(directory / "out.npy.part", 200)


def remove_part_file(directory: Path, options: dict[str, Any]) -> None:
    (directory / "out.npy.part").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_identity, "changed since: identity.model"),
        (change_true_to_one, "changed since: identity.normalize"),
        (change_text_field, "changed since: format.text_field"),
        (change_output_format, "changed since: format.output"),
        (change_input_content, "changed since: input.sha256_of_first_mib"),
        (change_input_time, "changed since: input.mtime_ns"),
        (change_input_size, "changed since: input.sha256_of_first_mib, input.size"),
        (shorten_part_file, "its part file is missing, or shorter than its journal says"),
        (remove_part_file, "its part file is missing, or shorter than its journal says"),
    ],
)
def test_anything_that_differs_starts_clean(tmp_path: Path, change: Any, reason: str) -> None:
    write_lines(tmp_path / "in.txt", 30)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=4, encode=stop_after(20))
    options: dict[str, Any] = {}
    change(tmp_path, options)
    report = run(tmp_path / "in.txt", tmp_path / "out.npy", window=4, **options)
    assert (report.resumed_rows, report.restarted) == (0, reason)
    run(tmp_path / "in.txt", tmp_path / "whole.npy", **options)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("damage", [*range(8), "digit", "version"])
def test_a_garbage_journal_starts_clean(tmp_path: Path, damage: int | str) -> None:
    texts = write_lines(tmp_path / "in.txt", 30)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", window=4, encode=stop_after(20))
    journal = tmp_path / "out.npy.part.json"
    good = journal.read_bytes()
    garbage = [b"", b"\xff\xfe\x00", b"null", b"[]", b"{}", b'{"done": 3}', good[:-9], b"[" * 100_000]
    if damage == "digit":  # still JSON, and plausible: only the checksum can tell
        assert b'"rows": 20' in good
        journal.write_bytes(good.replace(b'"rows": 20', b'"rows": 19'))
    elif damage == "version":
        data = json.loads(good)
        del data["crc32"]
        data["version"] = 99
        journal.write_text(json.dumps({**data, "crc32": part_file._crc(data)}))
    else:
        journal.write_bytes(garbage[int(damage)])
    report = run(tmp_path / "in.txt", tmp_path / "out.npy", window=4)
    assert (report.resumed_rows, report.restarted) == (0, "its journal is unreadable, or of another version")
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))
    assert names(tmp_path) == ["in.txt", "out.npy"]


def child(body: str) -> list[str]:
    """The command of a Python process that has fake_encode, and none of pytest's imports or threads."""
    start = "import errno, hashlib, os, signal, subprocess, sys\nfrom pathlib import Path\nimport numpy as np\n"
    start += f"sys.path.insert(0, {str(ROOT)!r})\n"
    start += f"from stonnx._files.encode_file import encode_file\nIDENTITY = {IDENTITY!r}\n"
    return [sys.executable, "-c", start + inspect.getsource(fake_encode) + textwrap.dedent(body)]


@posix
@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_kill_9_at_every_line_of_code(tmp_path: Path, suffix: str) -> None:
    """A run of three windows is killed before each line that it executes, and then continued.

    Resumed rows are 0, 3, 6 or all 8; a kill after the last rename finds the output complete.
    """
    # In memory, where there is such a place: thousands of small files are replaced.
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as name:
        _kill_at_every_line(Path(name), suffix)


def _kill_at_every_line(tmp_path: Path, suffix: str) -> None:
    write_lines(tmp_path / "in.txt", 8)
    script = """
        source, output, expected = map(Path, sys.argv[1:])
        others = [output.with_name(output.name + end) for end in (".part", ".part.json", ".part.json.tmp")]

        def run(overwrite=False):
            return encode_file(fake_encode, source, output, identity=IDENTITY, window=3, overwrite=overwrite)

        def killed_at(step):
            def trace(frame, event, argument):
                nonlocal step
                # The formats are left out: they change no files.
                if os.path.basename(frame.f_code.co_filename) not in ("encode_file.py", "part_file.py"):
                    return None
                step -= event == "line"
                if step == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace
            pid = os.fork()
            if pid == 0:
                sys.settrace(trace)
                run()
                os._exit(0)
            return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

        os.fsync = lambda descriptor: None  # it is for power cuts, and most of the time that this test would take
        run()
        output.rename(expected)
        step, resumed, finished = 1, set(), 0
        while killed_at(step):
            if output.exists():
                finished += 1
                assert output.read_bytes() == expected.read_bytes(), f"torn when killed at step {step}"
                run(overwrite=True)
            else:
                resumed.add(run().resumed_rows)
            assert output.read_bytes() == expected.read_bytes(), f"wrong when continued after step {step}"
            assert not any(path.exists() for path in others), f"litter after step {step}"
            output.unlink()
            step += 1
        print(step, sorted(resumed), finished)
    """
    paths = [tmp_path / name for name in ("in.txt", f"out.{suffix}", f"expected.{suffix}")]
    found = subprocess.run([*child(script), *map(str, paths)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    steps, rest = found.stdout.split(" ", 1)
    assert int(steps) > 200
    assert rest.startswith("[0, 3, 6, 8] ")
    assert int(rest.split()[-1]) > 0


@posix
@pytest.mark.parametrize("suffix", ["safetensors", "jsonl"])
def test_kill_9_again_and_again_at_random_moments(tmp_path: Path, suffix: str) -> None:
    write_lines(tmp_path / "in.txt", 3000)
    output, expected = tmp_path / f"out.{suffix}", tmp_path / f"expected.{suffix}"
    run(tmp_path / "in.txt", expected)
    script = """
        encode_file(
            fake_encode, Path(sys.argv[1]), Path(sys.argv[2]), identity=IDENTITY, window=10,
            progress=lambda done, total: print(done, flush=True),
        )
    """
    seed = random.randrange(2**32)
    print("seed", seed)  # pytest shows it when the test fails
    moments = random.Random(seed)
    command = [*child(script), str(tmp_path / "in.txt"), str(output)]
    interrupted = 0
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(moments.randrange(1, 50)):
                process.stdout.readline()
            time.sleep(moments.random() * 0.003)
            process.kill()
        if output.exists():  # the kill came too late
            assert output.read_bytes() == expected.read_bytes()
            output.unlink()
        else:
            assert (tmp_path / f"out.{suffix}.part.json").exists()
            interrupted += 1
    report = run(tmp_path / "in.txt", output)
    assert interrupted > 0
    assert report.restarted is None
    assert output.read_bytes() == expected.read_bytes()
    assert names(tmp_path) == sorted(["in.txt", output.name, expected.name])


# --- what the file system does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "meanwhile"])
def test_an_existing_output_is_kept_unless_overwritten(tmp_path: Path, place: str) -> None:
    texts = write_lines(tmp_path / "in.txt", 6)
    output = tmp_path / "out.npy"

    def encode(part: list[str]) -> np.ndarray:
        output.write_bytes(b"precious")
        return fake_encode(part)

    if place == "before":
        output.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"out\.npy exists\. .*--overwrite"):
        run(tmp_path / "in.txt", output, encode=encode if place == "meanwhile" else fake_encode)
    assert output.read_bytes() == b"precious"
    report = run(tmp_path / "in.txt", output, overwrite=True)
    assert report.resumed_rows == (6 if place == "meanwhile" else 0)
    np.testing.assert_array_equal(load(output), fake_encode(texts))


def test_a_directory_is_never_replaced(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 6)
    (tmp_path / "out.npy").mkdir()
    with pytest.raises(FileExistsError, match="not a regular file"):
        run(tmp_path / "in.txt", tmp_path / "out.npy", overwrite=True)


@posix
def test_a_link_keeps_pointing_where_it_does(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 6)
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "big disk" / "real.npy")
    run(tmp_path / "in.txt", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").is_symlink()
    assert names(tmp_path / "big disk") == ["real.npy"]


def test_two_runs_at_once(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "in.txt", 20)
    refusals: list[str] = []

    def encode(part: list[str]) -> np.ndarray:
        with pytest.raises(BlockingIOError) as error:
            run(tmp_path / "in.txt", tmp_path / "out.npy")
        refusals.append(str(error.value))
        return fake_encode(part)

    run(tmp_path / "in.txt", tmp_path / "out.npy", encode=encode, window=10)
    assert len(refusals) == 2
    assert refusals[0].startswith("Another run is writing")
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))


@posix
def test_a_part_file_that_is_renamed_before_it_is_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run finishes between our open and our lock: what we have open is by now its output."""
    texts = write_lines(tmp_path / "in.txt", 5)
    (tmp_path / "out.npy.part").write_bytes(b"complete")
    lock = part_file._lock

    def finish_other_run_then_lock(file: io.FileIO) -> bool:
        monkeypatch.setattr(part_file, "_lock", lock)
        os.replace(tmp_path / "out.npy.part", tmp_path / "other.npy")
        return lock(file)

    monkeypatch.setattr(part_file, "_lock", finish_other_run_then_lock)
    run(tmp_path / "in.txt", tmp_path / "out.npy")
    assert (tmp_path / "other.npy").read_bytes() == b"complete"
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))


@posix
def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    write_lines(tmp_path / "in.txt", 5)
    with pytest.warns(UserWarning, match="cannot be locked .* do not start a second run"):
        assert run(tmp_path / "in.txt", tmp_path / "out.npy").rows == 5


@pytest.mark.parametrize(
    ("call", "time"),
    [
        (call, time + 1)
        for call, times in {"write": 4, "fsync": 4, "replace": 4, "journal": 3}.items()
        for time in range(times)
    ],
)
def test_a_disk_that_is_full_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, time: int) -> None:
    """Three windows, then the header and the rename: each call of each kind fails once."""
    texts = write_lines(tmp_path / "in.txt", 8)
    holder, name = {
        "write": (part_file, "_write_all"),
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "journal": (part_file, "_write_new"),
    }[call]
    original = getattr(holder, name)
    calls = 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != time:
            return original(*arguments, **options)
        if call in ("write", "journal"):  # half of it still fits
            original(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, full)
        with pytest.raises(OSError, match=r"No space left on device\. Free some space") as error:
            run(tmp_path / "in.txt", tmp_path / "out.npy", window=3)
    assert error.value.errno == errno.ENOSPC
    assert isinstance(error.value.__cause__, OSError)
    left = [] if time == 1 else ["out.npy.part", "out.npy.part.json"]
    assert names(tmp_path) == ["in.txt", *left]
    report = run(tmp_path / "in.txt", tmp_path / "out.npy", window=3)
    assert report.resumed_rows == min(8, 3 * (time - 1))
    np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))
    assert names(tmp_path) == ["in.txt", "out.npy"]


@posix
def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    import resource

    write_lines(tmp_path / "in.txt", 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large\. .*ulimit") as error:
            run(tmp_path / "in.txt", tmp_path / "out.npy", window=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert (tmp_path / "out.npy.part").stat().st_size == 10_000
    assert run(tmp_path / "in.txt", tmp_path / "out.npy", window=100).resumed_rows == 300


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, to mount a small disk of its own")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 20_000)
    run(tmp_path / "in.txt", tmp_path / "expected.npy")
    (tmp_path / "disk").mkdir()
    script = """
        source, disk, expected = map(Path, sys.argv[1:])
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]).returncode:
            sys.exit("cannot mount")
        try:
            encode_file(fake_encode, source, disk / "out.npy", identity=IDENTITY, window=500)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        assert sorted(path.name for path in disk.iterdir()) == ["out.npy.part", "out.npy.part.json"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        report = encode_file(fake_encode, source, disk / "out.npy", identity=IDENTITY, window=500)
        assert (disk / "out.npy").read_bytes() == expected.read_bytes()
        print(report.resumed_rows)
    """
    arguments = [str(tmp_path / name) for name in ("in.txt", "disk", "expected.npy")]
    command = ["unshare", "--map-root-user", "--mount", *child(script), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and ("unshare" in found.stderr or "cannot mount" in found.stderr):
        pytest.skip(f"this system allows no mount: {found.stderr.strip()}")
    assert found.returncode == 0, found.stderr
    assert 5000 < int(found.stdout) < 8192


@posix
@pytest.mark.parametrize("end", [".part", ".part.json", ".part.json.tmp"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "directory"])
def test_what_somebody_has_planted_is_not_written_to(tmp_path: Path, end: str, kind: str) -> None:
    """A shared directory: whoever guesses the name of an output can put something there."""
    texts = write_lines(tmp_path / "in.txt", 5)
    precious, planted = tmp_path / "precious", tmp_path / f"out.npy{end}"
    if kind != "dangling link":
        precious.write_text("data")
    if kind == "second name":
        os.link(precious, planted)
    elif kind == "pipe":
        os.mkfifo(planted)
    elif kind == "directory":
        planted.mkdir()
    else:
        planted.symlink_to(precious)
    if end == ".part" and kind != "second name":
        with pytest.raises(FileExistsError, match=r"out\.npy\.part is not a regular file\. Remove it"):
            run(tmp_path / "in.txt", tmp_path / "out.npy")
    elif kind == "directory":
        with pytest.raises(OSError, match=r"out\.npy\.part"):
            run(tmp_path / "in.txt", tmp_path / "out.npy")
    else:
        run(tmp_path / "in.txt", tmp_path / "out.npy")
        np.testing.assert_array_equal(load(tmp_path / "out.npy"), fake_encode(texts))
    assert precious.exists() == (kind != "dangling link")
    assert not precious.exists() or precious.read_text() == "data"


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("end", [".part", ".part.json"])
def test_what_another_user_has_planted(tmp_path: Path, end: str) -> None:
    write_lines(tmp_path / "in.txt", 20)
    with pytest.raises(StopError):
        run(tmp_path / "in.txt", tmp_path / "out.npy", encode=stop_after(8), window=4)
    os.chown(tmp_path / f"out.npy{end}", 65534, 65534)
    if end == ".part":
        with pytest.raises(FileExistsError, match=r"out\.npy\.part belongs to another user\. Remove it"):
            run(tmp_path / "in.txt", tmp_path / "out.npy")
    else:
        report = run(tmp_path / "in.txt", tmp_path / "out.npy")
        assert (report.resumed_rows, report.restarted) == (0, "its journal is unreadable, or of another version")


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, to mount a file of its own")
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_mounted(tmp_path: Path, overwrite: bool) -> None:
    """It cannot be replaced by a rename, which is said before any text is encoded."""
    write_lines(tmp_path / "in.txt", 5)
    for name in ("volume", "out put.npy"):
        (tmp_path / name).touch()
    script = """
        source, volume, output = map(Path, sys.argv[1:4])
        if subprocess.run(["mount", "--bind", str(volume), str(output)]).returncode:
            sys.exit("cannot mount")
        def encode(texts):
            raise AssertionError("too late")
        try:
            encode_file(encode, source, output, identity=IDENTITY, overwrite=len(sys.argv) > 4)
        except FileExistsError as error:
            print(error)
    """
    arguments = [str(tmp_path / name) for name in ("in.txt", "volume", "out put.npy")] + ["x"] * overwrite
    command = ["unshare", "--map-root-user", "--mount", *child(script), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and ("unshare" in found.stderr or "cannot mount" in found.stderr):
        pytest.skip(f"this system allows no mount: {found.stderr.strip()}")
    assert found.returncode == 0, found.stderr
    assert "out put.npy is a mount point, as `docker run -v FILE:FILE` makes one" in found.stdout
    assert "Mount the directory instead" in found.stdout
    assert names(tmp_path) == ["in.txt", "out put.npy", "volume"]


@contextmanager
def without_root() -> Iterator[None]:
    """Root may write everywhere: be nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_a_directory_that_is_read_only(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # nobody cannot enter tmp_path
        directory = Path(name)
        write_lines(directory / "in.txt", 5)
        directory.chmod(0o555)
        with (
            without_root(),
            pytest.raises(PermissionError, match=r"out\.npy\.part: Permission denied\. Name an output in"),
        ):
            run(directory / "in.txt", directory / "out.npy")
        assert names(directory) == ["in.txt"]
        directory.chmod(0o755)


def test_directories_and_sources_that_are_missing(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", 5)
    with pytest.raises(FileNotFoundError, match=r"out\.npy\.part: No such file or directory\. .*mkdir -p"):
        run(tmp_path / "in.txt", tmp_path / "missing" / "out.npy")
    with pytest.raises(FileNotFoundError, match=r"Cannot read .*none\.txt: No such file.*Check the path"):
        run(tmp_path / "none.txt", tmp_path / "out.npy")
    with pytest.raises(OSError, match="Cannot read"):
        run(tmp_path, tmp_path / "out.npy")
    assert names(tmp_path) == ["in.txt"]


def test_no_more_than_one_fsync_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(descriptor) or fsync(descriptor))
    write_lines(tmp_path / "in.txt", 40)
    run(tmp_path / "in.txt", tmp_path / "out.npy", window=4)
    assert len(calls) == (11 if sys.platform == "win32" else 12)  # ten windows, the header, and the directory


@pytest.mark.parametrize("module", [encode_file_module, formats, part_file])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
