"""What callers pass to ``predict``: one pair of texts or many, checked, as sentence-transformers reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stonnx._errors import InvalidInputError
from stonnx._inputs import parse_inputs
from stonnx._tokenize import Text


def parse_pairs(inputs: Any, prompt: str | None = None) -> tuple[list[Text], bool]:
    """The pairs of a call, the prompt in front of each first text, and whether the call was for a single pair.

    A list or tuple is a batch if its first item is a list or tuple, or if it is empty; an array of strings is a batch
    if it has two dimensions. Everything else is one pair.

    Raises:
        InvalidInputError: An input is no pair of texts, or not valid Unicode; the error has its index.

    Example:
        >>> parse_pairs([("a", "b"), ["c", "d"]])
        ([('a', 'b'), ('c', 'd')], False)
        >>> parse_pairs(("a", "b"), prompt="query: ")
        ([('query: a', 'b')], True)
    """
    single = not _is_batch(inputs)
    items = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    items = [items] if single else list(items)
    for index, item in enumerate(items):
        is_pair = isinstance(item, list | tuple) and len(item) == 2
        if not is_pair or not all(isinstance(part, str) for part in item):
            raise _no_pair(item, None if single else index)
    return parse_inputs(items, prompt)[0], single


def _is_batch(inputs: Any) -> bool:
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind in ("U", "O") and (inputs.size == 0 or inputs.ndim > 1)
    return _is_list(inputs) and (len(inputs) == 0 or _is_list(inputs[0]))


def _is_list(value: Any) -> bool:
    # `datasets.Column` is a sequence of its own kind; recognised by name so that datasets need not be imported.
    return isinstance(value, list | tuple) or type(value).__module__.startswith("datasets.")


def _no_pair(item: Any, index: int | None) -> InvalidInputError:
    where = "The input" if index is None else f"Input {index}"
    if not isinstance(item, list | tuple):
        found = f"{type(item).__name__} ({item!r:.60})"
    elif len(item) != 2:
        found = f"a {type(item).__name__} of {len(item)} ({item!r:.60})"
    else:
        part = 0 if not isinstance(item[0], str) else 1
        found = f"has {type(item[part]).__name__} ({item[part]!r:.60}) as its {('first', 'second')[part]} text"
        found = f"a {type(item).__name__} that {found}"
    remedy = "Pass (query, document), or for many pairs a list of them: list(zip(queries, documents))."
    return InvalidInputError(f"{where} is no pair of texts but {found}. Allowed is a pair of str. {remedy}", index)
