"""The control groups of this process, which bound what a container may use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def control_groups(root: Path) -> Iterator[Path]:
    """The directories of this process's control groups and of all groups above them. The limits of all apply.

    ``/proc/self/cgroup`` has lines ``number:controllers:path``, with number 0 and no controllers for cgroup v2;
    ``/proc/self/mountinfo`` says where each hierarchy, or a part of it, is mounted (man cgroups(7), proc(5)).
    """
    mounts = [mount for line in lines(root / "proc/self/mountinfo") if (mount := _cgroup_mount(line))]
    for line in lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for mounted_controllers, mounted_path, mount_point in mounts:
            if set(controllers.split(",")) <= mounted_controllers:
                # In a container that sees only its own groups, the path may lie outside the mounted part.
                inside = PurePosixPath(path).is_relative_to(mounted_path) and ".." not in PurePosixPath(path).parts
                group = PurePosixPath(path).relative_to(mounted_path) if inside else PurePosixPath()
                top = root / mount_point.lstrip("/")
                yield from (top / part for part in (group, *group.parents))


def _cgroup_mount(line: str) -> tuple[set[str], str, str] | None:
    """The controllers of a mounted hierarchy, the mounted part of it, and the mount point."""
    fields, _, kind = line.partition(" - ")
    # number, parent, device, path inside the hierarchy, mount point, options
    path, mount_point = (_unescaped(field) for field in ([*fields.split(" "), "", "", "", "", ""])[3:5])
    filesystem, _, rest = kind.partition(" ")
    if filesystem == "cgroup2":
        return {""}, path, mount_point
    if filesystem == "cgroup":
        return set(rest.split(" ")[-1].split(",")), path, mount_point
    return None


def _unescaped(field: str) -> str:
    r"""A path of mountinfo, which writes blanks as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
