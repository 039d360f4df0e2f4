"""The body of a request as the struct of its endpoint, or the reason in plain words why it is not one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import msgspec

from stonnx.serve.errors import Kind, RequestError
from stonnx.serve.near import refuse_near_misses

# The types of JSON in msgspec's messages.
_WORDS = {
    "str": "a text",
    "array": "a list",
    "object": "an object",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
# Reasons of msgspec that name its parser's view rather than the mistake.
_REASONS = {
    "object keys must be strings": "a name in double quotes was expected",
    "trailing characters": "something follows after its end",
    "invalid character": "this character cannot be there",
}
# Reads the names of the fields of a body, of up to so many bytes: a larger one could have millions of them, each of
# which takes more memory than it has bytes. Of a larger body, only the first unknown name is looked at.
_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOST_SCANNED = 1_000_000


class Decoder:
    """Decodes bodies for one endpoint.

    Args:
        kind: The struct to decode to, or msgspec.Raw.

    Example:
        >>> class Body(msgspec.Struct):
        ...     input: str | list[str]
        >>> Decoder(Body)(b'{"input": 3}')
        Traceback (most recent call last):
        stonnx.serve.errors.RequestError: input must be a text or a list, and it is a whole number.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._strict = msgspec.json.Decoder(_strict(kind))

    def __call__(self, data: bytes | msgspec.Raw) -> Any:
        """The struct.

        Raises:
            RequestError: The body is not JSON, a field is missing or wrong, or its name is nearly right.
        """
        try:
            return self._decode(data)
        except msgspec.ValidationError as error:
            raise _invalid(str(error), self._kind) from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise RequestError(Kind.MALFORMED, _malformed(bytes(data), error, self._kind)) from error

    def _decode(self, data: bytes | msgspec.Raw) -> Any:
        try:
            return self._strict.decode(data)
        except msgspec.ValidationError as error:
            found = re.fullmatch(r"Object contains unknown field `(.*)`", str(error), re.DOTALL)
            if found is None:
                raise
        names: Collection[str] = [found.group(1)]
        if len(bytes(data)) <= _MOST_SCANNED:
            names = _NAMES.decode(data)
        refuse_near_misses(names, [entry.encode_name for entry in _fields(self._kind)])
        return self._decoder.decode(data)


@cache
def _strict(kind: Any) -> Any:
    """The same type, without room for unknown fields: a body without such fields is decoded once only."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return kind
    return msgspec.defstruct(kind.__name__, (), bases=(kind,), forbid_unknown_fields=True)


def _invalid(message: str, kind: Any) -> RequestError:
    """The error for a field, from a message such as ``Expected `str`, got `int` - at `$.input[3]```."""
    reason, _, place = message.partition(" - at `$")
    path = place.removesuffix("`").removeprefix(".")
    subject = path or "The body"
    if found := re.fullmatch(r"Object missing required field `(.*)`", reason):
        name = f"{path}.{found.group(1)}".removeprefix(".")
        wanted = _description(kind, name)
        return RequestError(Kind.INVALID, f"The field {name} is missing{f': {wanted}' if wanted else ''}.", name)
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", reason):
        *most, last = (_WORDS.get(name, name) for name in found.group(1).split(" | "))
        wanted = f"{', '.join(most)} or {last}" if most else last
        got = _WORDS.get(found.group(2), found.group(2))
        return RequestError(Kind.INVALID, f"{subject} must be {wanted}, and it is {got}.", path or None)
    if found := re.fullmatch(r"Invalid (?:enum )?value (.*)", reason):
        allowed = ", ".join(str(value) for value in _literals(kind, path))
        return RequestError(
            Kind.INVALID, f"{subject} is {found.group(1)[:100]}, which is not known. Allowed: {allowed}.", path or None
        )
    return RequestError(Kind.INVALID, f"{subject}: {reason}.", path or None)


def _malformed(data: bytes, error: Exception, kind: Any) -> str:
    text = str(error)
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", text)
    if not data.strip():
        reason = "it is empty"
    elif found:
        reason = f"{_REASONS.get(found.group(1), found.group(1))}, at byte {found.group(2)}"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif "truncated" in text:
        reason = "it ends too early, within a text, a list or an object"
    else:
        reason = "it is not UTF-8"
    required = [entry.encode_name for entry in _fields(kind) if entry.required]
    wanted = f" with {' and '.join(required)}" if required else ""
    return f"The body is not valid JSON: {reason}. Send a JSON object{wanted}."


# What the types of the structs say.


def _fields(kind: Any) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(kind)
    return info.fields if isinstance(info, msgspec.inspect.StructType) else ()


def _alternatives(info: Any) -> Iterator[Any]:
    """The types that a type stands for, without wrappers."""
    if isinstance(info, msgspec.inspect.Metadata):
        yield from _alternatives(info.type)
    elif isinstance(info, msgspec.inspect.UnionType):
        for each in info.types:
            yield from _alternatives(each)
    else:
        yield info


def _at(kind: Any, path: str) -> list[Any]:
    """The types that a field may have, by its path such as ``inputs.sentences[3]``."""
    found = [msgspec.inspect.type_info(kind)]
    for name in re.findall(r"[^.\[\]]+", path):
        inner = []
        for each in (alternative for one in found for alternative in _alternatives(one)):
            if isinstance(each, msgspec.inspect.StructType):
                inner += [entry.type for entry in each.fields if entry.encode_name == name]
            elif isinstance(each, msgspec.inspect.ListType):
                inner.append(each.item_type)
        found = inner
    return found


def _literals(kind: Any, path: str) -> list[Any]:
    """The values that a field may have."""
    types = (alternative for one in _at(kind, path) for alternative in _alternatives(one))
    return [value for each in types if isinstance(each, msgspec.inspect.LiteralType) for value in each.values]


def _description(kind: Any, path: str) -> str:
    """What a field holds, as the documentation says."""
    for each in _at(kind, path):
        if isinstance(each, msgspec.inspect.Metadata) and each.extra_json_schema:
            return str(each.extra_json_schema.get("description", ""))
    return ""
