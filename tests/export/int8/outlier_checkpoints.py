"""Checkpoints with the outliers of trained encoders, which random weights lack."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# As in trained post-norm encoders, the same few channels of the residual stream are large in all layers but the last,
# whose output is the vector, and a few neurons of each feed-forward network write most of them.
CHANNELS, NEURONS = 2, 2


def add_outliers(checkpoint: Path, factor: float, seed: int = 0) -> None:
    """Make some channels of all norms but the last ``factor`` times as large, and some neurons half as often.

    The network becomes another one: compare its int8 form with what it is afterwards.
    """
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    generator = torch.Generator().manual_seed(seed)
    norms = [name for name in weights if name.endswith("LayerNorm.weight")]
    last = max((name for name in norms if ".output." in name and ".attention." not in name), key=_layer)
    channels = torch.randperm(len(weights[last]), generator=generator)[:CHANNELS]
    for name in norms:
        if name != last:
            weights[name][channels] *= factor
            weights[name.removesuffix("weight") + "bias"][channels] *= factor
    for name in weights:
        if name.endswith("intermediate.dense.weight"):
            neurons = torch.randperm(len(weights[name]), generator=generator)[:NEURONS]
            weights[name][neurons] *= max(1.0, factor / 5)
            down = name.replace("intermediate.dense", "output.dense")
            weights[down][channels[:, None], neurons] *= max(1.0, factor / 2)
    save_file(weights, file, metadata={"format": "pt"})


def _layer(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())
