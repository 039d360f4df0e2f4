"""A zoo of small checkpoints in the published configuration of real models: the oracle's input in every parity test."""

from .checkpoints import build_checkpoint
from .parameters import parameter
from .rows import ROWS, row
from .table import ModelRow

__all__ = ["ROWS", "ModelRow", "build_checkpoint", "parameter", "row"]
