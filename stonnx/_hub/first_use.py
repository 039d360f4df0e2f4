"""The bundle of a checkpoint, exported on first use. The only file that knows the exporter."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stonnx._arguments import check_choice
from stonnx._bundle.bundle import Bundle, open_bundle
from stonnx._cache import cache_directory
from stonnx._errors import (
    ExportError,
    MissingDependencyError,
)
from stonnx._hub.download import is_exporter_missing
from stonnx._hub.repair import cannot_repair, open_cached, without_advice
from stonnx._tasks import DTYPES, Task

logger = logging.getLogger("stonnx")


def exported(source: str, identity: str, task: Task, dtype: str | None, *, name: str | None = None) -> Bundle:
    """The bundle of a checkpoint from the cache, exported into it if it is missing or damaged."""
    label, recipe = name or source, dtype or "fp32"
    digest = hashlib.sha256(f"{identity}\0{task}\0{recipe}".encode()).hexdigest()[:16]
    target = cache_directory() / f"{label.rstrip('/').rsplit('/', 1)[-1]}-{recipe}-{digest}"
    found = open_cached(target)
    if isinstance(found, Bundle):
        return found
    damage = found
    check_choice("dtype", recipe, DTYPES)
    if is_exporter_missing():
        if damage is not None:
            raise cannot_repair(label, damage, "the exporter is not installed", target) from damage
        raise MissingDependencyError(
            f"{label} is a checkpoint, not a bundle. Export it once, on a machine that has the exporter "
            f'(pip install "stonnx[cpu,export]"), with: stonnx export {label} -o DIRECTORY\n'
            "Then load DIRECTORY here."
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(target))
        except OSError as error:
            if damage is not None:
                raise cannot_repair(label, damage, f"{error.filename}: {error.strerror}", target) from error
            raise ExportError(
                f"{label} is a checkpoint, and the bundle made of it cannot be kept in {target.parent}: "
                f"{error.strerror}. Set STONNX_HOME to a directory that can be written."
            ) from error
        found = open_cached(target)
        if isinstance(found, Bundle):
            return found
        from stonnx_export import export

        what = "for first use" if found is None else f"again: {without_advice(found)}"
        logger.warning("Exporting %s to a %s bundle %s, into %s", label, recipe, what, target)
        if found is None:  # the rest of it is not usable either
            shutil.rmtree(target, ignore_errors=True)
        export(source, target, dtype=recipe, task=task, name=name, overwrite=True)
        return open_bundle(target)


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Let one of several processes that start at once export, while the others wait for it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(target.name + ".lock")):
        yield


def local_identity(path: Path) -> str:
    """A text that changes whenever a file of the checkpoint does."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    stats = [f"{file.relative_to(path)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return "\0".join([str(path.resolve()), *stats])
