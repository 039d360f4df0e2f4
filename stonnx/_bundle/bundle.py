"""A verified bundle. Everything that is loaded of it, now or later, comes from here."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stonnx._bundle.consistency import check_manifest
from stonnx._bundle.held_file import CAN_HOLD, HeldFile
from stonnx._bundle.integrity import check_integrity
from stonnx._bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from stonnx._bundle.replaced import existing, is_bundle, nearest_bundle
from stonnx._errors import BundleError, BundleFormatError, ModelNotFoundError

# Each further attempt means that yet another export took the place of the one before.
_ATTEMPTS = 100

_T = TypeVar("_T")


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was when it was verified: see :mod:`stonnx._bundle.held_file`.

    Attributes:
        directory: The place where it was found. Another bundle may be there by now.
        manifest: Its manifest.
        identity: SHA-256 of the manifest, which has the hashes of all files.
    """

    directory: Path
    manifest: Manifest
    identity: str
    _files: Mapping[str, HeldFile] = field(repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.directory)

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            BundleIntegrityError: It has changed since it was verified.
        """
        return self._files[name].use(lambda place: Path(place).read_bytes())

    def load_graph(self, name: str, load: Callable[[Path], _T]) -> _T:
        """Call ``load`` with a path to read a graph from, and return its result.

        Raises:
            BundleIntegrityError: The graph, or a file that it takes weights from, has changed since it was verified.
            BundleFormatError: Such a file is a link to another directory.
        """
        weights = self._weights()
        if not weights:
            return self._files[name].use(lambda place: load(Path(place)))
        # The graph names these files, and onnxruntime looks for them beside the graph.
        files = [self._files[name], *weights]
        self._check_links(name, weights)
        before = [file.check_before(by_name=True) for file in files]
        result = load(self.directory / name)
        for file, identity in zip(files, before, strict=True):
            file.check_after(identity, by_name=True)
        return result

    def _check_links(self, graph: str, weights: list[HeldFile]) -> None:
        """Refuse links that onnxruntime does not follow, and does not say how to mend."""
        # The Hub cache keeps the files themselves in another directory: all of them in the same one.
        allowed = {self.directory.resolve(), (self.directory / graph).resolve().parent}
        for file in weights:
            real = file.path.resolve()
            if not any(real.is_relative_to(place) for place in allowed):
                raise BundleFormatError(
                    f"{file.path} is a link to {real}, and onnxruntime reads weights from the directory of their graph "
                    f"only. Copy the file itself there: cp --remove-destination {real} {file.path}"
                )

    def graph_bytes(self, name: str) -> int:
        """The size of a graph's weights. Weights of over 2 GB are in files beside the graph, named after it."""
        return sum(entry.size for file, entry in self.manifest.files.items() if file.startswith(name))

    def _weights(self) -> list[HeldFile]:
        """The files that graphs take weights from: all others."""
        known = {*self.manifest.graphs, *(route.tokenizer.file for route in self.manifest.routes.values())}
        if self.manifest.probe is not None:
            known.add(self.manifest.probe.file)
        return [file for name, file in self._files.items() if name not in known]


def open_bundle(directory: Path) -> Bundle:
    """Open and verify a bundle. If an export overwrites it meanwhile, this returns the old one or the new one.

    Raises:
        ModelNotFoundError: The directory does not have a bundle.
        BundleFormatError: Its manifest or a graph cannot be used.
        BundleIntegrityError: A file is missing, truncated, changed, or cannot be read.
    """
    for attempt in range(_ATTEMPTS):
        try:
            found = existing(directory) or directory
            with _opened(found) as place:
                try:
                    return _open(found, place)
                # A file or the manifest is missing because the old bundle is being removed.
                except (BundleError, FileNotFoundError):
                    if attempt + 1 < _ATTEMPTS and _is_replaced(directory, place):
                        continue
                    raise
        except NotADirectoryError:
            break
        except FileNotFoundError:
            if not is_bundle(directory):
                break
    if not directory.exists():
        raise ModelNotFoundError(f"{directory} does not exist.{nearest_bundle(str(directory))}")
    raise ModelNotFoundError(f"{directory} is not a bundle: it has no {MANIFEST_NAME}.")


def _open(directory: Path, place: int | None) -> Bundle:
    path = directory / MANIFEST_NAME
    with open(path, "rb", opener=lambda name, flags: os.open(_name(path, place), flags, dir_fd=place)) as file:
        text = file.read()
    manifest = parse_manifest(text, path)
    check_manifest(manifest, path)
    files = {name: HeldFile(directory / name, entry, place) for name, entry in manifest.files.items()}
    check_integrity(files, manifest)
    return Bundle(directory, manifest, hashlib.sha256(text).hexdigest(), files)


def _name(path: Path, place: int | None) -> str:
    return str(path) if place is None else path.name


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int | None]:
    """The directory, open, so that all files come from the same one; None if the system cannot do that."""
    if not CAN_HOLD:
        yield None
        return
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield place
    finally:
        os.close(place)


def _is_replaced(directory: Path, place: int | None) -> bool:
    """Whether the name now leads to another directory than the open one."""
    if place is None:
        return False
    try:
        return not os.path.samestat(os.stat(directory), os.fstat(place))
    except FileNotFoundError:
        return True
