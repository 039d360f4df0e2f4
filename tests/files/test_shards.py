"""Many files in shards: nothing is done twice, nothing is lost, and a file that fails stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle

import stonnx
from stonnx import InvalidArgumentError, cli
from stonnx._files import shards
from stonnx._files.shards import Shard


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_bundle(tmp_path_factory.mktemp("shards") / "toy", rounds=50, width=64)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / f"{number}.txt" for number in range(7)]
    for number, path in enumerate(paths):
        path.write_text("".join(f"the river {number} {line}\n" for line in range(30 + number)), encoding="utf-8")
    return paths


def encode(bundle: Path, sources: list[Path], output: Path, *options: str) -> int:
    return cli.main(["encode", str(bundle), *map(str, sources), "-o", str(output), "--quiet", *options])


def expected(bundle: Path, source: Path) -> np.ndarray:
    return stonnx.SentenceTransformer(bundle).encode(source.read_text(encoding="utf-8").splitlines())


def output_of(folder: Path, source: Path) -> Path:
    (found,) = folder.glob(f"{source.name}-*.npy")
    return found


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1.0/2"])
def test_what_is_not_a_shard(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="i/n with i from 1 to n"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_shards_divide_the_files(count: int) -> None:
    files = [Path(f"{number}.txt") for number in range(7)]
    shares = [Shard(index, count).of(reversed(files)) for index in range(1, count + 1)]
    assert sorted(path for share in shares for path in share) == files
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_together_give_every_file(bundle: Path, sources: list[Path], tmp_path: Path) -> None:
    for index in (1, 2, 3):
        assert encode(bundle, sources, tmp_path / "out", "--shard", f"{index}/3") == 0
    assert len([*(tmp_path / "out").glob("*.npy")]) == len(sources)
    for source in sources:
        np.testing.assert_allclose(np.load(output_of(tmp_path / "out", source)), expected(bundle, source), atol=1e-6)
    manifests = [json.loads((tmp_path / "out" / f"shard-{index}-of-3.json").read_text()) for index in (1, 2, 3)]
    assert all(manifest["complete"] for manifest in manifests)
    rows = {entry["input"]: entry["rows"] for manifest in manifests for entry in manifest["files"]}
    assert rows == {str(source): 30 + number for number, source in enumerate(sources)}


def test_the_same_command_does_nothing_twice(bundle: Path, sources: list[Path], tmp_path: Path) -> None:
    assert encode(bundle, sources, tmp_path) == 0
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    manifest = (tmp_path / "shard-1-of-1.json").read_text()
    assert encode(bundle, sources, tmp_path) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == before
    assert (tmp_path / "shard-1-of-1.json").read_text() == manifest
    assert encode(bundle, sources, tmp_path, "--shard", "1/2") == 0
    counts = [entry["rows"] for entry in json.loads((tmp_path / "shard-1-of-2.json").read_text())["files"]]
    assert counts == [len(source.read_text().splitlines()) for source in sources[::2]]


def test_another_content_or_option_is_another_file(bundle: Path, sources: list[Path], tmp_path: Path) -> None:
    assert encode(bundle, sources[:1], tmp_path, "--shard", "1/1") == 0
    assert encode(bundle, sources[:1], tmp_path, "--shard", "1/1", "--normalize") == 0
    changed = tmp_path / "changed" / sources[0].name
    changed.parent.mkdir()
    changed.write_text("the sun\n")
    assert encode(bundle, [changed], tmp_path, "--shard", "1/1") == 0
    assert len([*tmp_path.glob(f"{sources[0].name}-*.npy")]) == 3


def test_a_file_that_fails_stops_no_other(
    bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, missing = tmp_path / "a.txt", tmp_path / "b.txt"
    broken.write_bytes(b"fine\n\xff\xfe\n")
    assert encode(bundle, [broken, missing, *sources[:2]], tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "a.txt" in error
    assert "b.txt" in error
    assert "2 of 4 files" in error
    manifest = json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())
    assert not manifest["complete"]
    assert [bool(entry["error"]) for entry in manifest["files"]] == [
        bool(e["output"] is None) for e in manifest["files"]
    ]
    assert len([*(tmp_path / "out").glob("*.npy")]) == 2
    broken.write_text("fine\n")
    missing.write_text("there now\n")
    assert encode(bundle, [broken, missing, *sources[:2]], tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())["complete"]


def test_a_file_as_the_directory(
    bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert encode(bundle, sources, tmp_path / "out") == 1
    assert "Several inputs need a directory" in capsys.readouterr().err


def test_the_name_of_a_file_as_the_directory(
    bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(bundle, sources, tmp_path / "vectors.npy") == 1
    assert f"-o {tmp_path}/vectors/ --output-format npy" in capsys.readouterr().err
    assert not (tmp_path / "vectors.npy").exists()


def test_a_missing_package_is_said_once(
    bundle: Path,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a file is touched, not as the error of each."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert encode(bundle, sources, tmp_path / "out", "--output-format", "parquet") == 1
    assert capsys.readouterr().err.count("Parquet needs pyarrow") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["-o", "-"], ["-o", "out", "--shard", "9/3"]])
def test_refused(bundle: Path, sources: list[Path], options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["encode", str(bundle), *map(str, sources), *options, "--quiet"]) == 1
    assert "directory" in (error := capsys.readouterr().err) or "i/n" in error


def test_killed_again_and_again(bundle: Path, sources: list[Path], tmp_path: Path) -> None:
    """Whatever is under a final name is complete, and in the end everything is there once."""
    script = Path(sys.executable).with_name("stonnx")
    command: list[Any] = [script, "encode", bundle, *sources, "-o", tmp_path / "out", "--quiet", "--threads", "1"]
    for attempt in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = attempt + 1
        deadline = time.monotonic() + 60
        while len([*(tmp_path / "out").glob("*.npy")]) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "out").glob("*.npy"):
            source = next(source for source in sources if path.name.startswith(f"{source.name}-"))
            assert np.load(path).shape == (len(source.read_text().splitlines()), 64)
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "out").glob("*.npy")) == [s.name for s in sources]
    assert [*(tmp_path / "out").glob("*.part*")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
def test_inputs_that_are_not_files(
    bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")  # to open it would wait for a writer
    (tmp_path / "directory.txt").mkdir()
    assert encode(bundle, [tmp_path / "pipe.txt", tmp_path / "directory.txt", sources[0]], tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "pipe.txt is a pipe or a device" in error
    assert "it must be a file of texts" in error
    assert len([*(tmp_path / "out").glob("*.npy")]) == 1


@pytest.mark.parametrize("place", [".part", ""])
def test_something_in_the_way_is_not_a_complete_output(
    place: str, bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(bundle, sources[:1], tmp_path, "--shard", "1/1") == 0
    output = output_of(tmp_path, sources[0])
    output.unlink()
    Path(f"{output}{place}").mkdir()
    assert encode(bundle, sources[:1], tmp_path, "--shard", "1/1") == 1
    assert "not a" in capsys.readouterr().err
    assert not json.loads((tmp_path / "shard-1-of-1.json").read_text())["complete"]


def test_an_input_that_changes_after_its_name_is_known(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("the sun\n")
    name = shards.output_name

    def named_and_changed(*arguments: Any) -> str:
        found = name(*arguments)
        source.write_text("the sun\nthe river\n")
        return found

    monkeypatch.setattr(shards, "output_name", named_and_changed)
    assert encode(bundle, [source], tmp_path / "out", "--shard", "1/1") == 1
    assert "changed while it was encoded" in capsys.readouterr().err
    assert [*(tmp_path / "out").glob("*.npy")] == []


def test_a_fault_of_one_file_stops_no_other(
    bundle: Path, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shards.output_name

    def faulty(source: Path, *arguments: Any) -> str:
        if source == sources[0]:
            raise RuntimeError("Internal error: something else")
        return name(source, *arguments)

    monkeypatch.setattr(shards, "output_name", faulty)
    assert encode(bundle, sources, tmp_path) == 1
    entries = json.loads((tmp_path / "shard-1-of-1.json").read_text())["files"]
    assert [entry["error"] for entry in entries] == ["RuntimeError: Internal error: something else"] + [None] * 6


def test_error_field_of_many_files(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "the sun"}\n{"text": null}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "the river"}\n')
    options = ["--output-format", "jsonl", "--error-field", "problem"]
    assert encode(bundle, [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", *options) == 0
    assert "1 of them without a result" in capsys.readouterr().out
    for _ in range(2):
        entries = json.loads((tmp_path / "out" / "shard-1-of-1.json").read_text())["files"]
        assert [(entry["rows"], entry["failed_rows"]) for entry in entries] == [(2, 1), (1, 0)]
        assert encode(bundle, [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", *options) == 0


def test_long_names_and_names_that_are_not_utf8(bundle: Path, tmp_path: Path) -> None:
    try:
        strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/strange\xff.txt"))
        strange.write_text("the sun\n")
    except (OSError, UnicodeError):
        pytest.skip("this file system has names of UTF-8 only")
    long = tmp_path / f"{'x' * 240}.txt"
    long.write_text("the river\n")
    script = Path(sys.executable).with_name("stonnx")
    command: list[Any] = [script, "encode", bundle, strange, long, "-o", tmp_path / "out", "--quiet"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    assert rb"strange\udcff.txt" in result.stdout
    assert len([*(tmp_path / "out").glob("*.npy")]) == 2


def test_a_directory_that_cannot_be_one(
    bundle: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "file/below", "link"):
        assert encode(bundle, sources, tmp_path / name) == 1
        assert "Several inputs need a directory" in capsys.readouterr().err


def test_the_manifest_is_not_complete_before_the_end(
    bundle: Path, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after some of the files, and not when a later run begins with other inputs."""
    manifest, name = tmp_path / "shard-1-of-1.json", shards.output_name

    def stopped(source: Path, *arguments: Any) -> str:
        if source == sources[3]:
            raise KeyboardInterrupt
        return name(source, *arguments)

    monkeypatch.setattr(shards, "output_name", stopped)
    assert encode(bundle, sources, tmp_path) == 130
    assert (len(json.loads(manifest.read_text())["files"]), json.loads(manifest.read_text())["complete"]) == (3, False)
    monkeypatch.setattr(shards, "output_name", name)
    assert encode(bundle, sources, tmp_path) == 0
    assert json.loads(manifest.read_text())["complete"]
    monkeypatch.setattr(shards, "output_name", stopped)
    assert encode(bundle, sources, tmp_path) == 130
    assert (len(json.loads(manifest.read_text())["files"]), json.loads(manifest.read_text())["complete"]) == (7, False)
