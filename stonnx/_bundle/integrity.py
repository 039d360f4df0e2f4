"""That a bundle is what its manifest says: hashed once on a machine, and recognized by sizes and times after that."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import typing
from pathlib import Path

from stonnx._bundle.external_data import external_files
from stonnx._bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from stonnx._cache import is_remembered, remember
from stonnx._errors import BundleFormatError, BundleIntegrityError

_KIND = "verified"

# Two changes may get the same time where a file system counts it coarsely; FAT is the coarsest.
_COARSEST_CLOCK = 2_000_000_000

# What was checked for the load that follows.
_ahead: set[str] = set()


def verify(directory: Path, manifest: Manifest) -> None:
    """Check the files of a bundle, unless this machine has checked them before and they are the same since.

    The first load hashes every file, and sees that the graphs name no other files. Later ones compare size, inode and
    the times of the last change of contents and of the file itself, so they find a file that was replaced or written
    to. They do not find what keeps all of these: damage on the disk below the file system, or somebody who sets them on
    purpose. ``stonnx info`` always hashes. Where the cache directory cannot be written, so does every load.

    Raises:
        BundleIntegrityError: A file is missing, truncated, changed, or cannot be read.
        BundleFormatError: A graph is no ONNX file, or takes weights from a file that the manifest does not list.
    """
    before = _identity(directory, manifest)
    if before in _ahead:
        _ahead.discard(before)
    else:
        _verify(directory, manifest, before)


def verify_ahead(directory: Path, manifest: Manifest) -> None:
    """Check a bundle that is about to be loaded: the load does not hash it again, even if nothing can be remembered.

    Raises:
        BundleIntegrityError, BundleFormatError: As for :func:`verify`.
    """
    before = _identity(directory, manifest)
    _verify(directory, manifest, before)
    if before is not None:
        _ahead.add(before)


def _verify(directory: Path, manifest: Manifest, before: str | None) -> None:
    start = time.time_ns()
    if before is not None and is_remembered(_KIND, before):
        return
    verify_files(directory, manifest)
    for route in manifest.routes.values():
        _check_graph(directory / route.graph, manifest)
    # Not while somebody writes: neither during the check nor so shortly before that the times could not tell.
    if before is not None and before == _identity(directory, manifest) and _newest(directory, manifest) < start:
        remember(_KIND, before)


def _check_graph(path: Path, manifest: Manifest) -> None:
    try:
        names = external_files(path)
    except ValueError as error:
        raise BundleFormatError(
            f"{path} is no ONNX file that can be read: {error}. Export the model again with: stonnx export MODEL"
        ) from error
    for name in sorted(names - set(manifest.files)):
        raise BundleFormatError(
            f"{path} takes weights from {name!r}, which is no file of the bundle. Export the model again with: stonnx "
            "export MODEL"
        )


def _identity(directory: Path, manifest: Manifest) -> str | None:
    """A hash over what the files should be and what they are on the disk; None where one of them is not there."""
    # The graphs are read, too: a manifest may name another of the same files as one.
    parts: list[list[object]] = [[*sorted(route.graph for route in manifest.routes.values())]]
    for name, entry in sorted(manifest.files.items()):
        try:
            found = os.stat(directory / name)
        except OSError:
            return None
        disk = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        parts.append([name, entry.size, entry.sha256, *disk])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _newest(directory: Path, manifest: Manifest) -> int:
    """When a file was last changed, and the next change has another time for certain."""
    found = [os.stat(directory / name) for name in manifest.files]
    return max((max(one.st_mtime_ns, one.st_ctime_ns) for one in found), default=0) + _COARSEST_CLOCK


def hash_files(directory: Path, names: typing.Iterable[str]) -> dict[str, FileEntry]:
    """Size and SHA-256 of files in a directory."""
    return {name: FileEntry((directory / name).stat().st_size, _sha256(directory / name)) for name in names}


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Hash every file of a bundle: it has to be there with the size and hash that the manifest has.

    Raises:
        BundleIntegrityError: A file is missing, truncated, changed, or cannot be read.
    """
    for name, entry in manifest.files.items():
        _verify_file(directory / name, entry)


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a file has its size and hash."""
    try:
        _verify_file(path, entry)
    except BundleIntegrityError:
        return False
    return True


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        found = path.stat()
        # A link may lead anywhere, as in the Hub cache, because the hash decides. But not to a device or a pipe, from
        # which reading may never end.
        if not stat.S_ISREG(found.st_mode):
            raise BundleIntegrityError(f"{path} cannot be read: it is no plain file. {REPAIR}")
        size = found.st_size
        intact = size == entry.size and _sha256(path) == entry.sha256
    except FileNotFoundError:
        raise BundleIntegrityError(f"{path} is missing, but listed in {MANIFEST_NAME}. {REPAIR}") from None
    except BundleIntegrityError:
        raise
    except OSError as error:
        raise BundleIntegrityError(f"{path} cannot be read: {error.strerror}. {REPAIR}") from error
    if size != entry.size:
        raise BundleIntegrityError(
            f"{path} has {size:,} bytes instead of {entry.size:,}: it is truncated or changed. {REPAIR}"
        )
    if not intact:
        raise BundleIntegrityError(f"{path} has changed since it was exported (SHA-256 differs). {REPAIR}")


# The end of the message about a damaged bundle that is the user's own.
REPAIR = "Copy the bundle again, or export the model again with: stonnx export MODEL -o DIRECTORY"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
