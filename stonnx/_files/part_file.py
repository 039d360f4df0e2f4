"""A file that appears whole or not at all, and that an interrupted run can continue: ``OUTPUT.part`` and its journal.

Rows are appended to ``OUTPUT.part``. Once they are synced, the journal ``OUTPUT.part.json`` says how far they reach;
whatever lies behind that is cut off by the next run. ``OUTPUT`` appears by one rename, when everything is written.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Raised by one whenever a part file or journal of an older version could not be continued by this one.
_VERSION = 1

_FREE_SPACE = (
    "Free some space and run the same again: it continues where this run stopped (standard input starts over)."
)
_OTHER_DIRECTORY = "Name an output in a directory that you may write to."
_REMEDIES: Mapping[int | None, str] = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "The file system or `ulimit -f` allows no larger file. Raise the limit and run the same again.",
    errno.ENOENT: "Create the directory first, for example with: mkdir -p DIRECTORY",
    errno.ENOTDIR: _OTHER_DIRECTORY,
    errno.EACCES: _OTHER_DIRECTORY,
    errno.EPERM: _OTHER_DIRECTORY,
    errno.EROFS: _OTHER_DIRECTORY,
}


@dataclass(frozen=True)
class Checkpoint:
    """How far a run is: this many rows, from so many bytes of input, in so many bytes of the part file."""

    rows: int
    input_bytes: int
    output_bytes: int
    dimension: int
    dtype: str


@dataclass(frozen=True)
class PartFile:
    """The open and locked part file of an output. ``file`` is unbuffered: close() must not write what failed before."""

    output: Path
    part: Path
    journal: Path
    file: io.FileIO


def part_paths(output: Path) -> tuple[Path, Path]:
    """The part file and the journal that belong to an output, both beside it: a rename cannot cross file systems."""
    return output.with_name(output.name + ".part"), output.with_name(output.name + ".part.json")


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise FileExistsError if the output is there and must not be replaced. Only regular files are ever replaced."""
    with _explained(f"Cannot write {output}"):
        exists, regular = output.exists(), output.is_file()
    if exists and not regular:
        raise FileExistsError(f"{output} exists and is no regular file. Name another output.")
    if exists and not overwrite:
        raise FileExistsError(f"{output} exists. Name another output, or pass --overwrite to replace it.")


@contextmanager
def open_part(output: Path) -> Iterator[PartFile]:
    """Open and lock the part file of an output. It is removed on an error that left nothing to continue from.

    Raises:
        BlockingIOError: Another run holds the lock.
        OSError: The file cannot be opened; the subclass and ``errno`` tell why.
    """
    part, journal = part_paths(output)
    file = _open_locked(part)
    try:
        yield PartFile(output, part, journal, file)
    except BaseException:
        with suppress(OSError, ValueError):  # Windows removes no open file; the next run truncates it
            if not journal.exists() and _is_at(file, part):
                part.unlink()
        raise
    finally:
        file.close()


def resume(to: PartFile, settings: Mapping[str, Any] | None, header_size: int) -> tuple[Checkpoint | None, str | None]:
    """Cut the part file down to what its journal vouches for, or to an empty header, and stand at its end.

    Returns:
        Where to continue, or None for a clean start; and why a journal that was there could not be used.
    """
    with _explained(f"Cannot write {to.part}"):
        found, problem = _read_journal(to, settings)
        if found is None:
            if to.journal.exists():
                # It goes first, and for good: it must never vouch for the rows that this run is about to write.
                to.journal.unlink()
                _sync_directory(to.journal.parent)
            to.file.truncate(0)
        # The header stays zeros until the end, so that a part file cannot pass for a complete one.
        end = header_size if found is None else found.output_bytes
        to.file.truncate(end)
        to.file.seek(end)
    return found, problem


def append(to: PartFile, blocks: Iterable[bytes]) -> int:
    """Write blocks where the part file stands, and return its new length in bytes."""
    with _explained(f"Cannot write {to.part}"):
        for block in blocks:
            _write_all(to.file, block)
        return to.file.tell()


