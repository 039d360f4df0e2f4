"""Runs on a GPU. Outputs stay in its memory until the run is done, and shapes can be limited and replayed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidArgumentError

Array: TypeAlias = npt.NDArray[Any]

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Shapes:
    """The largest batch and the longest sequence of one run. Longer batches are run in pieces."""

    batch: int
    sequence: int


@dataclass(frozen=True)
class _Recording:
    """The memory that a recorded run reads and writes: its addresses are part of the recording."""

    inputs: Mapping[str, Any]
    binding: Any
    options: Any


class DeviceRun:
    """Runs a session with its inputs and outputs bound to one GPU.

    Args:
        ort: onnxruntime.
        session: Its session. Dimensions of inputs and outputs are numbers, or named ``batch`` and ``sequence``.
        index: The number of the GPU.
        largest: The largest shapes of one run. None: any.
        graphs: Round shapes up to powers of two, and keep the memory of each, so that CUDA replays what it recorded.
        device: The name of such devices in onnxruntime.
    """

    def __init__(
        self, ort: Any, session: Any, index: int, largest: Shapes | None, *, graphs: bool, device: str = "cuda"
    ) -> None:
        self.index = index
        self._ort, self._session, self._largest, self._graphs, self._device = ort, session, largest, graphs, device
        nodes = (*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs())
        self._shapes: dict[str, Sequence[int | str]] = {node.name: node.shape for node in nodes}
        self._dtypes = {node.name: _DTYPES[node.type] for node in session.get_outputs() if node.type in _DTYPES}
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        # A recording has one place for its inputs, and CUDA replays one graph of a session at a time.
        self._lock = threading.Lock()

    def __call__(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Run the graph on feeds, in pieces if the batch is too large for one run.

        ``options`` are those of a run. A replayed run has its own.

        Raises:
            InvalidArgumentError: A text is longer than the device takes.
        """
        sizes = self._sizes(feeds)
        if self._largest is None:
            return self._run(outputs, feeds, sizes, options)
        if sizes["sequence"] > self._largest.sequence:
            raise InvalidArgumentError(
                f"A text has {sizes['sequence']} tokens, and the engine of this device takes {self._largest.sequence}. "
                "Leave max_seq_length at what the bundle has, or use device='cuda'."
            )
        pieces = []
        for start in range(0, sizes["batch"], self._largest.batch):
            part = slice(start, start + self._largest.batch)
            piece = {name: value[part] if self._is_batched(name) else value for name, value in feeds.items()}
            pieces.append(self._run(outputs, piece, self._sizes(piece), options))
        return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _run(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], sizes: Mapping[str, int], options: Any
    ) -> list[Array]:
        if self._graphs:
            return self._replay(outputs, feeds, sizes)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            # Not bind_cpu_input, which does not know inputs that have a default.
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(value))
        for name in outputs:
            binding.bind_output(name, self._device, self.index)
        self._session.run_with_iobinding(binding, options)
        arrays: list[Array] = binding.copy_outputs_to_cpu()
        return arrays

    def _replay(self, outputs: Sequence[str], feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> list[Array]:
        limits = {} if self._largest is None else {"batch": self._largest.batch, "sequence": self._largest.sequence}
        rounded = {name: min(_power_of_two(size), limits.get(name, 2**62)) for name, size in sizes.items()}
        padded = {name: self._padded(name, value, rounded) for name, value in feeds.items()}
        key = (tuple(outputs), tuple(sorted(feeds)), *rounded.values())
        with self._lock:
            recording = self._recordings.get(key)
            if recording is None:
                recording = self._recordings[key] = self._recording(outputs, padded, rounded)
            for name, value in padded.items():
                recording.inputs[name].update_inplace(value)
            self._session.run_with_iobinding(recording.binding, recording.options)
            arrays = recording.binding.copy_outputs_to_cpu()
        return [
            array[tuple(slice(sizes.get(str(axis))) for axis in self._shapes[name])]
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def _recording(self, outputs: Sequence[str], feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> _Recording:
        make, binding = self._ort.OrtValue, self._session.io_binding()
        inputs = {
            # Not from the array itself: on the CPU, that would share the caller's memory.
            name: make.ortvalue_from_shape_and_type(value.shape, value.dtype, self._device, self.index)
            for name, value in feeds.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            shape = [sizes.get(str(axis), axis) for axis in self._shapes[name]]
            value = make.ortvalue_from_shape_and_type(shape, self._dtypes[name], self._device, self.index)
            binding.bind_ortvalue_output(name, value)
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self._recordings) + 1))
        return _Recording(inputs, binding, options)

    def _padded(self, name: str, value: Array, sizes: Mapping[str, int]) -> Array:
        """Repeat the last text, which the network is certain to accept, and pad its tokens with 0."""
        for axis, symbol in enumerate(self._shapes[name]):
            more = sizes.get(str(symbol), value.shape[axis]) - value.shape[axis]
            if more:
                width = [(0, more if axis == position else 0) for position in range(value.ndim)]
                value = np.pad(value, width, mode="edge" if symbol == "batch" else "constant")
        return value

    def _sizes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of the named dimensions in these feeds."""
        return {
            axis: size
            for name, value in feeds.items()
            for axis, size in zip(self._shapes[name], value.shape, strict=True)
            if isinstance(axis, str)
        }

    def _is_batched(self, name: str) -> bool:
        return "batch" in self._shapes[name]


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
