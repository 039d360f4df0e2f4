"""The modality of an input (text, image, audio, video, chat message), and the reason if a model does not read it.

The reasons are in the words of sentence-transformers, which programs and tests look for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from stonnx._text.messages import is_conversation, is_message

# A kind of input, or the kinds of a dict of several, sorted by name.
Modality = str | tuple[str, ...]

KINDS = {"text", "image", "audio", "video"}
_BY_DIMENSIONS = {1: "audio", 2: "audio", 3: "image", 4: "video", 5: "video"}


def modality_of(item: Any) -> Modality | None:
    """The modality of an input by its form, as sentence-transformers tells it. None: it has none.

    Example:
        >>> modality_of(("a", "b")), modality_of({"text": "a", "image": "b.png"}), modality_of(None)
        ('text', ('image', 'text'), None)
    """
    if isinstance(item, str) or (
        isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item)
    ):
        return "text"
    if is_message(item) or is_conversation(item):
        return "message"
    if isinstance(item, dict):
        if "array" in item:
            return "audio" if "sampling_rate" in item else "video" if "video_metadata" in item else None
        known = bool(item) and item.keys() <= KINDS
        return None if not known else next(iter(item)) if len(item) == 1 else tuple(sorted(item))
    # Recognised by modules that are there, so that none is imported.
    image, torch = sys.modules.get("PIL.Image"), sys.modules.get("torch")
    if image is not None and isinstance(item, image.Image):
        return "image"
    numbers = isinstance(item, np.ndarray) and item.dtype.kind in "biuf"
    if numbers or (torch is not None and isinstance(item, torch.Tensor)):
        return _BY_DIMENSIONS.get(item.ndim)
    return None


def supports(modality: Modality, modalities: Sequence[Modality]) -> bool:
    """Whether a model that reads some modalities reads another one: several at once are messages to it.

    Example:
        >>> supports(("image", "text"), ["text", "image"]), supports(("image", "text"), ["text", "image", "message"])
        (False, True)
    """
    if modality in modalities:
        return True
    return isinstance(modality, tuple) and "message" in modalities and all(part in modalities for part in modality)


def why_unsupported(inputs: Sequence[Any], modalities: Sequence[Modality], model: str) -> str:
    """Why a model does not read some inputs, in the words of the original. Empty: not because of their modality.

    Args:
        inputs: All inputs of a call.
        modalities: Those that the model reads.
        model: What it is called, as "SentenceTransformer model".
    """
    kinds = {modality_of(item) for item in inputs}
    if None in kinds:
        return ""
    found = {kind for kind in kinds if kind is not None}
    common: Modality = next(iter(found)) if len(found) == 1 else "message"
    if not found or supports(common, modalities):
        return ""
    reads = f"Supported modalities: {', '.join(map(_name, modalities))}."
    if "message" in found:
        mixed = ", which this batch mixes with other modalities" if len(found) > 1 else ""
        return (
            f"This {model} does not support chat-style 'message' inputs (dicts or lists of dicts with 'role' and "
            f"'content'){mixed}. {reads}"
        )
    if len(found) > 1:
        several = f"This batch mixes multiple modalities ({', '.join(sorted(map(_name, found)))}),"
        parts = {part for kind in found for part in (kind if isinstance(kind, tuple) else (kind,))}
        missing = sorted(part for part in parts if part not in modalities)
        if missing:
            return f"{several} but this {model} does not support {', '.join(missing)}. {reads}"
        return (
            f"{several} which this {model} cannot encode in a single batch. Encode each modality separately (one call "
            "per modality)."
        )
    if isinstance(common, tuple) and all(part in modalities for part in common):
        return (
            f"This {model} supports {' and '.join(common)} individually, but cannot combine them in a single input. "
            "Encode each modality separately (one call per modality)."
        )
    return f"Modality '{_name(common)}' is not supported by this {model}. {reads}"


def _name(modality: Modality) -> str:
    return "+".join(modality) if isinstance(modality, tuple) else modality
