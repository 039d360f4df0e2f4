"""stonnx encode: input and arguments that are refused, streams, and progress."""

from __future__ import annotations

import doctest
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_files import StopError, fake_encode, load, names, posix, records, run, stop_after, write_lines

from stonnx._errors import InvalidArgumentError, InvalidInputError, UnsupportedError
from stonnx._files import encode_file as encode_file_module
from stonnx._files import formats, part_file

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
        ("out.csv", {}, r"out\.csv does not say .*\.npy, \.parquet, \.jsonl, \.safetensors do\..*npy, parquet"),
        ("out.npy", {"output_format": "csv"}, "output_format is 'csv'; allowed are npy, parquet, jsonl"),
        ("out.npz", {}, r"output_format is 'npz'; an array \[n, dim\] fits into npy, parquet"),
        ("out.npy", {"input_format": "xml"}, "input_format is 'xml'; allowed are lines, jsonl"),
        ("out.npy", {"window": 0}, "window must be a positive integer, got 0"),
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


# --- what the file system does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [encode_file_module, formats, part_file])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
