"""JSON values to dataclasses, with errors that name the place."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from stonnx._errors import BundleFormatError

EXPORT_AGAIN = "Export the model again with: stonnx export MODEL -o DIRECTORY"

_T = TypeVar("_T")


def _decode(kind: type[_T], value: Any, path: Path, where: str) -> _T:
    """Turn JSON data into dataclasses, checking every type. Unknown keys are ignored: later versions add some."""
    if not isinstance(value, dict):
        raise BundleFormatError(f"{path}: {where or 'the manifest'} must be an object, found {_name(value)}.")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{part.name}" if where else part.name
        if part.name in value:
            arguments[part.name] = _decode_value(hints[part.name], value[part.name], path, name)
        elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            raise BundleFormatError(f"{path} lacks the field {name!r}. {EXPORT_AGAIN}")
    return kind(**arguments)


def _decode_value(hint: Any, value: Any, path: Path, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
        raise BundleFormatError(f"{path}: {where} is {value!r}, allowed are {', '.join(map(repr, arguments))}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [argument for argument in arguments if argument is not type(None)]
        for member in members[:-1]:
            if isinstance(member, type) and isinstance(value, member):
                return value
        return _decode_value(members[-1], value, path, where)
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type[Any], hint), value, path, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode_value(arguments[0], item, path, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode_value(arguments[1], item, path, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BundleFormatError(f"{path}: {where} must be {_describe(hint)}, found {_name(value)}.")


def _describe(hint: Any) -> str:
    return {tuple: "a list", Mapping: "an object"}.get(typing.get_origin(hint), getattr(hint, "__name__", str(hint)))


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
