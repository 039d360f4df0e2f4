"""The import of onnxruntime, without its telemetry, and with advice if two of its wheels damaged each other."""

from __future__ import annotations

import functools
import logging
import os
import sys
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

# The official wheels of 1.29 and newer send usage data to Microsoft, and keep a device id and a queue in the home
# directory. The variable is read once, while `import onnxruntime` runs; `disable_telemetry_events()` stops neither of
# the two. See Privacy.md in the installed package.
_TELEMETRY, _SINCE = "ORT_DISABLE_TELEMETRY", (1, 29)
_OFF = ("1", "true", "yes", "on")  # onnxruntime takes any other value for "on"

logger = logging.getLogger("stonnx")


def import_onnxruntime() -> onnxruntime:
    """Import the package onnxruntime with its telemetry off, and warn if several of its wheels are installed.

    Raises:
        MissingDependencyError: It is missing, or only a part of it is there.
    """
    in_time = _switch_off_telemetry()
    installed = installed_wheels()
    if len(installed) > 1:
        warnings.warn(two_wheels(installed), RuntimeWarning, stacklevel=2)
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported: {error}. Install it with: {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # The rest of the directory after one of two wheels was uninstalled.
        raise MissingDependencyError(
            "onnxruntime is only partly installed, as happens when one of two onnxruntime wheels is uninstalled. "
            f"Repair it with: pip uninstall -y {' '.join(_WHEELS[:2])} && {_INSTALL}"
        )
    if not in_time and _has_telemetry(onnxruntime):
        _warn_once(onnxruntime.__version__)
    return onnxruntime


def telemetry() -> tuple[str, str]:
    """Whether onnxruntime sends usage data from this process, in words, and a remedy if nobody asked for that."""
    onnxruntime = import_onnxruntime()
    setting = os.environ[_TELEMETRY]
    if not _has_telemetry(onnxruntime):
        return f"onnxruntime {onnxruntime.__version__} has none", ""
    if setting.lower() not in _OFF:
        return f"on, because {_TELEMETRY}={setting} is set: onnxruntime sends usage data to Microsoft", ""
    if not _switch_off_telemetry():
        return "on: onnxruntime was imported before stonnx could switch it off", _REMEDY
    return f"off: {_TELEMETRY}={setting} (stonnx sets it, unless it is set already)", ""


_REMEDY = f"Set {_TELEMETRY}=1 in the environment of the process, before anything imports onnxruntime."


@functools.cache
def _switch_off_telemetry() -> bool:
    """Switch it off unless the user decided otherwise. False: it is too late, because onnxruntime is imported."""
    in_time = "onnxruntime" not in sys.modules or _TELEMETRY in os.environ
    os.environ.setdefault(_TELEMETRY, "1")  # this is too late for this process, but reaches processes that it starts
    return in_time


def _has_telemetry(onnxruntime: onnxruntime) -> bool:
    major, minor = onnxruntime.__version__.split(".")[:2]
    return (int(major), int(minor)) >= _SINCE


@functools.cache
def _warn_once(version: str) -> None:
    logger.warning("onnxruntime %s was imported before stonnx and sends usage data to Microsoft. %s", version, _REMEDY)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep onnxruntime's own log off the terminal. Errors are still raised."""
    onnxruntime = import_onnxruntime()
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default; onnxruntime cannot report it


def installed_wheels() -> list[str]:
    """The onnxruntime wheels that are installed."""
    return [wheel for wheel in _WHEELS if _is_installed(wheel)]


def two_wheels(installed: Sequence[str]) -> str:
    """The problem of several wheels at once, and the command that repairs it."""
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
