"""Very long texts: a beginning of the text with the same ids as far as the model reads.

A tokenizer tokenizes a text completely and then truncates it. So a text of a megabyte costs a second even if the model
reads only its first page. Its beginning gives the same first ids if it ends at a point where the tokenizer always
splits. For most, that is a space after a letter. :func:`can_be_shortened` says for which tokenizers this is certain,
from their parts; texts of all others are tokenized completely. :mod:`stonnx._text.tokenizer` sees from the tokens
whether the beginning was long enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

# The characters to tokenize for each token that the model reads. English has about five, so the beginning is nearly
# always long enough. If it is not, the whole text is tokenized.
_CHARACTERS_PER_TOKEN = 8
# The most places to look at before a text stays whole: some texts consist of spaces only.
_PLACES = 100

# Normalizers that keep a space in its place, and whose result up to a letter and a space does not depend on the rest.
_NORMALIZERS = (
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Strip",
    "StripAccents",
)
# Pre-tokenizers that split between a letter and a space, and those that only split further.
_SPLITTING = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_FINER = ("Digits", "Punctuation")
# Regular expressions of byte-level tokenizers (GPT-4, Llama 3, Qwen). No match has a space after anything else.
_EXPRESSIONS = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
)


def can_be_shortened(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the beginning of a text up to a space after a letter has the first ids of the whole text."""
    if any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values()):
        return False
    normalizer, splitter = _settings(tokenizer.normalizer), _settings(tokenizer.pre_tokenizer)
    return (normalizer is None or _keeps_spaces(normalizer)) and splitter is not None and _splits(splitter)


def longest_whole(max_tokens: int) -> int:
    """The most characters of a text that is tokenized as it is: shortening must save more than it costs."""
    return 2 * _CHARACTERS_PER_TOKEN * max_tokens


def beginning(text: str, max_tokens: int) -> str | None:
    """The beginning of a text, cut between a letter or digit and a space; None if there is no such place.

    Example:
        >>> beginning("a day, and  then " * 20, max_tokens=2)
        'a day, and  then'
    """
    place = _CHARACTERS_PER_TOKEN * max_tokens + 1
    for _ in range(_PLACES):
        place = text.rfind(" ", 0, place)
        if place < 1:
            return None
        before = text[place - 1]
        # A few letters outside these form one character with the space after them (Unicode's property Prepend).
        if before.isalnum() and "\u0d4e" != before < "\U00010000":
            return text[:place]
    return None


def _keeps_spaces(settings: Mapping[str, Any]) -> bool:
    kind = settings["type"]
    if kind == "Sequence":
        return all(map(_keeps_spaces, settings["normalizers"]))
    if kind == "Replace":
        # A pattern of one string without a space cannot match across the place; this expression keeps one of many.
        pattern = settings["pattern"]
        return " " not in pattern.get("String", " ") or (pattern, settings["content"]) == ({"Regex": " {2,}"}, " ")
    return kind in _NORMALIZERS


def _splits(settings: Mapping[str, Any]) -> bool:
    kind = settings["type"]
    if kind == "Sequence":
        # The first one that splits there does so for those after it, which get pieces without the place.
        parts = settings["pretokenizers"]
        first = next((number for number, part in enumerate(parts) if _splits(part)), None)
        return first is not None and all(part["type"] in _FINER for part in parts[:first])
    if kind == "Metaspace":
        return bool(settings.get("split", True))
    if kind == "ByteLevel":
        return bool(settings.get("use_regex", True))
    if kind == "Split":
        return settings["pattern"].get("Regex") in _EXPRESSIONS and settings["behavior"] == "Isolated"
    return kind in _SPLITTING


def _settings(part: Any) -> Mapping[str, Any] | None:
    """The settings of a part of a tokenizer, as in tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


def is_same(text: str | tuple[str, str], encoding: tokenizers.Encoding, half: int) -> bool:
    """Whether the encoding of a shortened text is that of the text itself.

    Args:
        text: The whole text.
        encoding: That of the shortened text.
        half: Half of the tokens for a pair.
    """
    if not encoding.overflowing:
        return False
    if isinstance(text, str):
        return True
    # `longest_first` cuts only the longer text of a pair as long as the other one has less than half of the tokens. If
    # so, it was the shortened one that was cut, and that one is the longer one also when it is whole.
    other = 0 if len(text[0]) < len(text[1]) else 1
    return bool(encoding.sequence_ids.count(other) < half)


def shorten(text: str | tuple[str, str], limit: int, whole: int) -> str | tuple[str, str] | None:
    """The beginning of a long text, or a pair with the beginning of its long text; None if it must stay whole."""
    if isinstance(text, str):
        return beginning(text, limit)
    first, second = text
    if len(first) > whole and len(second) > whole:
        # The cut of each text depends on which one is longer.
        return None
    if len(first) > whole:
        short = beginning(first, limit)
        return None if short is None else (short, second)
    short = beginning(second, limit)
    return None if short is None else (first, short)
