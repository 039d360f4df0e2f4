"""Loads a bundle with the model class that fits it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import stonnx
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.replaced import is_bundle
from stonnx._hub.find import find_bundle
from stonnx._model.model import Model
from stonnx._tasks import DEFAULT_TASK, TASKS, Task


def class_of(task: Task) -> type[Model]:
    """The public class of a task."""
    return cast(type[Model], getattr(stonnx, TASKS[task].class_name))


def load_model(
    name_or_path: str | os.PathLike[str], task: Task | None = None, *, revision: str | None = None, **options: Any
) -> Model:
    """Load a bundle with the class that fits it.

    Args:
        name_or_path: The directory of a bundle, or a Hub id.
        task: The task, if a bare Hub name or a checkpoint does not say it. None: as the bundle says.
        revision: Branch, tag or commit on the Hub.
        **options: Further arguments that the classes share.
    """
    if task is None and is_bundle(Path(name_or_path)):
        bundle = open_bundle(Path(name_or_path))
    else:
        bundle = find_bundle(name_or_path, task=task or DEFAULT_TASK, dtype=options.get("dtype"), revision=revision)
    return class_of(task or bundle.manifest.task)(bundle, **options)
