"""The memory that this process may use, by the limits of its container and by the size of the machine."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from stonnx._device.control_groups import control_groups, lines

# Control groups of version 2 and of version 1. Both count what all processes of a group use.
_FILES = ("memory.max", "memory.limit_in_bytes")


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process may use: the smallest limit of its control groups, or the machine's memory.

    Args:
        root: The directory with ``proc`` and the control groups.

    Returns:
        None if the system does not say.
    """
    texts = [" ".join(lines(group / name)) for group in control_groups(root) for name in _FILES]
    # "max" is no limit. Version 1 writes a number beyond any machine instead, which is larger than the machine's.
    limits = [int(text) for text in texts if text.isdigit() and int(text) > 0]
    machine = _machine(root)
    return min([*limits, *([] if machine is None else [machine])], default=None)


@lru_cache(maxsize=1)
def available_memory() -> int | None:
    """:func:`memory_limit` of this process, read once."""
    return memory_limit()


def resident_memory(root: Path = Path("/")) -> int | None:
    """Bytes of this process that are in memory. None if the system does not say."""
    words = " ".join(lines(root / "proc/self/statm")).split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 and words[1].isdigit() else None


def _machine(root: Path) -> int | None:
    for line in lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        words = value.split()
        if name == "MemTotal" and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None