def save(to: PartFile, settings: Mapping[str, Any], done: Checkpoint) -> None:
    """Make all that was appended durable, then let the journal vouch for it."""
    with _explained(f"Cannot write {to.part}"):
        os.fsync(to.file.fileno())
        temporary = _temporary(to.journal)
        data = {"version": _VERSION, "settings": settings, "done": dataclasses.asdict(done)}
        try:
            # Not synced: if a power cut loses it, the older journal or a clean start is still right, only slower.
            temporary.write_text(_canonical({**data, "crc32": _crc(data)}), encoding="utf-8")
            os.replace(temporary, to.journal)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def publish(to: PartFile, header: bytes, overwrite: bool) -> None:
    """Put the header in and let the output appear, complete and durable."""
    with _explained(f"Cannot write {to.part}"):
        to.file.seek(0)
        _write_all(to.file, header)
        os.fsync(to.file.fileno())
    refuse_existing(to.output, overwrite)  # it may have appeared since the start
    with _explained(f"Cannot move {to.part} to {to.output}"):
        if sys.platform == "win32":
            to.file.close()  # Windows renames no open file; elsewhere the lock is held to the end
        os.replace(to.part, to.output)
        _sync_directory(to.output.parent)
        for leftover in (to.journal, _temporary(to.journal)):
            leftover.unlink(missing_ok=True)


def _temporary(journal: Path) -> Path:
    return journal.with_name(journal.name + ".tmp")


def _read_journal(to: PartFile, settings: Mapping[str, Any] | None) -> tuple[Checkpoint | None, str | None]:
    if not to.journal.exists():
        return None, None
    if settings is None:
        return None, "its input is a stream now, which cannot be read from the middle"
    try:
        data = json.loads(to.journal.read_bytes())
        crc = data.pop("crc32")
        if crc != _crc(data) or data["version"] != _VERSION:
            raise ValueError("damaged, or of another version")
        then, done = data["settings"], Checkpoint(**data["done"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, "its journal is unreadable, or of another version"
    changed = [
        f"{group}.{key}"
        for group, now in settings.items()
        for key in sorted({*now, *then[group]})
        if _canonical(now.get(key)) != _canonical(then[group].get(key))
    ]
    if changed:
        return None, f"changed since: {', '.join(changed)}"
    if os.fstat(to.file.fileno()).st_size < done.output_bytes:
        return None, "its part file is missing, or shorter than its journal says"
    return done, None


def _canonical(value: object) -> str:
    # Compared as text, because NaN is not equal to itself and True is equal to 1.
    return json.dumps(value, sort_keys=True)


def _crc(journal: Mapping[str, Any]) -> int:
    return zlib.crc32(_canonical(journal).encode())


def _open_locked(part: Path) -> io.FileIO:
    while True:
        with _explained(f"Cannot write {part}"):
            file = io.FileIO(part, "r+", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))
        try:
            if not _lock(file):
                raise BlockingIOError(f"Another run is writing {part}. Wait until it ends, or name another output.")
            # Another run may have renamed this very file between open and lock: then it is no longer ours to write.
            if _is_at(file, part):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: io.FileIO) -> bool:
    """Lock a file until it is closed or the process dies. False: someone else holds the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # a file system without locks, as some network mounts are
        warnings.warn(f"{file.name} cannot be locked ({error}): do not start a second run on it.", stacklevel=2)
    return True


def _write_all(file: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:  # one write may take only a part: on Linux, 2 GiB at most, and less before a full disk
        view = view[file.write(view) :]


def _sync_directory(directory: Path) -> None:
    if sys.platform != "win32":  # which opens no directories
        # Best effort: without it a power cut may undo a rename, but the files it concerns are never torn.
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Raise OSErrors again, of the same subclass and errno, saying what was being done and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, "Run the same again to continue.")
        raise OSError(error.errno, f"{problem}: {error.strerror or error}. {remedy}") from error
