"""The growth of a text in a tokenizer: a few kB of settings can double it again and again."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

# A real tokenizer makes at most about a hundred characters of one, by three expansions of rare characters in a row.
_MOST = 10_000
# The growth by Unicode's compatible forms: ﷺ becomes 18 characters.
_COMPATIBLE = 18
# The growth by lower case, composed forms and spaces around a character. A second time, these have no effect.
_ONCE: Mapping[str, int] = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": _COMPATIBLE,
    "NFKD": _COMPATIBLE,
    "Nmt": 1,
    "Lowercase": 3,
    "StripAccents": 1,
    "BertNormalizer": 9,
    "Strip": 1,
}
# A byte becomes a character of up to two bytes, and each of these can become one again.
_BYTES = 4


def check_growth(tokenizer: tokenizers.Tokenizer) -> None:
    """Raise ValueError if the normalizers and splitters of a tokenizer can make a text far longer."""
    parts = [*_parts(tokenizer.normalizer, "normalizers"), *_parts(tokenizer.pre_tokenizer, "pretokenizers")]
    growth = math.prod(max(1, _growth(part)) for part in parts if part["type"] not in _ONCE)
    once = {part["type"] for part in parts} & _ONCE.keys()
    # Several forms of Unicode in a row do not give more than the largest.
    growth *= max((_ONCE[kind] for kind in once), default=1)
    if growth > _MOST:
        raise ValueError(f"its normalizers can make a text {growth:,.0f} times as long, up to {_MOST:,} is allowed")


def _growth(part: Mapping[str, Any]) -> float:
    kind = part["type"]
    if kind == "Replace":
        pattern, content = part["pattern"], part["content"]
        if "String" in pattern:
            return len(content) / max(1, len(pattern["String"]))
        # An expression may match the empty text before each character.
        return len(content) + 1 if len(content) > 1 else 1
    if kind == "Precompiled":
        return _longest_entry(part["precompiled_charsmap"])
    if kind == "ByteLevel":
        return _BYTES
    if kind == "Metaspace":
        return len(part.get("replacement", ""))
    return 1


def _longest_entry(charsmap: str | list[int]) -> int:
    """The longest text that a map of SentencePiece has for a character. The texts follow a table one by one."""
    content = base64.b64decode(charsmap) if isinstance(charsmap, str) else bytes(charsmap)
    texts = content[4 + int.from_bytes(content[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)


def _parts(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer or splitter, in order, as tokenizer.json has them."""
    waiting = [] if part is None else [json.loads(part.__getstate__())]
    while waiting:
        settings = waiting.pop()
        if settings["type"] == "Sequence":
            waiting += reversed(settings[key])
        else:
            yield settings
