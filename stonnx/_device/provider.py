"""The type of a row in the table of providers, and the facts about a model that a row gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stonnx._bundle.manifest import TensorSpec
from stonnx._device.device_options import DeviceOptions

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Setup:
    """The facts about a model that a row needs to configure its provider.

    Attributes:
        device: The device.
        is_first: Whether its provider runs the graph; otherwise it runs operators that the first one does not have.
        options: How to use a GPU.
        threads: Threads of one run on the CPU.
        onnxruntime: The version of onnxruntime.
        sha256: The hash of the graph.
        precision: The precision of the bundle.
        inputs: The inputs of the graph.
        max_seq_length: Tokens of the longest text. None: no such limit.
    """

    device: Device
    is_first: bool
    options: DeviceOptions
    threads: int
    onnxruntime: str
    sha256: str = ""
    precision: str = ""
    inputs: Sequence[TensorSpec] = ()
    max_seq_length: int | None = None


class BuiltEngine(Protocol):
    """The engine that a provider builds of a graph before serving, and keeps."""

    @property
    def directory(self) -> Path:
        """The directory that keeps it."""
        ...

    def remember(self) -> None:
        """Mark it as complete, after the graph has run."""
        ...


@dataclass(frozen=True)
class Configured:
    """A provider's options for one model, and the engine that it builds, if it builds one."""

    options: Mapping[str, Any] = field(default_factory=dict)
    engine: BuiltEngine | None = None


@dataclass(frozen=True)
class Provider:
    """A device name and its execution provider: one row of the table."""

    device: str
    name: str
    # The command that installs an onnxruntime wheel with it.
    install: str
    # The name of that wheel.
    wheel: str
    options: Mapping[str, Any] = field(default_factory=dict)
    # Providers for the operators that it does not have. The CPU is always the last.
    then: tuple[str, ...] = ()
    # Whether `device:1` may name one of several devices.
    indexed: bool = False
    # Whether device=None tries it if the installed onnxruntime has it.
    automatic: bool = False
    # Whether onnxruntime's own fused kernels are faster on it. On the CPU they are slower.
    fused: bool = False
    # Whether it needs NVIDIA's driver and libraries.
    nvidia: bool = False
    # The oldest onnxruntime whose kernels are right. In older ones, attention with lengths was wrong.
    oldest: tuple[int, int] = (1, 26)
    # Precisions of bundles that it does not have kernels for, and the recipe to export instead.
    instead: Mapping[str, str] = field(default_factory=dict)
    # Loads the libraries that it needs, given onnxruntime. Returns the missing one, or None.
    load_libraries: Callable[[Any], str | None] = lambda onnxruntime: None
    # Its options for one model, on top of `options`.
    configure: Callable[[Setup], Configured] = lambda setup: Configured()


@dataclass(frozen=True)
class Device:
    """A row of the table and, if there are several devices, the number of the device."""

    provider: Provider
    index: int | None = None

    def __str__(self) -> str:
        return self.provider.device if self.index is None else f"{self.provider.device}:{self.index}"

    @property
    def options(self) -> dict[str, Any]:
        """The provider's options for this device. The caller may change them."""
        return dict(self.provider.options) | ({} if self.index is None else {"device_id": self.index})
