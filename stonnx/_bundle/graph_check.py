"""A check of a graph's bytes before onnxruntime sees it, because a graph comes from outside.

The exporter writes plain graphs: operators one after the other, some of them in functions, with all constants as
initializers. The check refuses anything that could run for ever, or needs much more memory than the size of the file:

- control flow (``If``, ``Loop``, ``Scan``): a graph inside an operator;
- constants that claim more elements than the file holds, and sparse ones;
- operators that should make a tensor of a huge size;
- functions that call themselves, or call others so often that the graph explodes.

:mod:`stonnx._bundle.external_data` describes the encoding.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stonnx._bundle.external_data import BYTES, VARINT, fields, messages_of, varint

# The largest tensor that an operator may make of a size that the graph gives as numbers: 1 GB of float32.
_MOST_ELEMENTS = 1 << 28
# The most operators, with the body of a function counted for each call.
_MOST_NODES = 1_000_000
# The check follows tensors of whole numbers up to this many elements, because they give sizes.
_FOLLOWED = 64
_INT64 = 7

# The operators that make a tensor of a size that one of their inputs says, and the place of that input.
_SIZED_BY: Mapping[str, int] = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": -1, "Pad": 1, "OneHot": 1}

# The numbers of a tensor; None for an unknown one.
_Numbers = tuple[int | None, ...]


@dataclass
class _Node:
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constant: _Numbers | None = None


def check_graph_file(path: Path, outside: int) -> None:
    """Look at an ONNX file.

    Args:
        path: The file.
        outside: The size in bytes of the files that it may take weights from.

    Raises:
        ValueError: It is not an ONNX file, or has something that no bundle has. The message says what.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Checker(data, outside).check()


