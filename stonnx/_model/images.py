"""Images among the inputs of ``encode``, for a bundle with a graph of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import ImageTower
from stonnx._engine.engine import Engine
from stonnx._errors import InvalidInputError, TextTooLongError, UnsupportedError
from stonnx._images.inputs import MixedInputs, parse_mixed
from stonnx._images.pixels import pixel_values
from stonnx._text.chat import Chat
from stonnx._text.inputs import parse_inputs

_Rows = npt.NDArray[np.float32]


def parse_for(engine: Engine, inputs: Any, prompt: str | None, chat: Chat | None = None) -> MixedInputs:
    """The texts and the images of a call. For a bundle that reads texts only, every input must be a text.

    Raises:
        InvalidInputError: An input is not what the bundle reads; the error has its index.
    """
    if engine.manifest.image is not None:
        return parse_mixed(inputs, prompt)
    texts, single = parse_inputs(inputs, prompt, chat)
    return MixedInputs(texts, [*range(len(texts))], [], [], single)


def refuse_images(inputs: MixedInputs, output_value: str | None) -> None:
    """Raise UnsupportedError if a call with images asks for what only texts have."""
    if inputs.images and output_value != "sentence_embedding":
        raise UnsupportedError(
            f"output_value={output_value!r} is for texts, and input {inputs.image_places[0]} is an image. Images have "
            "output_value='sentence_embedding' only."
        )


def image_features(tower: ImageTower, inputs: MixedInputs, mixed: str) -> dict[str, Any] | None:
    """The network's input for images: ``pixel_values`` float32 [images, 3, height, width]. None: there are none.

    ``mixed`` is what an error says of texts beside them.

    Raises:
        UnsupportedError: There are texts beside them.
    """
    if not inputs.images:
        return None
    if inputs.texts:
        raise UnsupportedError(
            "preprocess takes texts or images, because the network reads them in different forms. Call it for each. "
            f"{mixed}".rstrip()
        )
    numbered = zip(inputs.images, inputs.image_places, strict=True)
    rows = [pixel_values(image, tower.processor, place) for image, place in numbered]
    return {"pixel_values": np.stack(rows), "modality": "image"}


def image_rows(
    inputs: MixedInputs,
    width: int,
    embed_texts: Callable[[], _Rows | None],
    embed_images: Callable[[Sequence[tuple[int | None, Any]]], _Rows],
) -> _Rows:
    """The vectors of texts and images, in the order of the inputs: float32 [inputs, width].

    ``embed_images`` takes each image with its index, for messages.
    """
    result = np.empty((len(inputs), width), dtype=np.float32)
    try:
        rows = embed_texts()
    except TextTooLongError as error:
        error.shift(inputs.text_places[error.index] - error.index)
        raise
    except InvalidInputError as error:  # of the tokenizer, which knows the texts only
        if error.index is not None:
            error.index = inputs.text_places[error.index]
        raise
    if rows is not None:
        result[inputs.text_places] = rows
    places: Sequence[int | None] = [None] if inputs.single else inputs.image_places
    result[inputs.image_places] = embed_images(list(zip(places, inputs.images, strict=True)))
    return result
