"""Which directories are bundles: also the old one of an export that was killed, and the one whose name is near.

If a system cannot exchange two directories in one step, an export that overwrites a bundle renames the old one and then
the new one. Between the two steps the name of the bundle does not exist: readers find the old bundle here.
"""

from __future__ import annotations

import glob
from pathlib import Path

from stonnx._arguments import did_you_mean
from stonnx._bundle.manifest import MANIFEST_NAME

# The pattern of names that belong to the exports of a bundle.
LEFTOVERS = ".{}.partial-*"

# The end of the name of the old bundle.
REPLACED = "-old"


def existing(directory: Path) -> Path | None:
    """The directory itself, or the old bundle while a new one takes its place; None if both are missing."""
    if directory.is_dir():
        return directory
    pattern = LEFTOVERS.format(glob.escape(directory.name)) + REPLACED
    try:
        old = [path for path in directory.parent.glob(pattern) if (path / MANIFEST_NAME).is_file()]
    except OSError:
        old = []
    # The new one may have appeared since.
    return directory if directory.is_dir() else old[-1] if old else None


def is_bundle(directory: Path) -> bool:
    """Whether a bundle exists, or an old one while a new one takes its place."""
    # Checked again, because the one may have taken the place of the other between the two checks.
    return any(((existing(directory) or directory) / MANIFEST_NAME).is_file() for _ in range(3))


def nearest_bundle(typed: str) -> str:
    """The bundle whose path is nearly what was typed, as the end of a message; empty if there is none."""
    path = Path(typed)
    try:
        bundles = [str(each.parent) for each in path.parent.glob(f"*/{MANIFEST_NAME}")]
    except (OSError, ValueError):
        bundles = []
    return did_you_mean(str(path), bundles)
