"""The memory that a process may use, by recorded control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stonnx._device.memory import memory_limit, resident_memory

MEGABYTE = 1 << 20
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "36 31 0:30 /docker/f00 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MACHINE = {"proc/meminfo": "MemTotal:       16384 kB\nMemFree:        1 kB\n"}
TREES: dict[str, tuple[dict[str, str], int | None]] = {
    "nothing is known": ({}, None),
    "no control groups": (MACHINE, 16 * MEGABYTE),
    "v2, a container": (
        {
            **MACHINE,
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/memory.max": f"{4 * MEGABYTE}\n",
        },
        4 * MEGABYTE,
    ),
    "v2, the group above has the limit": (
        {
            **MACHINE,
            "proc/self/cgroup": "0::/system.slice/search.service\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/system.slice/search.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{2 * MEGABYTE}\n",
        },
        2 * MEGABYTE,
    ),
    "v2, a limit beyond the machine": (
        {
            **MACHINE,
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/memory.max": f"{64 * MEGABYTE}\n",
        },
        16 * MEGABYTE,
    ),
    "v1, a container": (
        {
            **MACHINE,
            "proc/self/cgroup": "9:memory:/docker/f00\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * MEGABYTE}\n",
        },
        8 * MEGABYTE,
    ),
    "v1, without a limit": (
        {
            **MACHINE,
            "proc/self/cgroup": "9:memory:/docker/f00\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        16 * MEGABYTE,
    ),
    "files that nobody knows": (
        {
            "proc/meminfo": "MemTotal: many kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/memory.max": "lots\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_the_smallest_limit_applies(tmp_path: Path, name: str) -> None:
    files, expected = TREES[name]
    for file, text in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit(tmp_path) == expected


def test_the_memory_in_use_is_read(tmp_path: Path) -> None:
    assert resident_memory(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "statm").write_text("300 20 5 1 0 200 0\n")
    assert resident_memory(tmp_path) == 20 * os.sysconf("SC_PAGE_SIZE")
