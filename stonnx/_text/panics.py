"""Panics of the ``tokenizers`` package become errors of ours.

A panic is what Rust calls a fault that its author did not expect. In Python it is a ``BaseException``, which a server's
``except Exception`` lets through, and which says nothing about the text that caused it.
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
    """Raise BundleFormatError instead of whatever the package raises about a file."""
    try:
        yield
    except BaseException as error:  # the Rust side raises bare Exception, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BundleFormatError(f"{path} is not a tokenizer that the tokenizers package can read: {error}") from error


def tokenized(encode: Callable[[list[_Text]], list[Any]], texts: Sequence[_Text], start: int = 0) -> list[Any]:
    """``encode(texts)``. After a panic, the texts are tried one by one, to tell which one it was.

    Args:
        encode: Gives a value for each text.
        texts: The texts.
        start: The index of the first.

    Raises:
        TokenizerError: The package panics at a text, or a thread of it did.
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
