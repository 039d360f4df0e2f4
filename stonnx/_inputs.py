"""What callers pass to ``encode``: one text or many, checked, as sentence-transformers reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stonnx._errors import InvalidInputError
from stonnx._tokenize import Text

_ALLOWED = "Allowed are str, a pair of str, or {'text': str}"


def parse_inputs(inputs: Any, prompt: str | None = None) -> tuple[list[Text], bool]:
    """The texts of a call with the prompt in front, and whether the call was for a single text.

    A list, a tuple and an array of strings are a batch; everything else is one input. Within a batch a pair of strings
    is one text pair, whose first text takes the prompt.

    Raises:
        InvalidInputError: An input is no text; the error has its index.

    Example:
        >>> parse_inputs(["a", ("b", "c")], prompt="query: ")
        (['query: a', ('query: b', 'c')], False)
    """
    single = not is_batch(inputs)
    items = [inputs] if single else (inputs.tolist() if isinstance(inputs, np.ndarray) else inputs)
    prompt = prompt or ""
    texts: list[Text] = []
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.keys() == {"text"}:
            item = item["text"]
        if isinstance(item, str):
            texts.append(prompt + item)
        elif isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            texts.append((prompt + item[0], item[1]))
        else:
            raise _not_text(item, None if single else index)
    return texts, single


def is_batch(inputs: Any) -> bool:
    """Whether an argument holds many inputs rather than one."""
    if isinstance(inputs, np.ndarray):
        return inputs.ndim >= 1 and inputs.dtype.kind in ("U", "O")
    # `datasets.Column` is a sequence of its own kind; recognised by name so that datasets need not be imported.
    return isinstance(inputs, list | tuple) or type(inputs).__module__.startswith("datasets.")


def _not_text(item: Any, index: int | None) -> InvalidInputError:
    where = "The input" if index is None else f"Input {index}"
    found = "None" if item is None else f"{type(item).__name__} ({item!r:.60})"
    hint = ""
    if isinstance(item, bytes):
        hint = " Decode bytes first: data.decode('utf-8')."
    elif item is None or item != item:  # NaN is the one value that differs from itself
        hint = " Missing values have to be dropped or replaced first, for example by ''."
    elif index is None and hasattr(item, "__iter__"):
        hint = " To encode many texts, pass a list."
    return InvalidInputError(f"{where} is no text but {found}. {_ALLOWED}.{hint}", index)
