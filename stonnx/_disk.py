"""Facts that the system gives about files: locks, mount points and owners."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from pathlib import Path

# Constants of the system call `renameat2`: https://man7.org/linux/man-pages/man2/rename.2.html
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_MOUNTS = Path("/proc/self/mountinfo")


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed or the process dies, however it dies.

    Unlike a process id in a file, the lock means the same in every container and, if the file system shares it, on
    every host.

    Returns:
        False: Somebody else holds the lock. None: The file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two directories or files in one step. Nobody sees half of it.

    Returns:
        False: This system or file system cannot do that, and nothing was changed.

    Raises:
        OSError: One of them is missing or may not be renamed.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path, a directory or a single file: the path can then not be renamed."""
    if os.path.ismount(path):
        return True
    try:
        # A bind mount from the same file system looks like any other file or directory there.
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    place = os.fsencode(os.path.realpath(path))
    return any(_unescaped(line.split(b" ")[4]) == place for line in lines)


def _unescaped(field: bytes) -> bytes:
    """A path of the table of mounts, in which a backslash and three octal digits stand for some characters."""
    first, *others = field.split(b"\\")
    return first + b"".join(bytes([int(other[:3], 8)]) + other[3:] for other in others)


def is_own(found: os.stat_result) -> bool:
    """Whether a file is plain, belongs to this user and has no second name, so that nobody else can have made it."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        return False
    return sys.platform == "win32" or found.st_uid == os.geteuid()


def create(path: Path, mode: int = 0o666) -> int:
    """Make a new file and open it. This does not follow a link that somebody has put there.

    Raises:
        FileExistsError: Something has that name already.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)
