"""Loads a bundle with the model class that fits it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.replaced import is_bundle
from stonnx._hub.find import find_bundle
from stonnx._model.model import Model
from stonnx._tasks import Task
from stonnx.cross_encoder import CrossEncoder
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder

_CLASSES: dict[Task, type[Model]] = {
    "embedding": SentenceTransformer,
    "sparse": SparseEncoder,
    "rerank": CrossEncoder,
}


def load_model(
    name_or_path: str | os.PathLike[str], task: Task | None = None, *, revision: str | None = None, **options: Any
) -> Model:
    """Load a bundle with the class that fits it.

    Args:
        name_or_path: The directory of a bundle, or a Hub id.
        task: The task, if a bare Hub name or a checkpoint does not say it. None: as the bundle says.
        revision: Branch, tag or commit on the Hub.
        **options: Further arguments of all three classes.
    """
    if task is None and is_bundle(Path(name_or_path)):
        bundle = open_bundle(Path(name_or_path))
    else:
        bundle = find_bundle(name_or_path, task=task or "embedding", dtype=options.get("dtype"), revision=revision)
    return _CLASSES[task or bundle.manifest.task](bundle, **options)
