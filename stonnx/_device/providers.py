"""Devices: which execution provider of onnxruntime each one means, what it needs, and which bundles it does not run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stonnx._errors import DeviceError, InvalidArgumentError, UnsupportedError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """A device name and the execution provider behind it: one row of the table."""

    device: str
    name: str
    # The command that installs an onnxruntime wheel with it.
    install: str
    # That wheel.
    wheel: str
    options: Mapping[str, Any] = field(default_factory=dict)
    # Providers for the operators that it does not have. The CPU is always the last.
    then: tuple[str, ...] = ()
    # Whether `device:1` may name one of several devices.
    indexed: bool = False
    # Whether device=None tries it, wherever the installed onnxruntime has it.
    automatic: bool = False
    # Whether onnxruntime's own fused kernels are faster on it. On the CPU they are slower.
    fused: bool = False
    # Whether it needs NVIDIA's driver and libraries.
    nvidia: bool = False
    # The oldest onnxruntime whose kernels are right. Before it, attention with lengths was not.
    oldest: tuple[int, int] = (1, 26)
    # Precisions of bundles that it has no kernels for, and the recipe to export instead.
    instead: Mapping[str, str] = field(default_factory=dict)


PROVIDERS = (
    Provider("cpu", CPU, 'pip install "stonnx[cpu]"', "onnxruntime", automatic=True),
    Provider(
        "cuda",
        CUDA,
        'pip install "stonnx[gpu]"',
        "onnxruntime-gpu",
        # Growing by what is asked for keeps to a memory limit; by powers of two, an arena takes up to twice of it.
        # TensorFloat-32 keeps 10 bits of a product's factors: an fp32 bundle promises all 23.
        {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0},
        indexed=True,
        automatic=True,
        fused=True,
        nvidia=True,
        instead={"int8": "fp16"},
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        'pip install "stonnx[gpu]"',
        "onnxruntime-gpu",
        then=(CUDA,),
        indexed=True,
        nvidia=True,
        instead={"int8": "fp16"},
    ),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-openvino",
        "onnxruntime-openvino",
        {"device_type": "CPU"},
        # Its kernels are its own. The wheels before this one do not say which operators they take.
        oldest=(1, 24),
        instead={"int8": "fp16"},
    ),
)


@dataclass(frozen=True)
class Device:
    """A row of the table and, where there are several devices, which of them."""

    provider: Provider
    index: int | None = None

    def __str__(self) -> str:
        return self.provider.device if self.index is None else f"{self.provider.device}:{self.index}"

    @property
    def options(self) -> dict[str, Any]:
        """The provider's options for this device, the caller's to change."""
        return dict(self.provider.options) | ({} if self.index is None else {"device_id": self.index})


def devices_for(device: str | None, available: Sequence[str]) -> list[Device]:
    """What a device name means: one device, or for None those to try, the best first and the CPU last.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` ..., ``tensorrt``, ``openvino``, or None.
        available: The providers of the installed onnxruntime.

    Raises:
        InvalidArgumentError: The name is not in the table.
        DeviceError: The installed onnxruntime does not have the provider.
    """
    if device is None:
        rows = [row for row in PROVIDERS if row.automatic and row.name in available]
        return [Device(row) for row in sorted(rows, key=lambda row: row.name == CPU)]
    name, colon, index = device.partition(":")
    provider = next((row for row in PROVIDERS if row.device == name), None)
    if provider is None or (colon and not (provider.indexed and index.isdecimal())):
        allowed = ", ".join(row.device + (f", {row.device}:0" if row.indexed else "") for row in PROVIDERS)
        raise InvalidArgumentError(f"device {device!r} is not known. Allowed: {allowed}.")
    if provider.name not in available:
        raise DeviceError(
            f"device {device!r} needs {provider.name}, which the installed onnxruntime does not have "
            f"(it has {', '.join(available)}). Install it with: {provider.install}"
        )
    return [Device(provider, int(index) if index else None)]


def check_version(device: Device, onnxruntime: str, wheels: Sequence[str]) -> None:
    """Refuse an onnxruntime that is too old for a device, as the wheel for another device may be.

    Raises:
        DeviceError: The message has the command that installs a newer one.
    """
    oldest, wheel = device.provider.oldest, device.provider.wheel
    if tuple(int(part) for part in re.findall(r"\d+", onnxruntime)[:2]) < oldest:
        others = f"pip uninstall -y {' '.join(wheels)} && {device.provider.install}"
        raise DeviceError(
            f"device {str(device)!r} needs onnxruntime {'.'.join(map(str, oldest))} or newer, and this is "
            f"{onnxruntime}. Install it with: {f'pip install -U {wheel}' if wheel in wheels else others}"
        )


def check_precision(device: Device, precision: str) -> None:
    """Refuse a bundle that the device has no kernels for: they would run on the CPU, and every product be copied there.

    Raises:
        UnsupportedError: The message names the recipe to export instead.
    """
    recipe = device.provider.instead.get(precision)
    if recipe is not None:
        raise UnsupportedError(
            f"device {str(device)!r} has no kernels for {precision} bundles, which are made for the CPU. Load it with "
            f"device='cpu', or export another: stonnx export MODEL --dtype {recipe}"
        )
