"""Inputs of ``encode`` for a model that reads texts and images: which are which, as in sentence-transformers."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np

from stonnx._errors import InvalidInputError
from stonnx._text.inputs import is_batch, parse_inputs
from stonnx._text.tokens import Text

logger = logging.getLogger("stonnx")

# A str that ends in one of these is an image if it is a file or a URL. Any other str is a text.
_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
_DATA = "data:image/"


@dataclass(frozen=True)
class MixedInputs:
    """The texts and images of a call, and the place of each in it.

    Attributes:
        texts: Valid Unicode, with the prompt before each.
        text_places: The index of each text among all inputs.
        images: Paths, data URIs, PIL images, arrays.
        image_places: The index of each image among all inputs.
        single: Whether the call was for a single input.
    """

    texts: list[Text]
    text_places: list[int]
    images: list[Any]
    image_places: list[int]
    single: bool

    def __len__(self) -> int:
        return len(self.texts) + len(self.images)


def parse_mixed(inputs: Any, prompt: str | None = None) -> MixedInputs:
    """Tell the texts and the images of a call apart.

    Images are PIL images, arrays of numbers, ``pathlib`` paths, ``{"image": ...}``, and a str that is a data URI of an
    image, or a URL or the path of a file with the ending of an image. All other inputs are read as texts. The prompt
    does not change images.

    Raises:
        InvalidInputError: An input is neither; the error has its index.
    """
    single = not is_batch(inputs)
    items = [inputs] if single else (inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs))
    images: dict[int, Any] = {}
    for place, item in enumerate(items):
        if isinstance(item, dict) and {"image", "text"} <= item.keys():
            raise InvalidInputError(
                f"{_name(None if single else place)} has a text and an image, and the model gives each a vector of its "
                "own. Pass them as two inputs.",
                None if single else place,
            )
        if isinstance(item, dict) and item.keys() == {"image"}:
            images[place] = item["image"]
        elif is_image(item):
            images[place] = item
        elif isinstance(item, str) and item.lower().endswith(_ENDINGS) and not any(map(str.isspace, item)):
            logger.warning("%s is read as a text: there is no file %r.", _name(None if single else place), item)
    # With a text at the place of each image, so that errors have the right index.
    texts, _ = parse_inputs(
        ("" if 0 in images else items[0]) if single else ["" if n in images else item for n, item in enumerate(items)],
        prompt,
    )
    text_places = [place for place in range(len(items)) if place not in images]
    return MixedInputs([texts[place] for place in text_places], text_places, [*images.values()], [*images], single)


def is_image(item: Any) -> bool:
    """Whether an input is an image, or should be one."""
    if isinstance(item, str):
        return is_data_uri(item) or is_url(item) or (item.lower().endswith(_ENDINGS) and os.path.isfile(item))
    if isinstance(item, os.PathLike):
        return True
    if isinstance(item, np.ndarray):
        return item.dtype.kind not in ("U", "O") and item.ndim >= 1
    return is_pillow(item) or is_tensor(item)


def is_data_uri(item: str) -> bool:
    """Whether a str is an image as a data URI."""
    return item.startswith(_DATA)


def is_url(item: str) -> bool:
    """Whether a str is the URL of an image."""
    if not item.startswith(("http://", "https://")) or " " in item:
        return False
    try:
        return urlparse(item).path.lower().endswith(_ENDINGS)
    except ValueError:  # as for "https://[[", which is a text
        return False


def is_pillow(item: Any) -> bool:
    """Whether a value is an image of pillow, which has been imported if there is one."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(item, module.Image)


def is_tensor(item: Any) -> bool:
    """Whether a value is a tensor of PyTorch, which has been imported if there is one."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(item, module.Tensor)


def _name(index: int | None) -> str:
    return "The input" if index is None else f"Input {index}"
