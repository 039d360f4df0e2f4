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

    As in sentence-transformers, the new name wins where both are given.

    Args:
        renamed: The new name of each old keyword.
        ignored: Keywords that have no effect any more.
        positional: Names of arguments that could once follow the first one by position.
    """

    def decorate(method: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            where = method.__qualname__.removesuffix(".__init__")
            # `self` and the first argument stay positional; what is beyond the names that are known stays an error.
            old, beyond = args[2 : 2 + len(positional)], args[2 + len(positional) :]
            if positional and old and not beyond:
                args = args[:2]
                for name, value in zip(positional, old, strict=False):
                    _warn_once(f"{where} takes {name} by name now, not by position: use {name}=....")
                    kwargs.setdefault(name, value)
            for name in set(kwargs) & set(ignored):
                _warn_once(f"{where} ignores {name}, which has no effect.")
                del kwargs[name]
            for name in set(kwargs) & set(renamed or {}):
                new = cast(Mapping[str, str], renamed)[name]
                _warn_once(f"{where} takes {new}, which is what {name} is called now.")
                value = kwargs.pop(name)
                kwargs.setdefault(new, value)
            return cast(Callable[..., Any], method)(*args, **kwargs)

        return cast(Callable[_P, _R], wrapper)

    return decorate


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
