"""Writing a directory so that it is there whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stonnx._bundle.manifest import MANIFEST_NAME
from stonnx._errors import ExportError, StonnxError

# The end of the name under which a bundle waits while another takes its place.
_REPLACED = "-old"


def check_target(target: Path, overwrite: bool) -> None:
    """Raise ExportError where a bundle cannot go to a directory because something is there."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        if not overwrite:
            raise ExportError(f"{target} exists already. Choose another with -o, or replace it with --overwrite.")
        if not (target / MANIFEST_NAME).is_file():
            raise ExportError(f"{target} exists and is no bundle, so it is not replaced. Choose another with -o.")


@contextmanager
def staging_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside the target that takes its place when the block succeeds, and disappears when it does not."""
    parent = target.absolute().parent
    try:
        made = [directory for directory in (parent, *parent.parents) if not directory.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f".{glob.escape(target.name)}.partial-*"):
            _clean_up(leftover, target)
        staging = parent / f".{target.name}.partial-{os.getpid()}"
        staging.mkdir()
    except OSError as error:
        raise ExportError(f"Cannot write to {parent}: {error.strerror}. Choose another directory with -o.") from error
    try:
        try:
            yield staging
            for file in staging.iterdir():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            _move_into_place(staging, target, overwrite)
        except OSError as error:
            if isinstance(error, StonnxError):
                raise
            raise ExportError(
                f"The bundle could not be written to {target}: {error.strerror or error}. Nothing is left behind."
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for directory in made:  # the innermost first; those that hold the bundle now are not empty
            with suppress(OSError):
                directory.rmdir()


def _clean_up(leftover: Path, target: Path) -> None:
    """Remove what a killed export left, or bring back the bundle that it was replacing."""
    replaced = leftover.name.endswith(_REPLACED)
    if _is_running(leftover.name.removesuffix(_REPLACED).rsplit("-", 1)[-1]):
        return
    if replaced and not target.exists():
        leftover.rename(target)
    else:
        shutil.rmtree(leftover, ignore_errors=True)


def _move_into_place(staging: Path, target: Path, overwrite: bool) -> None:
    check_target(target, overwrite)  # another export may have finished meanwhile
    if target.is_dir() and any(target.iterdir()):
        old = staging.with_name(staging.name + _REPLACED)
        target.rename(old)
        try:
            staging.rename(target)
        except BaseException:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(target)


def _is_running(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # exists, but belongs to somebody else
        return True
    return True
