"""Check that a bundle fits its manifest: hashed once on a machine, then recognized by sizes and times."""

from __future__ import annotations

import hashlib
import json
import time
import typing
from collections.abc import Mapping
from pathlib import Path

from stonnx._bundle.external_data import external_files
from stonnx._bundle.graph_check import check_graph_file
from stonnx._bundle.held_file import HeldFile, sha256
from stonnx._bundle.manifest import FileEntry, Manifest
from stonnx._cache import is_remembered, remember
from stonnx._errors import BundleFormatError, BundleIntegrityError

_KIND = "verified"

# Raise it by one whenever bundles that an older version accepted must be checked again.
_CHECKS = 2


def check_integrity(files: Mapping[str, HeldFile], manifest: Manifest) -> None:
    """Check the files of a bundle, unless this machine has checked them before and they have not changed since.

    The first load hashes every file, and checks that the graphs do not name other files. Later loads compare size,
    inode and the times of the last change of contents and of the file itself, so they find a file that was replaced or
    written to. They do not find changes that keep all of these: damage on the disk below the file system, or somebody
    who sets them on purpose. ``stonnx info`` always hashes. If the cache directory cannot be written, so does every
    load.

    Raises:
        BundleIntegrityError: A file is truncated, changed, or cannot be read.
        BundleFormatError: A graph is not an ONNX file, or takes weights from a file that the manifest does not list.
    """
    start, before = time.time_ns(), _identity(files, manifest)
    if is_remembered(_KIND, before):
        return
    for file in files.values():
        file.check()
    for name in {*manifest.graphs}:
        _check_graph(files[name], manifest)
    # Remember it only if nobody wrote during the check, or so shortly before it that the times could not tell.
    newest = max((file.identity.newest for file in files.values()), default=0)
    if before == _identity(files, manifest) and newest < start:
        remember(_KIND, before)


def _check_graph(file: HeldFile, manifest: Manifest) -> None:
    path = Path(file.place)
    try:
        names = external_files(path)
        others = sorted(names - set(manifest.files))
        # Without the weights of other files, a graph would be too small for its constants: the reason comes first.
        if not others:
            check_graph_file(path, sum(manifest.files[name].size for name in names))
    except ValueError as error:
        raise BundleFormatError(
            f"{file.path} is not the graph of a bundle: {error}. Export the model again with: stonnx export MODEL"
        ) from error
    if others:
        raise BundleFormatError(
            f"{file.path} takes weights from {others[0]!r}, which is not a file of the bundle. Export the model again "
            "with: stonnx export MODEL"
        )


def _identity(files: Mapping[str, HeldFile], manifest: Manifest) -> str:
    """A hash over the files as the manifest describes them and as they are on the disk."""
    # The names of the graphs belong to it too: another manifest may call another of the same files a graph.
    parts: list[typing.Any] = [_CHECKS, sorted(manifest.graphs)]
    parts += [[name, file.entry.size, file.entry.sha256, *file.identity] for name, file in sorted(files.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hash_files(directory: Path, names: typing.Iterable[str]) -> dict[str, FileEntry]:
    """Size and SHA-256 of files in a directory."""
    return {name: FileEntry((directory / name).stat().st_size, sha256(directory / name)) for name in names}


def check_files(directory: Path, manifest: Manifest) -> None:
    """Hash every file of a bundle: it must exist with the size and hash of the manifest.

    Raises:
        BundleIntegrityError: A file is missing, truncated, changed, or cannot be read.
    """
    for name, entry in manifest.files.items():
        HeldFile(directory / name, entry, None).check()


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a file has its size and hash."""
    try:
        HeldFile(path, entry, None).check()
    except BundleIntegrityError:
        return False
    return True
