"""processing_kwargs of a Transformer: the arguments with which sentence-transformers calls its tokenizer for texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stonnx._errors import ExportError, UnsupportedError

# Arguments that a bundle follows, and those that change no result for texts: padding, and the form of the ids.
_FOLLOWED = ("max_length", "truncation")
_HARMLESS = (
    *("padding", "padding_side", "pad_to_multiple_of", "return_tensors"),
    *("return_attention_mask", "return_token_type_ids", "logits_to_keep", "verbose"),
)
# Sizes that a chat template's arguments may have among them.
_SIZES = ("max_length", "truncation", "padding", "return_tensors")
# Of these values, all mean the same: the longer text of a pair loses its end first.
_TRUNCATIONS = (True, "longest_first", None)


def text_arguments(settings: Mapping[str, Any], file: Path | None, *, chat: bool) -> dict[str, Any]:
    """The arguments for texts, of all places that have some.

    Args:
        settings: The processing_kwargs.
        file: Where they are written, for messages.
        chat: Whether texts are put into a chat template: then other places have the last word.

    Raises:
        UnsupportedError: One of them changes what the model reads, and a bundle cannot follow it.
        ExportError: They are not objects.
    """
    places = [settings.get(name) or {} for name in ("text", "common", "chat_template")]
    if not all(isinstance(place, Mapping) for place in places):
        raise ExportError(f"{file}: processing_kwargs must be an object of objects, found {settings!r}.")
    text, common, template = places
    sizes = {name: value for name, value in template.items() if name in _SIZES}
    found = {**common, **text, **sizes} if chat else {**text, **common}
    unknown = [name for name in found if name not in (*_FOLLOWED, *_HARMLESS)]
    if unknown or found.get("truncation", True) not in _TRUNCATIONS:
        name = unknown[0] if unknown else "truncation"
        raise UnsupportedError(
            f"{file}: the argument {name}={found[name]!r} in processing_kwargs cannot be exported. Followed are "
            f"max_length and truncation=True; without effect are {', '.join(_HARMLESS)}. If the "
            "model may do without, take it out of that file."
        )
    length = found.get("max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ExportError(f"{file}: processing_kwargs must have a number of tokens as max_length, found {length!r}.")
    return {name: value for name, value in found.items() if name in _FOLLOWED}


def fixes_length(settings: Mapping[str, Any], *, chat: bool) -> bool:
    """Whether processing_kwargs have a max_length that also wins over query_length and document_length.

    Those two are arguments for texts: of two places, the same one has the last word as in :func:`text_arguments`.
    """
    places = ("text", "chat_template") if chat else ("text", "common")
    return any("max_length" in (settings.get(place) or {}) for place in places)
