"""Where stonnx keeps what it has made: bundles exported on first use, engines, and what it has found out."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """``STONNX_HOME``, or ``stonnx`` in the user's cache directory."""
    home = os.environ.get("STONNX_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stonnx"
