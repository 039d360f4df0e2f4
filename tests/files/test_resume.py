"""An interrupted run is continued, or starts clean if anything differs; no kill leaves a torn or wrong file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_files import (
    IDENTITY,
    OUTPUTS,
    StopError,
    child,
    fake_encode,
    load,
    names,
    posix,
    run,
    stop_after,
    write_lines,
)

from stonnx._errors import InvalidInputError
from stonnx._files import part_file


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
