"""Options of a device that users pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from stonnx._arguments import as_integer
from stonnx._errors import InvalidArgumentError


@dataclass(frozen=True)
class DeviceOptions:
    """How to use a device. Only ``bfloat16`` changes results.

    A model refuses options that do not have a meaning on the device that you name. With ``device=None``, options of a
    GPU apply if the model finds a GPU. The CPU ignores them.

    Attributes:
        memory_limit: Bytes that onnxruntime's arena may take of the GPU's memory. None: all of it.
        cuda_graphs: Record the work of each shape once and replay it: less time between small operations. Shapes are
            rounded up to powers of two, runs of one session wait for each other, and ``trim()`` frees none of the
            GPU's memory.
        build: TensorRT only: build a missing engine. That takes minutes.
        bfloat16: CPU only: run the blocks of a float32 bundle in bfloat16, with native kernels (docs/kernels.md).
            Faster, with cosines of about 0.9999 to float32. Refused if no kernel of this machine can do it.

    Raises:
        InvalidArgumentError: A value is of another type, or the limit is not positive.
    """

    memory_limit: int | None = None
    cuda_graphs: bool = False
    build: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.memory_limit is not None:
            limit = as_integer(self.memory_limit)
            if limit is None or limit <= 0:
                given = self.memory_limit
                raise InvalidArgumentError(f"memory_limit must be a positive number of bytes or None, got {given!r}.")
            object.__setattr__(self, "memory_limit", limit)
        for name in ("cuda_graphs", "build", "bfloat16"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidArgumentError(f"{name} must be True or False, got {value!r}.")

    def meant_for(self, device: str) -> DeviceOptions:
        """The options with a meaning on a device; the others have their defaults."""
        name = device.partition(":")[0]
        return DeviceOptions(**{key: value for key, value in asdict(self).items() if name in _DEVICES_OF_OPTION[key]})

    def check(self, device: str | None) -> None:
        """Refuse options without a meaning on the requested device.

        Raises:
            InvalidArgumentError: The message names the options, and the devices that have them.
        """
        if device is None:
            return
        used, given = self.meant_for(device), asdict(self)
        useless = [name for name, value in given.items() if value != getattr(used, name)]
        if useless:
            names = ", ".join(f"{name} (for {' and '.join(_DEVICES_OF_OPTION[name])})" for name in useless)
            raise InvalidArgumentError(
                f"device {device!r} does not have the device_options {names}. Leave them out, or use such a device."
            )


# The devices on which an option means something.
_DEVICES_OF_OPTION: Mapping[str, Sequence[str]] = {
    "memory_limit": ("cuda", "tensorrt"),
    "cuda_graphs": ("cuda", "tensorrt"),
    "build": ("tensorrt",),
    "bfloat16": ("cpu",),
}
