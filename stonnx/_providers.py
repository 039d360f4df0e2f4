"""Devices: which execution provider of onnxruntime each one means, with its options and how to install it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stonnx._errors import DeviceError, InvalidArgumentError


@dataclass(frozen=True)
class Provider:
    """A device name, the execution provider behind it, and the command that installs it."""

    device: str
    name: str
    install: str
    options: Mapping[str, Any] = field(default_factory=dict)
    # Whether `device:1` may name one of several devices.
    indexed: bool = False


PROVIDERS = (
    Provider("cpu", "CPUExecutionProvider", 'pip install "stonnx[cpu]"'),
    Provider("cuda", "CUDAExecutionProvider", 'pip install "stonnx[gpu]"', indexed=True),
)


def provider_for(device: str | None, available: list[str]) -> tuple[Provider, dict[str, Any]]:
    """The provider and its options for a device name.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` ..., or None for ``cpu``.
        available: What onnxruntime reports as available here.

    Raises:
        InvalidArgumentError: The name is not in the table.
        DeviceError: The installed onnxruntime does not have the provider.
    """
    name, colon, index = ("cpu" if device is None else str(device)).partition(":")
    provider = next((row for row in PROVIDERS if row.device == name), None)
    if provider is None or (colon and not (provider.indexed and index.isdecimal())):
        allowed = ", ".join(row.device + (f", {row.device}:0" if row.indexed else "") for row in PROVIDERS)
        raise InvalidArgumentError(f"device {device!r} is not known. Allowed: {allowed}.")
    if provider.name not in available:
        raise DeviceError(
            f"device {device!r} needs {provider.name}, which the installed onnxruntime does not have "
            f"(it has {', '.join(available)}). Install it with: {provider.install}"
        )
    options = dict(provider.options)
    if index:
        options["device_id"] = int(index)
    return provider, options
