"""An ONNX Runtime session that is ready: batches in, arrays out. ``opening.py`` opens one."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._device.gpu_run import DeviceRun
from stonnx._errors import RunError, StonnxError


@dataclass(frozen=True, eq=False)
class Session:
    """One graph, loaded for one device. ``run`` may be called from many threads at once.

    Attributes:
        device: The device that it runs on.
        threads: Threads of one run on the CPU.
        version: The version of onnxruntime.
        form: Which of two forms of an int8 graph runs, ``full-range`` or ``saturation-safe``; empty if there is one.
        kernels: The instructions that native kernels use (``avx512_vnni``); empty if none run.
        fallbacks: Devices and kernels that do not work here, and why: with ``device=None`` the devices that were tried
            before, and native kernels that cannot be used.
        inputs: The names of all inputs, those with a default included.
        outputs: The names of the outputs.
        required: The inputs that the graph needs, with their shapes.
        output_shapes: The shapes of its outputs, as far as the graph says.
        operators: The number of operators by provider and kind: {(provider, operator): count}. Empty on the CPU.
        engine_directory: The directory of the TensorRT engine; None on other devices.
        ort: onnxruntime.
        inference: onnxruntime's own session.
        device_run: Runs the graph with its inputs and outputs on a GPU. None on other devices.
        cuda_graphs: Whether CUDA records and replays runs.
        held: Objects that onnxruntime keeps pointers to.
    """

    device: str
    threads: int
    version: str
    form: str
    kernels: str
    fallbacks: tuple[str, ...]
    inputs: Set[str]
    outputs: Set[str]
    required: Mapping[str, tuple[int | str, ...]]
    output_shapes: Mapping[str, tuple[int | str, ...]]
    operators: Mapping[tuple[str, str], int]
    engine_directory: Path | None
    ort: Any = field(repr=False)
    inference: Any = field(repr=False)
    device_run: DeviceRun | None = field(repr=False)
    cuda_graphs: bool = field(repr=False)
    held: Sequence[Any] = field(repr=False)

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, npt.NDArray[Any] | None],
        control: RunControl | None = None,
        *,
        free_memory: bool = False,
    ) -> list[npt.NDArray[Any]]:
        """Run the graph.

        Args:
            outputs: Names of the outputs.
            feeds: The inputs. Those that are None, or that the graph does not have, are left out.
            control: The object that can stop the run.
            free_memory: Whether to give back unused memory at the end.

        Raises:
            RunError: The run failed. If it was stopped instead, onnxruntime's own error is raised.
        """
        known = {name: value for name, value in feeds.items() if value is not None and name in self.inputs}
        if free_memory:
            control = control or self.control()
        options = None if control is None else control.freeing if free_memory else control.keeping
        try:
            if self.device_run is not None:
                return self.device_run(outputs, known, options)
            results: list[npt.NDArray[Any]] = self.inference.run(list(outputs), known, options)
            return results
        except StonnxError:
            raise
        except Exception as error:  # onnxruntime's errors share no public base class
            if control is not None and control.stopped:
                raise
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in known.items())
            raise RunError(
                f"onnxruntime {self.version} failed to run {shapes} on device {self.device!r}: {error} If it ran out "
                "of memory, load the model with a lower max_batch_tokens, cut texts with max_seq_length, or call "
                "trim() to give back what earlier runs took."
            ) from error

    def control(self) -> RunControl:
        """An object that can stop runs of this graph while they are in progress."""
        return RunControl(self.ort.RunOptions(), self._freeing())

    def trim(self) -> None:
        """Give back the memory that earlier, larger runs needed. The next run of that size takes it again.

        With CUDA graphs, the GPU's memory stays, because the recordings contain its addresses.
        """
        self.run_smallest(self._freeing())
        give_back_memory()

    def run_smallest(self, options: Any = None) -> None:
        """Run a single token, or a single image, once."""
        feeds: dict[str, npt.NDArray[Any]] = {}
        for name, shape in self.required.items():
            kind = np.float32 if name == "pixel_values" else np.int64
            feeds[name] = np.ones([size if isinstance(size, int) else 1 for size in shape], dtype=kind)
        if self.device_run is not None and self.cuda_graphs:
            # Without this it would be recorded like any other run, with inputs that are gone when it is replayed.
            options = options or self.ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", "-1")
        self.inference.run(None, feeds, options)

    def _freeing(self) -> Any:
        """Options of a run that shrinks the arenas to the memory in use at its end."""
        options = self.ort.RunOptions()
        arenas = ["cpu:0"]
        if self.device_run is not None and not self.cuda_graphs:
            arenas.insert(0, f"gpu:{self.device_run.index}")
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
        return options


@dataclass(frozen=True)
class RunControl:
    """onnxruntime's options of runs: for those that keep memory for the next run, and for those that free it."""

    keeping: Any
    freeing: Any

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return bool(self.keeping.terminate)

    def stop(self) -> None:
        """Have the runs end with an error after their current operation."""
        self.keeping.terminate = self.freeing.terminate = True


def give_back_memory() -> None:
    """Have the C library return free memory to the system. After loading a graph, that is about half of its size."""
    # Only glibc has it. Windows does not accept a library without a name: that is the TypeError.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
