"""Where bundles are written: beside others, over others, on other people's disks, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_bundles import dense_bundle

import stonnx_export.write.staging as staging_module
from stonnx import ExportError, SentenceTransformer
from stonnx._bundle.bundle import open_bundle
from stonnx._disk import create, exchange, try_lock
from stonnx_export.write.staging import check_target, staging_directory

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle to write copies of."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return dense_bundle(tmp_path / "made")


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a system that exchanges two directories in one step."""
    if request.param == "two renames":
        monkeypatch.setattr(staging_module, "exchange", lambda *_: False)
    return str(request.param)


def write(made: Path, target: Path, name: str, *, overwrite: bool = False) -> None:
    """As an export: a copy of a bundle, with this name of its source."""
    check_target(target, overwrite)
    with staging_directory(target, overwrite) as staging:
        for file in made.iterdir():
            shutil.copy(file, staging)
        data = json.loads((staging / "stonnx.json").read_text())
        data["source"]["name"] = name
        (staging / "stonnx.json").write_text(json.dumps(data))


def source(target: Path) -> str:
    return open_bundle(target).manifest.source.name


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


FILES = ["default.onnx", "stonnx.json", "tokenizer.json"]


def test_over_another(made: Path, tmp_path: Path, either_way: str) -> None:
    place = tmp_path / "place"
    for name in ("first", "second", "third"):
        write(made, place / "bundle", name, overwrite=True)
        assert source(place / "bundle") == name
        assert names(place) == ["bundle"]
        assert names(place / "bundle") == FILES


