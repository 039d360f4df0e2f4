"""Panics of the ``tokenizers`` package become errors of stonnx.

A panic is Rust's name for a fault that its author did not expect. In Python it is a ``BaseException``. A server's
``except Exception`` lets it through, and it does not name the text that caused it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stonnx._errors import BundleFormatError, TokenizerError

_Text = TypeVar("_Text")


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of Rust code: its class cannot be imported."""
    return type(error).__module__ == "pyo3_runtime" and not isinstance(error, Exception)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise BundleFormatError instead of the package's errors about a file."""
    try:
        yield
    except BaseException as error:  # the Rust side raises bare Exception, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BundleFormatError(f"{path} is not a tokenizer that the tokenizers package can read: {error}") from error


def tokenized(encode: Callable[[list[_Text]], list[Any]], texts: Sequence[_Text], start: int = 0) -> list[Any]:
    """``encode(texts)``. After a panic, this tries the texts one by one, to find the one that caused it.

    Args:
        encode: Gives a value for each text.
        texts: The texts.
        start: The index of the first.

    Raises:
        TokenizerError: The package panics at a text, or one of its threads did.
    """
    try:
        return encode([*texts])
    except BaseException as error:
        if not is_panic(error):
            raise
        if len(texts) > 1:
            for place, text in enumerate(texts):
                tokenized(encode, [text], start + place)
        raise TokenizerError(start, str(error)) from error
