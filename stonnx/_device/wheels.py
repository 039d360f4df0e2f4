"""Importing onnxruntime: which of its wheels are installed, and what to do when they damaged each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

from stonnx._errors import MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime

# Every one of these wheels installs the same directory `onnxruntime`; the last one installed wins.
_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
_INSTALL = 'pip install "stonnx[cpu]"  (or "stonnx[gpu]" for NVIDIA GPUs)'


def import_onnxruntime() -> onnxruntime:
    """The package onnxruntime, with a warning where several of its wheels are installed.

    Raises:
        MissingDependencyError: It is not there, or only a part of it.
    """
    installed = installed_wheels()
    if len(installed) > 1:
        warnings.warn(two_wheels(installed), RuntimeWarning, stacklevel=2)
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported: {error}. Install it with: {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # What is left of the directory after one of two wheels was uninstalled.
        raise MissingDependencyError(
            "onnxruntime is only partly installed, as happens when one of two onnxruntime wheels is uninstalled. "
            f"Repair it with: pip uninstall -y {' '.join(_WHEELS[:2])} && {_INSTALL}"
        )
    return onnxruntime


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what onnxruntime logs on its own from the terminal. Errors are raised all the same."""
    onnxruntime = import_onnxruntime()
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default: it cannot be asked


def installed_wheels() -> list[str]:
    """The onnxruntime wheels that are installed."""
    return [wheel for wheel in _WHEELS if _is_installed(wheel)]


def two_wheels(installed: Sequence[str]) -> str:
    """What is wrong with several wheels at once, and the command that repairs it."""
    return (
        f"{' and '.join(installed)} are both installed and overwrite each other's files: which devices work is "
        f"chance. Repair it with: pip uninstall -y {' '.join(installed)} && {_INSTALL}"
    )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
