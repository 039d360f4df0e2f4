"""Weights of small modules, as float32, from the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stonnx._errors import ExportError, MissingDependencyError
from stonnx_export.checkpoint.files import damage_named
from stonnx_export.checkpoint.modules import FloatArray


def read_exactly(folder: Path, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, FloatArray]:
    """The weights of a module that has exactly these, as sentence-transformers requires.

    None stands for a size that the settings leave out: any number fits it.
    """
    weights = read_weights(folder)
    missing = [name for name in shapes if name not in weights]
    more = [name for name in weights if name not in shapes]
    if missing or more:
        problem = (
            f"lacks {', '.join(missing)}" if missing else f"has weights that no such module has: {', '.join(more)}"
        )
        raise ExportError(f"{folder} {problem}. sentence-transformers refuses it, too. Download the checkpoint again.")
    wrong = [
        name
        for name, shape in shapes.items()
        if len(shape) != weights[name].ndim
        or any(size not in (None, found) for size, found in zip(shape, weights[name].shape, strict=True))
    ]
    if wrong:
        raise ExportError(
            f"{folder}: {wrong[0]} has the shape {list(weights[wrong[0]].shape)}, and its config.json says "
            f"{list(shapes[wrong[0]])}. Download the checkpoint again."
        )
    return weights


def read_weight(folder: Path, name: str) -> FloatArray | None:
    """One weight of a network, as float32; None if it does not have it."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return read_weights(folder).get(name)
    from safetensors import safe_open

    with damage_named(file), safe_open(str(file), "np") as weights:
        return np.asarray(weights.get_tensor(name), dtype=np.float32) if name in weights.keys() else None  # noqa: SIM118


def read_weights(folder: Path) -> dict[str, FloatArray]:
    """The weights of a small module, as float32."""
    file = folder / "model.safetensors"
    if file.is_file():
        from safetensors.numpy import load_file

        with damage_named(file):
            return {name: np.asarray(array, dtype=np.float32) for name, array in load_file(str(file)).items()}
    file = folder / "pytorch_model.bin"
    if file.is_file():
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError(
                f"{folder} has its weights as pytorch_model.bin only, which PyTorch has to read. Install it with: pip "
                "install torch   Or use a version of the checkpoint with model.safetensors in that folder."
            ) from error
        with damage_named(file):
            state = torch.load(str(file), map_location="cpu", weights_only=True)
            return {name: tensor.float().numpy() for name, tensor in state.items()}
    raise ExportError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin.")
