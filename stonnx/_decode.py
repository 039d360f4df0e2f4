"""JSON values to dataclasses, with errors that name the place."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


def _anything(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Decoder:
    """How one kind of file is read.

    Attributes:
        error: Makes the error for a message.
        whole: The name of the whole value in messages.
        before: The beginning of messages about a place, as the path of the file and a colon.
        lacking: The message for a field that is not there, from its name.
        is_exact: Whether fields are refused that the dataclass does not have. Later versions of a file may add some.
        accepts: Whether a text, a number or a list may have this value.
    """

    error: Callable[[str], Exception]
    whole: str
    before: str
    lacking: Callable[[str], str]
    is_exact: bool = False
    accepts: Callable[[Any], bool] = _anything

    def __call__(self, kind: type[_T], value: Any, where: str = "") -> _T:
        """The value as a dataclass, with every type checked.

        Args:
            kind: The dataclass.
            value: The data.
            where: The place of the value. Empty: it is the whole.
        """
        if not isinstance(value, dict):
            raise self.error(f"{self.before}{where or self.whole} must be an object, found {_name(value)}.")
        hints = typing.get_type_hints(kind)
        unknown = [name for name in value if name not in hints]
        if self.is_exact and unknown:
            raise self.error(f"{where or self.whole} must have the fields {', '.join(hints)}; found {unknown[0]!r}.")
        arguments = {}
        for part in dataclasses.fields(kind):  # type: ignore[arg-type]
            name = f"{where}.{part.name}" if where else part.name
            if part.name in value:
                arguments[part.name] = self._value(hints[part.name], value[part.name], name)
            elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
                raise self.error(self.lacking(name))
        return kind(**arguments)

    def _value(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin is Literal:
            if value in arguments:
                return value
            raise self.error(f"{self.before}{where} is {value!r}, allowed are {', '.join(map(repr, arguments))}.")
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            members = [argument for argument in arguments if argument is not type(None)]
            for member in members[:-1]:
                if isinstance(member, type) and isinstance(value, member):
                    return value
            return self._value(members[-1], value, where)
        if dataclasses.is_dataclass(hint):
            return self(typing.cast(type[Any], hint), value, where)
        if not _has_type(hint, origin, value):
            raise self.error(f"{self.before}{where} must be {_describe(hint)}, found {_name(value)}.")
        if not self.accepts(value):
            raise self.error(f"{self.before}{where} may not be {value!r}.")
        if origin is tuple:
            return tuple(self._value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if origin is Mapping:
            return {key: self._value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
        return float(value) if hint is float else value


def _has_type(hint: Any, origin: Any, value: Any) -> bool:
    if origin in (tuple, Mapping):
        return isinstance(value, list if origin is tuple else dict)
    # A bool is an int in Python, and an int is a number like any other in JSON.
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _describe(hint: Any) -> str:
    return {tuple: "a list", Mapping: "an object"}.get(typing.get_origin(hint), getattr(hint, "__name__", str(hint)))


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
