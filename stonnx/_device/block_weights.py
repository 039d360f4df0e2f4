"""The weights of blocks that native kernels run, mapped from the graph's file instead of copied.

Kernels pack these weights when the session is made, and never read them again, but onnxruntime keeps its copy for as
long as the session lives. So onnxruntime gets the pages of the file instead, and the system gets their memory back
when the session is made. Only weights that nothing but kernels reads are mapped: a file that somebody cuts off later
cannot harm a run. If something should read them all the same, the system brings the pages back from the file.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stonnx._bundle.external_data import BYTES, VARINT, fields, messages_of, varint

_DOMAIN = b"stonnx.kernels"
_OPERATOR = re.compile(r"[A-Za-z]+?(Int8|BFloat16|Float)(_\d+)?")
# The types of weights in onnx.proto; numpy has no bfloat16, and onnxruntime takes its bits.
_TYPES: Mapping[int, type[np.generic]] = {1: np.float32, 3: np.int8, 16: np.uint16}
# Smaller ones are not worth an object each.
_SMALLEST = 1 << 16


class _Tensor(NamedTuple):
    name: str
    kind: int
    dims: tuple[int, ...]
    start: int
    end: int


class BlockWeights:
    """The mapped weights of a graph.

    Args:
        ort: onnxruntime.
        graph: The ONNX file.
        kinds: The ends of the names of operators that kernels run: ``Int8``, ``BFloat16``, ``Float``.
    """

    def __init__(self, ort: Any, graph: Path, kinds: Collection[str]) -> None:
        with graph.open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.values = {
            each.name: _value(ort, np.frombuffer(self._file, np.uint8, each.end - each.start, each.start), each)
            for each in _weights(self._file, kinds)
        }

    def use(self, settings: Any) -> None:
        """Have a session that is made with these settings read the mapped weights. They must live as long as it."""
        for name, value in self.values.items():
            settings.add_initializer(name, value)

    def give_back(self) -> None:
        """Give the memory of the pages back to the system."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)


def _value(ort: Any, data: np.ndarray[Any, np.dtype[np.uint8]], tensor: _Tensor) -> Any:
    array = data.view(_TYPES[tensor.kind]).reshape(tensor.dims)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.kind)


def _weights(data: mmap.mmap, kinds: Collection[str]) -> list[_Tensor]:
    """The large matrices in a graph that only blocks with kernels read."""
    tensors: list[_Tensor] = []
    blocks: set[bytes] = set()
    others: set[bytes] = set()
    for number, start, end in messages_of(data, 0, len(data)):
        for part, first, last in messages_of(data, start, end) if number == 7 else ():
            if part == 1:
                inputs, has_kernel = _node(data, first, last, kinds)
                (blocks if has_kernel else others).update(inputs)
            elif part == 5:
                tensors += _tensor(data, first, last)
            elif part in (11, 12):  # inputs of the graph, whose defaults callers may replace, and outputs
                others.update(data[a:b] for field, a, b in messages_of(data, first, last) if field == 1)
    return [tensor for tensor in tensors if tensor.name.encode() in blocks - others]


def _node(data: mmap.mmap, start: int, end: int, kinds: Collection[str]) -> tuple[list[bytes], bool]:
    """The inputs of an operator, and whether a kernel runs it."""
    inputs, operator, domain = [], "", b""
    for number, first, last in messages_of(data, start, end):
        if number == 1:
            inputs.append(data[first:last])
        elif number == 4:
            operator = data[first:last].decode(errors="replace")
        elif number == 7:
            domain = data[first:last]
    found = _OPERATOR.fullmatch(operator)
    return inputs, domain == _DOMAIN and found is not None and found[1] in kinds


def _tensor(data: mmap.mmap, start: int, end: int) -> Iterator[_Tensor]:
    """A constant, if it is a large matrix whose bytes are in the file."""
    if end - start < _SMALLEST:
        return
    name, kind, raw = "", 0, (0, 0)
    dims: list[int] = []
    for number, form, first, last in fields(data, start, end):
        if number == 1 and form == VARINT:
            dims.append(first)
        elif number == 1:
            while first < last:
                size, first = varint(data, first, last)
                dims.append(size)
        elif number == 2 and form == VARINT:
            kind = first
        elif number == 8 and form == BYTES:
            name = data[first:last].decode(errors="replace")
        elif number == 9 and form == BYTES:
            raw = (first, last)
    if kind in _TYPES and len(dims) == 2 and dims[0] * dims[1] * np.dtype(_TYPES[kind]).itemsize == raw[1] - raw[0]:
        yield _Tensor(name, kind, (dims[0], dims[1]), *raw)
