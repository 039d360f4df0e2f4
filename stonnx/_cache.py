"""The place where stonnx keeps its own files: bundles exported on first use, engines, and results of checks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from stonnx._disk import create, is_own


def cache_directory() -> Path:
    """``STONNX_HOME``, or ``stonnx`` in the user's cache directory."""
    home = os.environ.get("STONNX_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stonnx"


logger = logging.getLogger("stonnx")


def is_remembered(kind: str, identity: str) -> bool:
    """Whether this user remembered a result before. ``identity`` is a hash of everything that it depends on."""
    place = _place(kind, identity)
    try:
        # In a cache that several users share, anybody could have written it.
        return place is not None and is_own(os.lstat(place))
    except OSError:
        return False


def remember(kind: str, identity: str) -> None:
    """Remember a result. If the cache cannot be written, nothing is remembered, and every start checks again."""
    place = _place(kind, identity)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(create(place))
    except FileExistsError:  # another process remembered it meanwhile, or it belongs to another user
        return
    except OSError as error:
        logger.debug("Nothing can be remembered in %s: %s", place.parent, error)


def _place(kind: str, identity: str) -> Path | None:
    try:
        return cache_directory() / kind / identity
    except RuntimeError:  # a user without a home directory
        return None
