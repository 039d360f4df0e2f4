"""The weights of blocks that native kernels run, in memory that is given back when they are packed.

Kernels pack these weights when the session is made, and never read them again, but onnxruntime keeps its copy for as
long as the session lives. So onnxruntime gets memory of ours instead, and when the session is made, the file takes the
place of that memory. Only weights that nothing but kernels reads are treated like this. If something should read them
all the same, the system brings them back from the file. They are read, and not mapped, before: if somebody cut the file
off while they are packed, a page that is not there any more would end the process.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
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
_MAP_FIXED = 0x10  # Linux on all architectures that have kernels; Python's mmap has no name for it


class _Tensor(NamedTuple):
    name: str
    kind: int
    dims: tuple[int, ...]
    start: int
    end: int


class BlockWeights:
    """The weights of a graph that only kernels read.

    Args:
        ort: onnxruntime.
        graph: The ONNX file.
        kinds: The ends of the names of operators that kernels run: ``Int8``, ``BFloat16``, ``Float``.

    Raises:
        OSError: The file cannot be read, or was cut off meanwhile.
    """

    def __init__(self, ort: Any, graph: Path, kinds: Collection[str]) -> None:
        self._file = graph.open("rb")
        size = self._file.seek(0, 2)
        self._file.seek(0)
        self._memory = mmap.mmap(-1, size)
        if self._file.readinto(self._memory) != size:
            self._file.close()
            raise OSError(f"{graph.name} was cut off while it was read")
        self.values = {
            each.name: _value(ort, np.frombuffer(self._memory, np.uint8, each.end - each.start, each.start), each)
            for each in _weights(self._memory, kinds)
        }

    def use(self, settings: Any) -> None:
        """Have a session that is made with these settings read these weights. They must live as long as it."""
        for name, value in self.values.items():
            settings.add_initializer(name, value)

    def give_back(self) -> None:
        """Put the file in the place of the memory, which goes back to the system."""
        if sys.platform == "linux":
            _map_over(self._memory, self._file.fileno())

    def close(self) -> None:
        """Close the file. Nothing can be given back after that."""
        self._file.close()


def _map_over(memory: mmap.mmap, descriptor: int) -> None:
    """Map a file at the address of memory of the same size. Without success the memory stays as it is."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.mmap(address, len(memory), mmap.PROT_READ, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor, 0)


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