def test_through_a_link(made: Path, tmp_path: Path, either_way: str) -> None:
    """The link stays, and leads to the new bundle."""
    (tmp_path / "v1").mkdir()
    write(made, tmp_path / "v1" / "bundle", "first")
    (tmp_path / "current").symlink_to("v1/bundle")
    write(made, tmp_path / "current", "second", overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert source(tmp_path / "v1" / "bundle") == source(tmp_path / "current") == "second"
    assert names(tmp_path / "v1") == ["bundle"]


# --- exports that were killed ---


@pytest.mark.parametrize("number", [os.getpid(), 1, "0a1b2c3d"], ids=["own", "first", "letters"])
def test_leftovers_go_whatever_process_has_their_number_now(made: Path, tmp_path: Path, number: object) -> None:
    """In a container, the killed export was process 1, and so is the next."""
    place, leftover = tmp_path / "place", f".bundle.partial-{number}"
    (place / leftover).mkdir(parents=True)
    (place / leftover / "model.onnx").write_bytes(b"half")
    create(place / f"{leftover}.lock")
    write(made, place / "bundle", "new")
    assert names(place) == ["bundle"]


def test_a_running_export_keeps_its_directory(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with staging_directory(place / "bundle", False) as running:
        (running / "model.onnx").write_bytes(b"half")
        write(made, place / "bundle", "fast")
        assert (running / "model.onnx").read_bytes() == b"half"
        (running / "model.onnx").unlink()
        shutil.copytree(made, running, dirs_exist_ok=True)
        with pytest.raises(ExportError, match="exists already"):
            check_target(place / "bundle", False)
        shutil.rmtree(place / "bundle")
    assert names(place) == ["bundle"]


@posix
def test_a_running_export_in_another_namespace(tmp_path: Path, made: Path) -> None:
    """Its process has another number there, or none that can be seen: the lock is what counts."""
    place = tmp_path / "place"
    script = (
        "import sys; from pathlib import Path; from stonnx_export.write.staging import staging_directory\n"
        "with staging_directory(Path(sys.argv[1]), False) as staging:\n"
        "    print(staging.name, flush=True); sys.stdin.readline()\n"
        "    raise SystemExit(3)"
    )
    unshare = ["unshare", "--pid", "--fork", "--kill-child"] if _can("--pid", "--fork") else []
    command = [*unshare, sys.executable, "-c", script, str(place / "bundle")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        write(made, place / "bundle", "fast")
        assert names(place) == sorted(["bundle", name, f"{name}.lock"])
        process.communicate("\n")
    assert process.returncode == 3
    assert names(place) == ["bundle"]


def test_a_file_system_without_locks(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can tell whether an export is running, so nothing of it is removed; and nothing is in the way."""
    monkeypatch.setattr(staging_module, "try_lock", lambda _: None)
    place = tmp_path / "place"
    with staging_directory(place / "bundle", False):
        write(made, place / "bundle", "fast")
        assert len(names(place)) == 3
        assert "delete it if none is running" in caplog.text
        shutil.rmtree(place / "bundle")
    assert names(place) == ["bundle"]


def test_the_old_bundle_comes_back(made: Path, tmp_path: Path) -> None:
    """Killed between two renames: readers find the old bundle, and the next export brings it back."""
    place = tmp_path / "place"
    write(made, place / "bundle", "old")
    (place / "bundle").rename(place / ".bundle.partial-12345678-old")
    shutil.copytree(made, place / ".bundle.partial-12345678")
    assert source(place / "bundle") == "old"
    model = SentenceTransformer(place / "bundle")
    assert model.encode("the sun").shape == (8,)
    with pytest.raises(ExportError, match="exists already"):
        check_target(place / "bundle", False)
    assert names(place) == ["bundle"]
    assert source(place / "bundle") == "old"


@pytest.fixture
def overwriting(made: Path, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Starts a process that overwrites ``place/bundle`` again and again until it is killed; gives its number."""
    children = []

    def start() -> int:
        child = os.fork()
        if not child:
            try:
                for number in range(100_000):
                    write(made, tmp_path / "place" / "bundle", str(number), overwrite=True)
            finally:
                os._exit(1)
        children.append(child)
        return child

    yield start
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@posix
def test_killed_at_any_moment(made: Path, tmp_path: Path, either_way: str, overwriting: Callable[[], int]) -> None:
    place, rng = tmp_path / "place", random.Random(0)
    write(made, place / "bundle", "first")
    for _ in range(60):
        child = overwriting()
        time.sleep(rng.uniform(0.002, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert open_bundle(place / "bundle").manifest.routes
    write(made, place / "bundle", "last", overwrite=True)
    assert names(place) == ["bundle"]
    assert source(place / "bundle") == "last"


@posix
def test_loads_beside_overwriting_exports(
    made: Path, tmp_path: Path, either_way: str, overwriting: Callable[[], int]
) -> None:
    place = tmp_path / "place"
    write(made, place / "bundle", "first")
    overwriting()
    seen = {source(place / "bundle") for _ in range(300)}
    for _ in range(10):
        assert SentenceTransformer(place / "bundle", threads=1).encode("the sun").shape == (8,)
    assert len(seen) > 1


@posix
def test_two_that_overwrite(made: Path, tmp_path: Path, either_way: str, overwriting: Callable[[], int]) -> None:
    """Each may find that the other was faster, and neither breaks what is there."""
    place = tmp_path / "place"
    write(made, place / "bundle", "first")
    overwriting(), overwriting()
    for _ in range(100):
        source(place / "bundle")


# --- mounts ---


def _can(*options: str) -> bool:
    """Whether this process may have namespaces of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", *options, "true"], capture_output=True).returncode == 0


mounts = pytest.mark.skipif(not _can("--mount"), reason="mounting needs rights that this process has not")

# Writes a bundle to a place as an export does, and prints what happened.
WRITE = """
import json, shutil, sys
from pathlib import Path
from stonnx import StonnxError
from stonnx_export.write.staging import check_target, staging_directory
made, target, overwrite = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
started = False
try:
    check_target(target, overwrite)
    with staging_directory(target, overwrite) as staging:
        started = True
        for file in made.iterdir():
            shutil.copy(file, staging)
    print("written")
except StonnxError as error:
    print("late" if started else "at once", error)
from stonnx._bundle.bundle import open_bundle
print(sorted(path.name for path in target.iterdir()) if target.is_dir() else "")
print(sorted(path.name for path in target.parent.iterdir()))
try:
    print(open_bundle(target).manifest.task)
except StonnxError as error:
    print("no bundle")
"""


def mounted(commands: str, made: Path, *arguments: object) -> list[str]:
    script = f'set -e; {commands}; exec {sys.executable} -c "$0" "$@"'
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, WRITE, str(made), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@mounts
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "with lost+found"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_mount(made: Path, tmp_path: Path, kind: str, overwrite: bool) -> None:
    out = tmp_path / "place" / "out put"
    out.mkdir(parents=True)
    (tmp_path / "volume").mkdir()
    commands = {
        "tmpfs": f"mount -t tmpfs tmpfs '{out}'",
        "bind": f"mount --bind {tmp_path / 'volume'} '{out}'",
        "with lost+found": f"mount -t tmpfs tmpfs '{out}'; mkdir '{out}/lost+found'",
    }[kind]
    more = ["lost+found"] if kind == "with lost+found" else []
    found = mounted(commands, made, out, *["--overwrite"] * overwrite)
    assert found == ["written", str(sorted([*FILES, *more])), "['out put']", "embedding"]


@mounts
def test_a_parent_that_is_read_only(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "out").mkdir(parents=True)
    commands = f"mount --bind {place} {place}; mount -o remount,ro,bind {place}; mount -t tmpfs tmpfs {place}/out"
    assert mounted(commands, made, place / "out") == ["written", str(FILES), "['out']", "embedding"]
    (told, *_) = mounted(commands, made, place / "new")
    assert told.startswith(f"at once Cannot write to {place}: Read-only file system")


@mounts
def test_a_mount_with_a_bundle(made: Path, tmp_path: Path) -> None:
    """It cannot be replaced in one step, and that is said at once."""
    out = tmp_path / "place" / "out"
    write(made, tmp_path / "volume", "old")
    out.mkdir(parents=True)
    commands = f"mount --bind {tmp_path / 'volume'} {out}"
    told, *others = mounted(commands, made, out, "--overwrite")
    assert told == (
        f"at once {out} is a mount point, and the bundle in it cannot be replaced in one step. Export to a new "
        f"directory inside it: -o {out}/NAME"
    )
    assert others == [str(FILES), "['out']", "embedding"]
    assert mounted(commands, made, out / "new") == [
        "written",
        str(FILES),
        str([*FILES[:1], "new", *FILES[1:]]),
        "embedding",
    ]


@mounts
def test_an_export_into_a_mount_that_was_killed(made: Path, tmp_path: Path) -> None:
    """Before and while its files were being moved."""
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    for moved in ([], ["default.onnx"], ["default.onnx", "tokenizer.json"]):
        volume = tmp_path / f"volume{len(moved)}"
        left = volume / ".out.partial-12345678"
        left.mkdir(parents=True)
        create(volume / ".out.partial-12345678.lock")
        for name in FILES:
            shutil.copy(made / name, (volume if name in moved else left) / name)
        found = mounted(f"mount --bind {volume} {out}", made, out)
        assert found == ["written", str(FILES), "['out']", "embedding"]


# --- what the system does ---


def test_an_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange two names")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        exchange(tmp_path / "a", tmp_path / "missing")


def test_a_lock_is_released_when_its_process_dies(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from stonnx._disk import create, try_lock\n"
        "print(try_lock(create(Path(sys.argv[1]))), flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        descriptor = os.open(path, os.O_RDWR)
        assert try_lock(descriptor) is False
        process.kill()
    assert try_lock(descriptor) is True
    os.close(descriptor)
