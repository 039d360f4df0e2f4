"""Checks of arguments. Each error names the argument, the allowed values, and the passed value."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, overload

import numpy as np

from stonnx._errors import ArgumentTypeError, InvalidArgumentError, InvalidInputError


def as_integer(value: Any) -> int | None:
    """The Python integer of an integer of any library, which has ``__index__``. None: it is not one, or a boolean.

    Calculations need Python's: a numpy integer of 8 bits overflows, and an array of one cannot be a key of a dict.

    Example:
        >>> as_integer(np.uint8(32)), as_integer(np.array(32)), as_integer(32.0), as_integer(True)
        (32, 32, None, None)
    """
    # A boolean tensor has __index__ too.
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def device_name(device: Any) -> str:
    """The name of a device: of a number that of the GPU, as in PyTorch. ``torch.device`` has its name as str."""
    number = as_integer(device)
    return str(device) if number is None else f"cuda:{number}"


@overload
def check_integer(name: str, value: Any, *, least: int | None = 1, most: int | None = None) -> int: ...
@overload
def check_integer(
    name: str, value: Any, *, least: int | None = 1, most: int | None = None, optional: Literal[True]
) -> int | None: ...
def check_integer(
    name: str, value: Any, *, least: int | None = 1, most: int | None = None, optional: bool = False
) -> int | None:
    """The value as a Python integer. Raise InvalidArgumentError unless it is an integer within bounds.

    Args:
        name: The name of the argument.
        value: An integer of any library; see :func:`as_integer`.
        least: The least allowed value. None: any.
        most: The highest allowed value. None: any.
        optional: Whether None is allowed too.

    Example:
        >>> check_integer("top_k", np.int64(3))
        3
        >>> check_integer("top_k", 1.5, optional=True)
        Traceback (most recent call last):
        stonnx._errors.ArgumentTypeError: top_k must be a positive integer or None, got 1.5.
    """
    if value is None and optional:
        return None
    number = as_integer(value)
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        allowed = {None: "an integer", 1: "a positive integer"}.get(least, f"an integer of {least} or more")
        allowed += "" if most is None else f", at most {most}"
        kind = ArgumentTypeError if number is None else InvalidArgumentError
        allowed += " or None" if optional else ""
        raise kind(f"{name} must be {allowed}, got {described(value)}.")
    return number


def check_number(name: str, value: Any) -> float:
    """The value as a Python number. Raise InvalidArgumentError unless it is a real one other than NaN."""
    number = float(value) if isinstance(value, float | np.floating) else as_integer(value)
    if number is None or number != number:
        kind = ArgumentTypeError if number is None else InvalidArgumentError
        raise kind(f"{name} must be a number, got {described(value)}.")
    return number


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


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The nearest of some words, as the end of a message; empty if none is near.

    Example:
        >>> did_you_mean("--dtpe", ["--dtype", "--task"]), did_you_mean("x", ["--task"])
        (' Did you mean --dtype?', '')
    """
    found = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {found[0]}?" if found else ""


def check_no_more(model: str, method: str, options: Collection[str], known: Collection[str]) -> None:
    """Raise InvalidArgumentError for keyword arguments that a method does not have, in the words of the original."""
    if options:
        allowed = "this model does not accept any additional keyword arguments"
        if known:
            allowed = f"the valid additional keyword arguments are: {list(known)}"
        raise InvalidArgumentError(
            f"{model}.{method}() has been called with additional keyword arguments that this model does not use: "
            f"{list(options)}. As per {model}.get_model_kwargs(), {allowed}."
        )
