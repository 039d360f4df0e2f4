"""A file of a bundle that stays as it was when it was verified, whatever happens to its name on the disk.

On Linux it is held open: a later load reads the same file, even if another file has its name or the name is gone.
On other systems it is opened by its name each time, and must be the same file. Either way, its times show whether
somebody wrote to it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from stonnx._bundle.manifest import MANIFEST_NAME, FileEntry
from stonnx._errors import BundleIntegrityError

# The end of the message about a damaged bundle that belongs to the user.
REPAIR = "Copy the bundle again, or export the model again with: stonnx export MODEL -o DIRECTORY"

# Two writes within the file system's timestamp resolution look identical; FAT's is the coarsest in use.
_COARSEST_CLOCK = 2_000_000_000

# Under these names, a process on Linux can reopen its open files, with a separate position for each.
_OPEN_FILES = Path("/proc/self/fd")
CAN_HOLD = _OPEN_FILES.is_dir()

_T = TypeVar("_T")


class Identity(NamedTuple):
    """The properties that change when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @property
    def newest(self) -> int:
        """The time from which a change is certain to give another identity."""
        return max(self.modified, self.changed) + _COARSEST_CLOCK


class HeldFile:
    """A file of a bundle.

    Args:
        path: Its name.
        entry: Its size and hash.
        directory: The open directory that it is in. None: it is opened by its path.

    Raises:
        BundleIntegrityError: It is missing, is not a plain file, or cannot be opened.
    """

    def __init__(self, path: Path, entry: FileEntry, directory: int | None) -> None:
        self.path, self.entry = path, entry
        self._descriptor: int | None = None
        # The path that opens it for as long as this object lives.
        self.place = str(path)
        try:
            name = path if directory is None else path.name
            # A link may lead anywhere, as in the Hub cache, because the hash decides. But it must not lead to a device
            # or a pipe, where reading may never end.
            if not stat.S_ISREG(os.stat(name, dir_fd=directory).st_mode):
                raise BundleIntegrityError(f"{path} cannot be read: it is not a plain file. {REPAIR}")
            if CAN_HOLD:
                self._descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                weakref.finalize(self, os.close, self._descriptor)
                self.place = str(_OPEN_FILES / str(self._descriptor))
            self.identity = self._now()
        except BundleIntegrityError:
            raise
        except FileNotFoundError:
            raise BundleIntegrityError(f"{path} is missing, but listed in {MANIFEST_NAME}. {REPAIR}") from None
        except OSError as error:
            raise self._unreadable(error) from error
        # Whether a change after the moment of `identity` is certain to show in it.
        self._certain = self.identity.newest < time.time_ns()

    def check(self) -> None:
        """Hash the file.

        Raises:
            BundleIntegrityError: It has another size or hash than the manifest says, or cannot be read.
        """
        try:
            start, before = time.time_ns(), self._now()
            if before.size != self.entry.size:
                raise BundleIntegrityError(
                    f"{self.path} has {before.size:,} bytes instead of {self.entry.size:,}: it is truncated or "
                    f"changed. {REPAIR}"
                )
            if sha256(self.place) != self.entry.sha256:
                raise BundleIntegrityError(f"{self.path} has changed since it was exported (SHA-256 differs). {REPAIR}")
        except BundleIntegrityError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error
        self.identity, self._certain = before, before.newest < start

    def check_before(self, *, by_name: bool = False) -> Identity:
        """Check that the file is the verified one. If its times have changed, hash it again.

        Args:
            by_name: Somebody is about to open the file by its name, which must still lead to it.

        Returns:
            Its identity.

        Raises:
            BundleIntegrityError: It is another file, or has other contents.
        """
        now = self._now(by_name=by_name)
        if now[:2] != self.identity[:2]:
            raise self._replaced()
        if now != self.identity:
            self.check()
        return self.identity

    def check_after(self, before: Identity, *, by_name: bool = False) -> None:
        """Check that the file has not changed since :meth:`check_before` returned ``before``.

        Raises:
            BundleIntegrityError: It changed.
        """
        now = self._now(by_name=by_name)
        # The time of the last change also changes if a name of the file is removed, for example by an export that
        # overwrites the bundle. The contents stay the same then.
        if now[:-1] != before[:-1]:
            raise BundleIntegrityError(
                f"{self.path} was {'replaced' if now[:2] != before[:2] else 'written to'} while it was being loaded. "
                "Load the model again."
            )
        if now != before or not self._certain:
            self.check()

    def use(self, load: Callable[[str], _T]) -> _T:
        """Call ``load`` with a name to open the file by, and return its result.

        Raises:
            BundleIntegrityError: The file is not the verified one.
        """
        before = self.check_before()
        result = load(self.place)
        self.check_after(before)
        return result

    def _now(self, *, by_name: bool = False) -> Identity:
        try:
            found = os.stat(self.path if by_name or self._descriptor is None else self._descriptor)
        except FileNotFoundError:
            raise self._replaced() from None
        return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _replaced(self) -> BundleIntegrityError:
        return BundleIntegrityError(
            f"{self.path} has been replaced or removed since the model was loaded. Load the model again."
        )

    def _unreadable(self, error: OSError) -> BundleIntegrityError:
        return BundleIntegrityError(f"{self.path} cannot be read: {error.strerror or error}. {REPAIR}")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
