"""The number of CPUs that this process may use, and their instructions.

A container is often given a part of a large machine: by affinity, by a cpuset, or by a quota on CPU time. onnxruntime
sees the first two only, and starts more threads than the quota feeds.
"""

from __future__ import annotations

import math
import os
import platform
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stonnx._arguments import as_integer
from stonnx._device.control_groups import control_groups, lines
from stonnx._errors import InvalidArgumentError, UnsupportedError

# The files of a control group that say which CPUs its processes may run on, for cgroup v2 and v1. The effective ones
# also have what the groups above allow.
_CPUSET_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
# The flags that decide how fast a graph runs, in the kernel's names.
_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)

_T = TypeVar("_T", int, float)

# More than any machine has CPUs.
_MOST_THREADS = 4096
_SPARE_THREADS = 2


@dataclass(frozen=True)
class CpuLimits:
    """The bounds on the CPUs of this process. None: there is no bound, or the system does not say."""

    affinity: int
    cpuset: int | None
    # CPU time in a period of time: 1.5 is one and a half CPUs.
    quota: float | None

    @property
    def cpus(self) -> int:
        """The CPUs that can be busy at once. A quota of one and a half CPUs feeds two threads for most of the time."""
        quota = None if self.quota is None else math.ceil(self.quota)
        return max(1, min(limit for limit in (self.affinity, self.cpuset, quota) if limit is not None))


def available_cpus() -> int:
    """The CPUs that this process may use: the smallest of its affinity, cpuset and quota."""
    return cpu_limits().cpus


def cpu_limits(root: Path = Path("/")) -> CpuLimits:
    """Read the bounds on the CPUs of this process. ``root`` is the directory with ``proc`` and the control groups."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = list(control_groups(root))
    return CpuLimits(affinity, _smallest(groups, _cpuset), _smallest(groups, _quota))


def cpu_features() -> tuple[str, ...]:
    """Instructions of this CPU that matter here, in the kernel's names. Empty if the system does not list them."""
    flags = _flags()
    return tuple(name for name in _FEATURES if name in flags)


def _flags() -> frozenset[str]:
    """All instructions that the kernel lists."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line.group(1).split()) if line else frozenset()


def require_threads(count: int) -> int:
    """The number of threads, if this process may start so many: onnxruntime waits forever for those that it cannot.

    Raises:
        InvalidArgumentError: The count is not a number of threads, or the system does not allow so many.
    """
    given, count = count, as_integer(count) or 0
    if count < 1:
        raise InvalidArgumentError(f"threads must be a positive integer or None, got {given!r}.")
    if count > _MOST_THREADS:
        raise InvalidArgumentError(f"threads must be a positive integer or None, up to {_MOST_THREADS:,}; got {count}.")
    if count == 1:  # the calling thread
        return count
    gate, started = threading.Event(), []
    try:
        # A few more: threads of the test itself may still end when the real ones start.
        for _ in range(count + _SPARE_THREADS):
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        raise InvalidArgumentError(
            f"threads={count}, but the system lets this process start only {len(started)} more threads. Load the model "
            "with fewer threads, or raise the limit: `ulimit -u`, `ulimit -v`, or the container's limit of processes "
            "(`docker run --pids-limit`)."
        ) from error
    finally:
        gate.set()
        for thread in started:
            thread.join()
    return count


def require_features(features: Sequence[str], what: str) -> None:
    """Check that this CPU has the instructions that a bundle needs, if the system lists them.

    Args:
        features: Their names, in the kernel's spelling.
        what: The bundle, for the message.

    Raises:
        UnsupportedError: The CPU does not have all of them.
    """
    flags = _flags() if features else None
    missing = [name for name in features if name not in flags] if flags else []
    if missing:
        raise UnsupportedError(
            f"{what} was made for CPUs with {', '.join(features)}, and this one ({cpu_name()}) has no "
            f"{', '.join(missing)}: it would compute something else. Use a machine that has it, or export a bundle for "
            "every CPU: stonnx export MODEL --dtype fp32"
        )


def cpu_name() -> str:
    """The name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    line = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return line.group(1).strip() if line else platform.processor() or platform.machine()


def _smallest(groups: list[Path], limit: Callable[[Path], _T | None]) -> _T | None:
    return min((value for group in groups if (value := limit(group)) is not None), default=None)


def _cpuset(group: Path) -> int | None:
    """The number of CPUs in a list such as ``0-3,8``; None if there is no list."""
    for name in _CPUSET_FILES:
        ranges = [part.partition("-") for part in "".join(lines(group / name)).split(",") if part.strip()]
        try:
            count = sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
        except ValueError:
            continue
        if count > 0:
            return count
    return None


def _quota(group: Path) -> float | None:
    """CPUs granted by cgroup v2 (``cpu.max``: quota and period) or v1, or None if there is no limit."""
    words = " ".join(lines(group / "cpu.max")).split()
    if not words:
        words = [*lines(group / "cpu.cfs_quota_us"), *lines(group / "cpu.cfs_period_us")]
    try:
        cpus = float(words[0]) / float(words[1])
    except (IndexError, ValueError, ZeroDivisionError):  # "max", or nothing: no limit
        return None
    return cpus if cpus > 0 else None  # v1 writes -1 for no limit
