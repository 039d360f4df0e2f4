"""Arguments under the names and positions that older versions of sentence-transformers gave them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

logger = logging.getLogger("stonnx")

_P = ParamSpec("_P")
_R = TypeVar("_R")


def accept_old_arguments(
    *, renamed: Mapping[str, str] | None = None, ignored: Sequence[str] = (), positional: Sequence[str] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a method take arguments that its signature no longer has. Each is logged once as a warning.

    As in sentence-transformers, the new name wins if both are given.

    Args:
        renamed: The new name of each old keyword.
        ignored: Keywords that have no effect any more.
        positional: Names of arguments that could once follow the first one by position.
    """
    new_names = renamed or {}

    def decorate(method: Callable[_P, _R]) -> Callable[_P, _R]:
        call = cast(Callable[..., Any], method)
        where = method.__qualname__.removesuffix(".__init__")

        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # `self` and the first argument stay positional. More arguments than known names remain an error.
            old = args[2:] if positional and len(args) <= 2 + len(positional) else ()
            for name, value in zip(positional, old, strict=False):
                warn_once(f"{where} takes {name} by name now, not by position.")
                kwargs.setdefault(name, value)
            for name in [name for name in kwargs if name in ignored]:
                warn_once(f"{where} ignores {name}, which has no effect.")
                del kwargs[name]
            for name in [name for name in kwargs if name in new_names]:
                warn_once(f"{where} takes {new_names[name]}, which is the new name of {name}.")
                kwargs.setdefault(new_names[name], kwargs.pop(name))
            return call(*(args[:2] if old else args), **kwargs)

        return cast(Callable[_P, _R], wrapper)

    return decorate


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    logger.warning(message)
