"""A file that appears whole or not at all, and that an interrupted run can continue: ``OUTPUT.part`` and its journal.

Rows are appended to ``OUTPUT.part``. Once they are synced, the journal ``OUTPUT.part.json`` says how far they reach;
the next run cuts off anything after that. ``OUTPUT`` appears by one rename, when everything is written.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import secrets
import stat
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stonnx._disk import create, is_mount_point, try_lock

# Raise it by one whenever this version cannot continue a part file or journal of an older one.
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


# Flags for opening a path that may be anything: they refuse a link, and do not wait for the other end of a pipe.
_NO_LINKS = 0
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not every system has all of them
    _NO_LINKS |= getattr(os, _name, 0)


@dataclass(frozen=True)
class SavePoint:
    """The progress of a run: this many rows, from so many bytes of input, in so many bytes of the part file."""

    rows: int
    input_bytes: int
    output_bytes: int
    dimension: int
    dtype: str
    failed_rows: int = 0


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
    """Raise FileExistsError if the output exists and must not be replaced. Only regular files are ever replaced."""
    with _explained(f"Cannot write {output}"):
        exists, regular = output.exists(), output.is_file()
    if exists and is_mount_point(output):
        raise FileExistsError(
            f"{output} is a mount point, as `docker run -v FILE:FILE` makes one: a complete file cannot take its "
            "place. Mount the directory instead, and name an output in it."
        )
    if exists and not regular:
        raise FileExistsError(f"{output} exists and is not a regular file. Name another output.")
    if exists and not overwrite:
        raise FileExistsError(f"{output} exists. Name another output, or pass --overwrite to replace it.")


@contextmanager
def open_part(output: Path) -> Iterator[PartFile]:
    """Open and lock the part file of an output. An error that leaves nothing to continue from removes it.

    Raises:
        BlockingIOError: Another run holds the lock.
        OSError: The file cannot be opened; the subclass and ``errno`` say why.
    """
    part, journal = part_paths(output)
    file = _open_locked(part)
    try:
        yield PartFile(output, part, journal, file)
    except BaseException:
        with suppress(OSError, ValueError):  # Windows does not remove an open file; the next run truncates it
            if not journal.exists() and _is_at(file, part):
                part.unlink()
        raise
    finally:
        file.close()


def resume(to: PartFile, settings: Mapping[str, Any] | None, header_size: int) -> tuple[SavePoint | None, str | None]:
    """Cut the part file down to what its journal vouches for, or to an empty header, and stand at its end.

    Returns:
        The point to continue from, or None for a clean start; and the reason why an existing journal was not usable.
    """
    with _explained(f"Cannot write {to.part}"):
        found, problem = _read_journal(to, settings)
        if found is None:
            if os.path.lexists(to.journal):
                # The journal goes first, for good: it must never vouch for the rows that this run will write.
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


def save(to: PartFile, settings: Mapping[str, Any], done: SavePoint) -> None:
    """Make all that was appended durable, then let the journal vouch for it."""
    with _explained(f"Cannot write {to.part}"):
        os.fsync(to.file.fileno())
        temporary = _temporary(to.journal)
        data = {"version": _VERSION, "settings": settings, "done": dataclasses.asdict(done)}
        try:
            temporary.unlink(missing_ok=True)  # from a killed run, or from anything else
            # Not synced: if a power cut loses it, the older journal or a clean start is still right, only slower.
            _write_new(temporary, _canonical({**data, "crc32": _crc(data)}))
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
            to.file.close()  # Windows does not rename an open file; elsewhere the lock is held to the end
        os.replace(to.part, to.output)
        _sync_directory(to.output.parent)
        remove_leftovers(to.output)


def finish(to: PartFile, make: Callable[[Path, BinaryIO], None], overwrite: bool) -> None:
    """Make the output from the part file, where it has another form, and let it appear, complete and durable.

    Args:
        to: The complete part file.
        make: Writes the output: gets the path of the part file, and the file to write.
        overwrite: Replace an existing output.
    """
    made = _made(to.output)
    try:
        with _explained(f"Cannot write {made}"):
            made.unlink(missing_ok=True)  # from a killed run, or from anything else
            with open(create(made), "w+b") as file:
                make(to.part, file)
                file.flush()
                os.fsync(file.fileno())
        refuse_existing(to.output, overwrite)  # it may have appeared since the start
        with _explained(f"Cannot move {made} to {to.output}"):
            os.replace(made, to.output)
            _sync_directory(to.output.parent)
            if sys.platform == "win32":
                to.file.close()
            remove_leftovers(to.output)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def remove_leftovers(output: Path) -> None:
    """Remove the other files of a run whose output is complete. A kill just after that leaves them there."""
    part, journal = part_paths(output)
    for leftover in (part, _made(output), journal, _temporary(journal)):
        leftover.unlink(missing_ok=True)


def _made(output: Path) -> Path:
    return output.with_name(output.name + ".part.made")


def _temporary(journal: Path) -> Path:
    return journal.with_name(journal.name + ".tmp")


def _read_journal(to: PartFile, settings: Mapping[str, Any] | None) -> tuple[SavePoint | None, str | None]:
    if not os.path.lexists(to.journal):
        return None, None
    if settings is None:
        return None, "its input is a stream now, which cannot be read from the middle"
    try:
        data = json.loads(_read_own(to.journal))
        crc = data.pop("crc32")
        if crc != _crc(data) or data["version"] != _VERSION:
            raise ValueError("damaged, or of another version")
        then, done = data["settings"], SavePoint(**data["done"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
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
        file = _open(part)
        try:
            if not _lock(file):
                raise BlockingIOError(f"Another run is writing {part}. Wait until it ends, or name another output.")
            # Another run may have renamed this very file between open and lock. This run must not write to it then.
            if _is_at(file, part):
                if os.fstat(file.fileno()).st_nlink == 1:
                    return file
                # It has a second name, for example in a backup. A new file takes its name instead.
                part.unlink()
        except BaseException:
            file.close()
            raise
        file.close()


def _open(part: Path) -> io.FileIO:
    """Make the part file, or open the one of an earlier run of this user. This does not follow links."""
    irregular = FileExistsError(f"{part} is not a regular file. Remove it, or name another output.")
    try:
        with _explained(f"Cannot write {part}"):
            try:
                return _file(create(part), part)
            except FileExistsError:
                file = _file(os.open(part, os.O_RDWR | _NO_LINKS), part)
    except FileNotFoundError:
        if part.parent.is_dir():  # it was renamed or removed meanwhile
            return _open(part)
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise irregular from None
        raise
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and _is_ours(found, part.parent):
        return file
    file.close()
    if not stat.S_ISREG(found.st_mode):
        raise irregular
    raise FileExistsError(f"{part} belongs to another user. Remove it, or name another output.")


def _file(descriptor: int, path: Path) -> io.FileIO:
    return io.FileIO(path, "r+", opener=lambda *_: descriptor)


def _is_ours(found: os.stat_result, directory: Path) -> bool:
    """Whether a file belongs to this user, as far as its file system tells users apart."""
    if sys.platform == "win32" or found.st_uid == os.geteuid():
        return True
    # Some file systems show another owner for all files, for example for root's files on a network mount.
    probe = directory / f".stonnx-{secrets.token_hex(8)}"
    descriptor = create(probe)
    try:
        return os.fstat(descriptor).st_uid == found.st_uid
    finally:
        os.close(descriptor)
        probe.unlink()


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _lock(file: io.FileIO) -> bool:
    """Lock a file until it is closed or the process dies. False: someone else holds the lock."""
    locked = try_lock(file.fileno())
    if locked is None:
        warnings.warn(
            f"{file.name} cannot be locked (its file system has no locks): do not start a second run on it.",
            stacklevel=2,
        )
    return locked is not False


def _write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet. This does not follow a link that somebody has put there."""
    with open(create(path), "w", encoding="utf-8") as file:
        file.write(text)


def _read_own(path: Path) -> bytes:
    """The contents of a file that belongs to this user; otherwise an error."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_LINKS)) as file:
        if not _is_ours(os.fstat(file.fileno()), path.parent):
            raise ValueError("the file belongs to another user")
        return file.read()


def _write_all(file: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:  # one write may take only a part: on Linux, 2 GiB at most, and less before a full disk
        view = view[file.write(view) :]


def _sync_directory(directory: Path) -> None:
    if sys.platform != "win32":  # Windows does not open directories
        # Best effort: without it a power cut may undo a rename, but the files it concerns are never torn.
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Raise OSErrors again, of the same subclass and errno, with the failed step and a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, "Run the same again to continue.")
        raise OSError(error.errno, f"{problem}: {error.strerror or error}. {remedy}") from error
