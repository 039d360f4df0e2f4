"""What the file system does to stonnx encode: outputs that exist, locks, full disks, planted links, rights."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_files import StopError, child, fake_encode, load, names, posix, run, stop_after, write_lines

from stonnx._files import part_file


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
