"""A zoo of small checkpoints in the published configuration of real models: the oracle's input in every parity test."""

from __future__ import annotations

from pathlib import Path

from .parameters import parameter
from .rows import ROWS, row
from .table import ModelRow

__all__ = ["ROWS", "ModelRow", "build_checkpoint", "parameter", "row"]


def build_checkpoint(row: ModelRow, directory: Path, *, seed: int = 0) -> Path:
    """The row's checkpoint below `directory`, built there if it is not there yet."""
    # It imports PyTorch. Tests without it take the table and the tokenizers.
    from . import checkpoints

    return checkpoints.build_checkpoint(row, directory, seed=seed)