class _Checker:
    def __init__(self, data: mmap.mmap, outside: int) -> None:
        self._data, self._outside = data, outside

    def check(self) -> None:
        graphs, functions = [], {}
        for number, start, end in self._messages(0, len(self._data)):
            if number == 7:
                graphs.append((start, end))
            elif number == 25:
                called, body = self._function(start, end)
                functions[called] = body
        for start, end in graphs:
            nodes: list[_Node] = []
            constants: dict[str, _Numbers] = {}
            for number, first, last in self._messages(start, end):
                if number == 1:
                    nodes.append(self._node(first, last))
                elif number == 5:
                    name, numbers = self._tensor(first, last)
                    constants[name] = numbers
                elif number == 15:
                    raise ValueError("it has a sparse constant, which no bundle has")
            self._check_sizes(nodes, constants)
            self._check_calls(nodes, functions)
        for body in functions.values():
            self._check_sizes(body, {})

    def _messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        return messages_of(self._data, start, end)

    def _text(self, start: int, end: int) -> str:
        return bytes(self._data[start:end]).decode(errors="replace")

    def _function(self, start: int, end: int) -> tuple[tuple[str, str], list[_Node]]:
        name, domain, nodes = "", "", []
        for number, first, last in self._messages(start, end):
            if number == 1:
                name = self._text(first, last)
            elif number == 10:
                domain = self._text(first, last)
            elif number == 7:
                nodes.append(self._node(first, last))
            elif number == 11:
                self._attribute(first, last)
        return (domain, name), nodes

    def _node(self, start: int, end: int) -> _Node:
        node = _Node()
        for number, first, last in self._messages(start, end):
            if number == 1:
                node.inputs.append(self._text(first, last))
            elif number == 2:
                node.outputs.append(self._text(first, last))
            elif number == 4:
                node.operator = self._text(first, last)
            elif number == 7:
                node.domain = self._text(first, last)
            elif number == 5:
                node.constant = self._attribute(first, last) or node.constant
        return node

    def _attribute(self, start: int, end: int) -> _Numbers | None:
        """The numbers of an attribute that is a tensor."""
        numbers: _Numbers | None = None
        for number, first, last in self._messages(start, end):
            if number in (6, 11):
                raise ValueError("it has control flow (If, Loop or Scan), which no bundle has")
            if number in (22, 23):
                raise ValueError("it has a sparse constant, which no bundle has")
            if number in (5, 10):
                _, numbers = self._tensor(first, last)
        return numbers

    def _tensor(self, start: int, end: int) -> tuple[str, _Numbers]:
        """The name of a tensor and, if it is a small one of int64, its numbers."""
        name, kind, outside = "", 0, False
        dims: list[int] = []
        values: list[int] = []
        for number, form, first, last in fields(self._data, start, end):
            if number == 1:
                dims += [first] if form == VARINT else self._packed(first, last, _FOLLOWED)
            elif number == 2 and form == VARINT:
                kind = first
            elif number == 8 and form == BYTES:
                name = self._text(first, last)
            elif number == 13:
                outside = True
            elif number == 7:
                values += [first] if form == VARINT else self._packed(first, last, _FOLLOWED)
            elif number == 9 and form == BYTES and kind == _INT64 and last - first <= 8 * _FOLLOWED:
                raw = self._data[first:last]
                values += [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw) - 7, 8)]
        elements = math.prod(dims)
        # No element takes less than four bits.
        if elements > 2 * (end - start + (self._outside if outside else 0)):
            raise ValueError(f"its constant {name!r} claims to have {elements:,} elements, and the file has fewer")
        known = kind == _INT64 and elements == len(values) <= _FOLLOWED
        return name, tuple(_signed(value) for value in values) if known else (None,)

    def _packed(self, position: int, end: int, most: int) -> list[int]:
        numbers: list[int] = []
        while position < end and len(numbers) <= most:
            number, position = varint(self._data, position, end)
            numbers.append(number)
        return numbers

    @staticmethod
    def _check_sizes(nodes: Sequence[_Node], constants: Mapping[str, _Numbers]) -> None:
        known = dict(constants)
        for node in nodes:
            values = [known.get(name, (None,)) for name in node.inputs]
            place = _SIZED_BY.get(node.operator)
            if place is not None and 0 <= place < len(values):
                size = math.prod(abs(value) for value in values[place] if value)
                if size > _MOST_ELEMENTS:
                    raise ValueError(f"an operator {node.operator} is to make a tensor of {size:,} elements")
            if node.operator == "Range" and len(values) == 3:
                _check_range(values)
            numbers = node.constant if node.operator == "Constant" else _computed(node.operator, values)
            if numbers is not None and len(numbers) <= _FOLLOWED:
                known |= dict.fromkeys(node.outputs, numbers)

    @staticmethod
    def _check_calls(nodes: Sequence[_Node], functions: Mapping[tuple[str, str], Sequence[_Node]]) -> None:
        """Count the operators, with the body of a function for each of its calls."""
        calls = {
            name: [call for node in body if (call := (node.domain, node.operator)) in functions]
            for name, body in functions.items()
        }
        sizes: dict[tuple[str, str], int] = {}
        # Starts with functions that do not call others. Functions that remain at the end are in a circle or call one.
        while ready := [name for name, called in calls.items() if name not in sizes and sizes.keys() >= {*called}]:
            for name in ready:
                sizes[name] = len(functions[name]) + sum(sizes[call] for call in calls[name])
        if len(sizes) < len(functions):
            raise ValueError("its functions call each other in a circle")
        total = sum(1 + sizes.get((node.domain, node.operator), 0) for node in nodes)
        if total > _MOST_NODES:
            raise ValueError(f"it has {total:,} operators, up to {_MOST_NODES:,} are allowed")


def _check_range(values: Sequence[_Numbers]) -> None:
    (start, *_), (limit, *_), (delta, *_) = values
    if start is not None and limit is not None and delta and abs((limit - start) // delta) > _MOST_ELEMENTS:
        raise ValueError(f"an operator Range is to make a tensor of {abs((limit - start) // delta):,} elements")


def _computed(operator: str, values: Sequence[_Numbers]) -> _Numbers | None:
    """The numbers that an operator makes of others, for the operators that compose sizes."""
    if operator in ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape") and values:
        return values[0]
    if operator == "Concat":
        return tuple(number for part in values for number in part)
    work: Callable[[int, int], int] | None = _ARITHMETIC.get(operator)
    if work is None or len(values) != 2:
        return None
    first, second = values
    if len(first) == 1 or len(second) == 1:
        width = max(len(first), len(second))
        first, second = first * (width // max(1, len(first))), second * (width // max(1, len(second)))
    if len(first) != len(second):
        return None
    return tuple(
        None if one is None or other is None else work(one, other) for one, other in zip(first, second, strict=True)
    )


_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "Add": lambda one, other: one + other,
    "Sub": lambda one, other: one - other,
    "Mul": lambda one, other: one * other,
    "Max": max,
    "Min": min,
}


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
