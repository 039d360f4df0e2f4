"""Writes a directory so that it exists either whole or not at all.

A bundle is written to a hidden directory, ``.NAME.partial-TOKEN``, and takes its name when it is complete. A lock on
the file ``.NAME.partial-TOKEN.lock`` says that its export is running. The kernel releases it, however the export ends.
A directory without a lock was left by an export that was killed; the next export deletes it.
"""

from __future__ import annotations

import glob
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest
from stonnx._bundle.replaced import LEFTOVERS, REPLACED
from stonnx._disk import create, exchange, is_mount_point, try_lock
from stonnx._errors import BundleError, ExportError, StonnxError

logger = logging.getLogger("stonnx")

_LOCK = ".lock"

# Names that a file system puts into an empty directory by itself.
_NOT_THERE = frozenset({"lost+found"})


def check_target(target: Path, overwrite: bool) -> None:
    """Raise ExportError if a bundle cannot go to a directory because of what is there."""
    place = _resolved(target)
    _clean_up(place)
    if place.is_file() or _contents(place):
        if not (place / MANIFEST_NAME).is_file():
            raise ExportError(
                f"{target} exists already and is not a bundle, so --overwrite does not replace it. "
                "Choose another with -o."
            )
        if is_mount_point(place):
            raise ExportError(
                f"{target} is a mount point, and the bundle in it cannot be replaced in one step. Export to a new "
                f"directory inside it: -o {target / 'NAME'}"
            )
        if not overwrite:
            raise ExportError(f"{target} exists already. Choose another with -o, or replace it with --overwrite.")


@contextmanager
def staging_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory that takes the place of the target if the block succeeds, and disappears if it does not.

    It is beside the target. It is inside of the target if that is an empty directory that cannot be renamed, because
    something is mounted there or because its parent directory cannot be written.
    """
    place = _resolved(target)
    is_fixed = is_mount_point(place) or not os.access(place.parent, os.W_OK | os.X_OK)
    inside = is_fixed and place.is_dir() and not _contents(place)
    parent = place if inside else place.parent
    try:
        made = [directory for directory in (parent, *parent.parents) if not directory.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        _clean_up(place)
        staging, lock = _begin(parent, place.name)
    except OSError as error:
        raise ExportError(f"Cannot write to {parent}: {error.strerror}. Choose another directory with -o.") from error
    try:
        try:
            yield staging
            for file in staging.iterdir():
                _sync(file)
            _sync(staging)
            if inside:
                _move_files(staging, target, place)
            else:
                _move_into_place(staging, target, place, overwrite)
        except OSError as error:
            if isinstance(error, StonnxError):
                raise
            raise ExportError(
                f"The bundle could not be written to {target}: {error.strerror or error}. Nothing of it is left."
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        # Windows does not remove open files. Elsewhere, the lock must not be free while its directory is still there.
        if sys.platform == "win32":
            os.close(lock)
        with suppress(OSError):
            _lock_of(staging).unlink()
        if sys.platform != "win32":
            os.close(lock)
        for directory in made:  # the innermost first; directories that hold the bundle now are not empty
            with suppress(OSError):
                directory.rmdir()


def _resolved(target: Path) -> Path:
    """The place where the bundle really goes: through links, and with a name."""
    return Path(os.path.realpath(target))


def _contents(place: Path) -> list[Path]:
    """The contents of a directory, without the files that exports are writing there."""
    if not place.is_dir():
        return []
    own = {*place.glob(LEFTOVERS.format(glob.escape(place.name)))}
    return [path for path in place.iterdir() if path not in own and path.name not in _NOT_THERE]


def _begin(parent: Path, name: str) -> tuple[Path, int]:
    """A new staging directory, and its open lock."""
    while True:
        staging = parent / f".{name}.partial-{secrets.token_hex(4)}"
        # The lock is made first and removed last: a directory without one is a leftover.
        lock = create(_lock_of(staging))
        if try_lock(lock) is False:  # somebody who cleans up was faster
            os.close(lock)
            continue
        try:
            staging.mkdir()
        except BaseException:
            os.close(lock)
            _lock_of(staging).unlink()
            raise
        return staging, lock


def _lock_of(staging: Path) -> Path:
    return staging.with_name(staging.name + _LOCK)


def _clean_up(place: Path) -> None:
    """Remove leftovers of killed exports to a directory, or bring back the bundle that one was replacing."""
    for parent in (place.parent, place):
        pattern = LEFTOVERS.format(glob.escape(place.name))
        names = {path.name.removesuffix(_LOCK).removesuffix(REPLACED) for path in parent.glob(pattern)}
        for name in sorted(names):
            with suppress(OSError):  # not ours to remove
                _remove_leftover(parent / name, place)


def _remove_leftover(staging: Path, place: Path) -> None:
    path = _lock_of(staging)
    lock = None
    with suppress(FileNotFoundError):
        lock = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if lock is not None:
            locked = try_lock(lock)
            if locked is None:
                logger.warning("%s may be left by an export that was killed: delete it if none is running.", staging)
            if not locked:
                return
        replaced = staging.with_name(staging.name + REPLACED)
        if replaced.is_dir() and not place.exists():
            replaced.rename(place)
        if staging.parent == place:
            _remove_moved_files(staging, place)
        for directory in (staging, replaced):
            shutil.rmtree(directory, ignore_errors=True)
        if lock is not None:
            path.unlink()
    finally:
        if lock is not None:
            os.close(lock)


def _move_into_place(staging: Path, target: Path, place: Path, overwrite: bool) -> None:
    check_target(target, overwrite)  # another export may have finished meanwhile
    if not _contents(place):
        staging.rename(place)
    elif not exchange(staging, place):
        # Between the two renames nothing has the name. Readers know where else to look: stonnx._bundle.replaced.
        old = staging.with_name(staging.name + REPLACED)
        place.rename(old)
        try:
            staging.rename(place)
        except BaseException:
            os.rename(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(place.parent)


def _move_files(staging: Path, target: Path, place: Path) -> None:
    """Move a bundle into the directory around it. The manifest comes last: it makes the directory a bundle."""
    if _contents(place):  # another export may have finished meanwhile
        raise ExportError(f"{target} is not empty any more. Choose another with -o.")
    files = sorted(staging.iterdir(), key=lambda file: file.name == MANIFEST_NAME)
    moved = []
    try:
        for file in files:
            file.rename(place / file.name)
            moved.append(place / file.name)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
    _sync(place)


def _remove_moved_files(staging: Path, place: Path) -> None:
    """Remove the files that a killed export had moved already. Its manifest, which is moved last, lists them."""
    if (place / MANIFEST_NAME).exists() or not (staging / MANIFEST_NAME).is_file():
        return
    with suppress(BundleError):
        for name in (*read_manifest(staging).files, "README.md"):
            if not (staging / name).exists():
                (place / name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make sure that the disk holds a file, or the names in a directory."""
    if path.is_dir():
        if sys.platform == "win32":  # Windows does not open directories
            return
        with suppress(OSError):  # nor do some file systems sync them
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
