"""Fields that no route knows and that are one or two letters from one that it knows: mistakes that would be ignored."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from itertools import islice

from stonnx.serve.errors import Kind, RequestError

# A letter too many or too few counts 1, another letter or two that changed places count 2.
_MOST_DIFFERENT = 2
# Shorter names are near many others.
_SHORTEST = 4
# A body may have a million unknown fields.
_MOST_COMPARED = 32


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs least, if that is by one or two letters; None if there is none.

    Example:
        >>> nearest("promptNam", ["prompt_name", "input"]), nearest("prompt", ["prompt_name", "input"])
        ('prompt_name', None)
    """
    found = [(_difference(name.lower(), right), right) for right in known if len(right) >= _SHORTEST]
    difference, right = min(found, default=(_MOST_DIFFERENT + 1, ""))
    return right if difference <= _MOST_DIFFERENT else None


def _difference(name: str, right: str) -> int:
    if abs(len(name) - len(right)) > _MOST_DIFFERENT:
        return _MOST_DIFFERENT + 1
    blocks = SequenceMatcher(None, name, right, autojunk=False).get_matching_blocks()
    return len(name) + len(right) - 2 * sum(block.size for block in blocks)


def refuse_near_misses(given: Collection[str], known: Collection[str]) -> None:
    """Refuse fields that are a slip of the pen. Other unknown fields are allowed: clients send many.

    A field is not a slip if the right one is there too.

    Args:
        given: The fields of a request.
        known: The fields that the route knows.

    Raises:
        RequestError: A field is nearly one that the route knows.
    """
    left_out = [name for name in known if name not in given]
    for name in islice((name for name in given if name not in known), _MOST_COMPARED):
        right = nearest(name, left_out)
        if right is not None:
            raise RequestError(
                Kind.INVALID,
                f"The field {name} is not known. Did you mean {right}? Correct its name, or leave the field out.",
                name,
            )
