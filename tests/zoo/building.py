"""Checkpoints on disk: each is built once, and shared by tests in several processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


def built_once(directory: Path, name: str, seed: int, write: Callable[[Path], None]) -> Path:
    """The folder ``directory/name``, filled by ``write`` with that seed if it is not there yet. It appears under its
    name only when it is complete, so that several processes may ask at once."""
    finished = directory / name
    if finished.exists():
        return finished
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            write(scratch)
        scratch.rename(finished)
    except OSError:
        if not finished.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return finished
