"""Checks of arguments. Each error names the argument, the allowed values, and the passed value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from stonnx._errors import ArgumentTypeError, InvalidArgumentError, InvalidInputError


def check_integer(
    name: str, value: Any, *, least: int | None = 1, most: int | None = None, optional: bool = False
) -> None:
    """Raise InvalidArgumentError unless a value is an integer within bounds, or None if that is allowed.

    Example:
        >>> check_integer("top_k", 3)
        >>> check_integer("top_k", 1.5, optional=True)
        Traceback (most recent call last):
        stonnx._errors.ArgumentTypeError: top_k must be a positive integer or None, got 1.5.
    """
    if value is None and optional:
        return
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not integer or (least is not None and value < least) or (most is not None and value > most):
        allowed = {None: "an integer", 1: "a positive integer"}.get(least, f"an integer of {least} or more")
        allowed += "" if most is None else f", at most {most}"
        kind = InvalidArgumentError if integer else ArgumentTypeError
        allowed += " or None" if optional else ""
        raise kind(f"{name} must be {allowed}, got {described(value)}.")


def check_number(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless a value is a real number other than NaN."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or value != value:
        kind = InvalidArgumentError if number else ArgumentTypeError
        raise kind(f"{name} must be a number, got {described(value)}.")


def check_text(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless a value is a str or None."""
    if value is not None and not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be a str or None, got {described(value)}.")


def check_choice(name: str, value: Any, allowed: Collection[str], *, advice: str = "") -> None:
    """Raise InvalidArgumentError unless a value is one of some strings. The message ends with the advice."""
    if not isinstance(value, str) or value not in allowed:
        kind = InvalidArgumentError if isinstance(value, str) else ArgumentTypeError
        raise kind(f"{name} must be one of {', '.join(map(repr, allowed))}, got {described(value)}. {advice}".rstrip())


def check_callable(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless a value is a function."""
    if not callable(value):
        raise ArgumentTypeError(f"{name} must be a function, got {described(value)}.")


def check_texts(name: str, value: Any) -> Iterable[Any]:
    """The value, if it can hold many texts. Raise InvalidInputError for one text or a value that is not iterable."""
    if isinstance(value, str):
        raise InvalidInputError(f"{name} is a single str, and must be a list of them. For one text pass [text].")
    if isinstance(value, bytes | bytearray | dict) or not _is_iterable(value):
        raise InvalidInputError(f"{name} must be a list of texts, got {described(value)}.")
    texts: Iterable[Any] = value
    return texts


def described(value: Any) -> str:
    """A value in a message: short, and with its type if the value alone would mislead."""
    text = f"{value!r:.60}"
    return text if isinstance(value, int | float | str) or value is None else f"{text} ({type(value).__name__})"


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_prompts(prompts: Any) -> None:
    """Raise InvalidArgumentError unless prompts are texts by name; None stands for the model's own prompt."""
    if prompts is None:
        return
    if not isinstance(prompts, Mapping):
        raise InvalidArgumentError(f"prompts must be a dict of texts by name, got {described(prompts)}.")
    for name, prompt in prompts.items():
        if not isinstance(name, str) or not isinstance(prompt, str | None):
            raise InvalidArgumentError(
                f"prompts must be a dict of texts by name, got {described(prompt)} for the name {described(name)}."
            )


def check_no_more(model: str, method: str, options: Collection[str]) -> None:
    """Raise InvalidArgumentError for keyword arguments that a method does not have, in the words of the original."""
    if options:
        raise InvalidArgumentError(
            f"{model}.{method}() has been called with additional keyword arguments that this model does not use: "
            f"{list(options)}. As per {model}.get_model_kwargs(), this model does not accept any additional keyword "
            "arguments."
        )
