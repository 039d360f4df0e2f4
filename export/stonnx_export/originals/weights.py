"""Which weights of a network came from the checkpoint, as far as transformers says.

transformers fills weights that the files lack with random numbers and goes on. A bundle would keep these numbers for
ever, so the exporter refuses a network that needs such weights.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from stonnx._errors import UnsupportedError
from stonnx_export.checkpoint.files import optional_object

logger = logging.getLogger("stonnx")

# The patch of transformers' loading is global to the process, so one thread at a time may apply it.
_lock = threading.Lock()
# The names in config.json, and those in safetensors.
_SIXTEEN_BITS = ("bfloat16", "float16", "BF16", "F16")
# A message names this many weights. More names would not help more than their number.
_MOST_NAMES = 8


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, the names of its weights that the files lack, and the names in the files that it does not use."""

    network: torch.nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@contextmanager
def watch_loading() -> Iterator[list[LoadedNetwork]]:
    """The networks that transformers loads within the block, with its own account of their weights."""
    found: list[LoadedNetwork] = []
    load = PreTrainedModel.__dict__["from_pretrained"].__func__

    def watched(cls: Any, /, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        network, info = load(cls, *arguments, output_loading_info=True, **options)
        found.append(LoadedNetwork(network, _sorted(info["missing_keys"]), _sorted(info["unexpected_keys"])))
        return (network, info) if output_loading_info else network

    with _lock:
        before = PreTrainedModel.__dict__["from_pretrained"]
        PreTrainedModel.from_pretrained = classmethod(watched)
        try:
            yield found
        finally:
            PreTrainedModel.from_pretrained = before


def refuse_missing(
    networks: Sequence[LoadedNetwork], compute: Callable[[], npt.NDArray[np.float32]], directory: Path
) -> None:
    """Raise UnsupportedError if the results of a network depend on weights that its checkpoint lacks.

    Args:
        networks: The loaded networks.
        compute: Computes the result of the model for some text.
        directory: The checkpoint, for the message.
    """
    missing = [name for network in networks for name in network.missing]
    if not missing:
        return
    # Other weights give another result, unless the result does not depend on them. An example is BERT's pooler, which
    # few embedding models use and many checkpoints lack.
    before = compute()
    with _other_weights(networks):
        if np.array_equal(compute(), before):
            return
    raise UnsupportedError(
        f"{directory} lacks {len(missing)} of the weights that {_classes(networks)} needs: {shortened(missing)}. "
        "transformers would fill them with random numbers, and the bundle would keep those. Was the checkpoint made "
        "for another class, as a plain network for a CrossEncoder? Export one that was trained for this task, or load "
        "it with the class that it is for."
    )


def refuse_random(first: torch.nn.Module, second: torch.nn.Module, directory: Path) -> None:
    """Raise UnsupportedError if a checkpoint that was loaded twice has other weights the second time.

    This is for networks that a repository's code loads in a way of its own: transformers does not report on these.
    """
    others = second.state_dict()
    random = [name for name, weight in first.state_dict().items() if not torch.equal(weight, others[name])]
    if random:
        raise UnsupportedError(
            f"{directory} lacks {len(random)} weights that its code fills with random numbers: {shortened(random)}. "
            "The bundle would keep those. Download the checkpoint again, or ask its author for the weights."
        )


def has_sixteen_bits(folder: Path) -> bool:
    """Whether the weights of a network, or its configuration, are of 16 bits."""
    config = optional_object(folder / "config.json")
    if str(config.get("dtype") or config.get("torch_dtype")) in _SIXTEEN_BITS:
        return True
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            return any(weights.get_slice(name).get_dtype() in _SIXTEEN_BITS for name in weights.keys())  # noqa: SIM118
    return False


def unexpected(networks: Sequence[LoadedNetwork], of_others: Collection[str] = ()) -> tuple[str, ...]:
    """The weights that neither networks use nor other modules. They do not get into a bundle."""
    names = tuple(name for network in networks for name in network.unexpected if name not in of_others)
    if names:
        logger.warning(
            "%s has no place for %d weights of the checkpoint, which are left out: %s",
            *(_classes(networks), len(names), shortened(names)),
        )
    return names


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


@contextmanager
def _other_weights(networks: Sequence[LoadedNetwork]) -> Iterator[None]:
    """Within the block, weights that the checkpoint lacks have other random values."""
    states = [(network.network.state_dict(), name) for network in networks for name in network.missing]
    weights = [state[name] for state, name in states if name in state and state[name].is_floating_point()]
    before = [weight.clone() for weight in weights]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.normal_(generator=generator)
        try:
            yield
        finally:
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


def _classes(networks: Sequence[LoadedNetwork]) -> str:
    return " and ".join(dict.fromkeys(type(network.network).__name__ for network in networks))


def _sorted(names: Any) -> tuple[str, ...]:
    return tuple(sorted(map(str, names)))
