"""The other files that an ONNX file names, read from its bytes: the runtime does not have the ``onnx`` package.

A graph may keep weights in files beside it. Those are part of the bundle, so their hashes must be in the manifest. Any
other place, ``../secret`` or an address in memory, is an attempt to read data that does not belong to the graph.

An ONNX file is a message in the encoding of Protocol Buffers (https://protobuf.dev/programming-guides/encoding): fields
one after the other, each a number with a type and then a value, which may be a message again.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

# The numbers of the fields in onnx.proto that lead to weights, by the message that has them. The `external_data` of a
# tensor is a list of keys and values.
_PATHS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
# The ways in which the encoding writes the value of a field.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The places that a graph names for its weights outside the file.

    Raises:
        ValueError: It is not an ONNX file.
    """
    if not path.stat().st_size:  # an empty file cannot be mapped
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _external_files(data)


def _external_files(data: mmap.mmap) -> set[str]:
    places = set()
    # Not recursive: a hostile graph may be nested deeper than Python's stack.
    messages = [("model", 0, len(data))]
    while messages:
        kind, start, end = messages.pop()
        if kind == "entry":
            fields = [(field, bytes(data[first:last])) for field, first, last in messages_of(data, start, end)]
            # A field that occurs twice has its last value, and a key may come after it. So this looks at all values.
            if any(field == _KEY and value == b"location" for field, value in fields):
                places |= {value.decode(errors="replace") for field, value in fields if field == _VALUE}
            continue
        parts = _PATHS[kind]
        inner = messages_of(data, start, end)
        messages += [(parts[field], first, last) for field, first, last in inner if field in parts]
    return places


def fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, type, and either the value twice, or the positions of its begin and end."""
    while position < end:
        tag, position = varint(data, position, end)
        kind = tag & 7
        if kind == VARINT:
            value, position = varint(data, position, end)
            yield tag >> 3, kind, value, value
            continue
        if kind == BYTES:
            length, position = varint(data, position, end)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"type {kind} of a field at byte {position} is not used in ONNX files")
        if position + length > end:
            raise ValueError(f"it ends in the middle of a field, at byte {position}")
        yield tag >> 3, kind, position, position + length
        position += length


def messages_of(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields that are bytes, texts or messages themselves: the number and the place of the value."""
    return ((number, first, last) for number, kind, first, last in fields(data, position, end) if kind == BYTES)


def varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits in each, and the position of its end."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            # As in protobuf, bits beyond 64 are cut off.
            return number & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError(f"it ends in the middle of a number, at byte {position}")
