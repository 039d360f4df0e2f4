"""``processing_kwargs`` of a call: arguments of the original's tokenizer, as far as they mean something for texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from stonnx._arguments import as_integer, described
from stonnx._bundle.manifest import TokenizerSpec
from stonnx._engine.call import TooLong
from stonnx._engine.request import Limit
from stonnx._errors import InvalidArgumentError, UnsupportedError

logger = logging.getLogger("stonnx")

# The keys that the original knows. It ignores others, with a warning.
_KEYS = ("text", "image", "audio", "video", "common", "chat_template")
# They change no result: padding is not part of results here, and ids become arrays.
_HARMLESS = (
    *("padding", "padding_side", "pad_to_multiple_of", "return_tensors"),
    *("return_attention_mask", "return_token_type_ids", "logits_to_keep", "verbose"),
)
# Values of `truncation` that cut the longer text of a pair first, and those that cut nothing.
_CUTS, _CUTS_NOTHING = (True, "longest_first"), (False, "do_not_truncate")
_ALLOWED = (
    "A bundle follows max_length and truncation (True, 'longest_first' or False) of 'text' and 'common'; "
    f"without effect are {', '.join(_HARMLESS)}"
)


def take_limit(
    options: dict[str, Any], spec: TokenizerSpec, task: str | None, too_long: TooLong | None
) -> tuple[Limit, TooLong | None]:
    """The limit of a call's texts by its ``processing_kwargs``, and how to treat a text over it.

    Args:
        options: The keywords of the call, from which ``processing_kwargs`` are taken.
        spec: The tokenizer of the route.
        task: ``query`` or ``document``, if the texts are called that.
        too_long: As the call says. With ``truncation=False``, a text that the network cannot read is an error.

    Raises:
        InvalidArgumentError: They are not a dict of dicts, or have a value without a meaning.
        UnsupportedError: One of them changes what the model reads in a way that a bundle cannot follow.
    """
    given = options.pop("processing_kwargs", None)
    if given is None:
        return None, too_long
    if not isinstance(given, Mapping) or not all(isinstance(each, Mapping) for each in given.values()):
        raise InvalidArgumentError(
            f"processing_kwargs must be a dict of dicts, as {{'text': {{'max_length': 256}}}}; got {described(given)}."
        )
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        logger.warning("processing_kwargs has the unknown keys %s, which are ignored. Known: %s.", unknown, _KEYS)
    for key in ("image", "audio", "video", "chat_template"):
        if given.get(key):
            raise UnsupportedError(
                f"processing_kwargs has {key!r}, which the export has fixed. Leave it out, or set it in the checkpoint "
                f"(processing_kwargs in sentence_bert_config.json), and export it again. {_ALLOWED}."
            )
    text, common = given.get("text", {}), given.get("common", {})
    # As in the original, a chat template reads those of texts last, and a tokenizer by itself the common ones.
    found = {**common, **text} if spec.chat is not None else {**text, **common}
    for name, value in found.items():
        if name not in ("max_length", "truncation", *_HARMLESS):
            raise UnsupportedError(
                f"processing_kwargs has {name}={value!r}, which a bundle does not follow. {_ALLOWED}."
            )
    truncation, length = found.get("truncation", True), found.get("max_length")
    if truncation not in (*_CUTS, *_CUTS_NOTHING):
        raise UnsupportedError(f"processing_kwargs has truncation={truncation!r}. {_ALLOWED}.")
    if task == "query" and spec.expansion is not None and found.keys() & {"max_length", "truncation"}:
        raise UnsupportedError(
            "processing_kwargs has a length for queries, which this model fills up to a number of tokens of its own. "
            "Leave it out."
        )
    if truncation in _CUTS_NOTHING:
        return "whole", "error"
    limit = as_integer(length)
    if length is not None and limit is None:
        raise InvalidArgumentError(f"processing_kwargs must have an integer as max_length; got {described(length)}.")
    return limit, too_long
