"""What this machine has found out once, remembered from one start to the next as empty files in the cache directory."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from stonnx._cache import cache_directory

logger = logging.getLogger("stonnx")


def is_remembered(kind: str, identity: str) -> bool:
    """Whether it was remembered before. ``identity`` is a hash of everything that it depends on."""
    place = _place(kind, identity)
    return place is not None and os.path.exists(place)  # unlike Path's, False where it may not be looked up


def remember(kind: str, identity: str) -> None:
    """Remember it. Where the cache cannot be written, nothing is, and every start finds it out again."""
    place = _place(kind, identity)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    except OSError as error:
        logger.debug("Nothing can be remembered in %s: %s", place.parent, error)


def _place(kind: str, identity: str) -> Path | None:
    try:
        return cache_directory() / kind / identity
    except RuntimeError:  # a user without a home directory
        return None
