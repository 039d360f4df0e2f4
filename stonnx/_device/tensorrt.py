"""TensorRT engines: built before serving, and kept for one graph on one kind of GPU with one set of versions.

onnxruntime silently builds an engine again if the ranges of its inputs differ from those that it was built with. So
the name of its directory contains everything that an engine depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import TensorSpec
from stonnx._cache import cache_directory
from stonnx._device import nvidia
from stonnx._device.gpu_run import Shapes
from stonnx._device.provider import Device
from stonnx._disk import create
from stonnx._errors import DeviceError

# An engine is built for shapes up to these, and tuned for the middle ones. The batches of a run are up to 1,024 tokens,
# so that most short texts fit. Larger ones run in pieces.
_LARGEST_BATCH = 64
_USUAL = Shapes(16, 64)
# The longest text for models that do not cut texts.
_LONGEST_SEQUENCE = 512
# The file that says that an engine is complete, and from what it was built.
_MARK = "built.json"
# The provider's names for the largest shapes, and for the memory that it may use while it builds and runs.
_LARGEST = "trt_profile_max_shapes"
_WORKSPACE = "trt_max_workspace_size"


@dataclass(frozen=True)
class TensorrtEngine:
    """The place of a graph's engine, and the settings that build it."""

    directory: Path
    # Everything that it depends on: the graph, the GPU, the versions and the settings.
    made_of: dict[str, str]
    settings: dict[str, Any]
    # The command that builds it.
    command: str

    @classmethod
    def of(cls, sha256: str, device: Device, onnxruntime: str, settings: Mapping[str, Any]) -> TensorrtEngine:
        """The engine of a graph, given by its hash, with some :func:`settings` on one of the GPUs."""
        made_of = {
            "graph": sha256,
            "gpu": nvidia.gpu_name(device.index or 0),
            "onnxruntime": onnxruntime,
            "tensorrt": _tensorrt_version(),
            **{name: str(value) for name, value in settings.items()},
        }
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        limit = settings.get(_WORKSPACE)
        command = f"stonnx build BUNDLE --device {device}" + (f" --memory-limit {limit}" if limit is not None else "")
        return cls(cache_directory() / "tensorrt" / key, made_of, dict(settings), command)

    def require(self, *, allowed: bool) -> None:
        """Check that the engine exists, or that building it is allowed and possible.

        Raises:
            DeviceError: The engine does not exist and cannot be built.
        """
        if (self.directory / _MARK).is_file() and any(self.directory.glob("*.engine")):
            return
        if not allowed:
            raise DeviceError(
                f"There is no TensorRT engine of this bundle for {self.made_of['gpu']}, onnxruntime "
                f"{self.made_of['onnxruntime']} and inputs up to {self.made_of[_LARGEST]} in {self.directory}. "
                f"Building it takes minutes, so stonnx does not do that while it serves. Build it first: {self.command}"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def remember(self) -> None:
        """Mark the engine as complete. A marked engine stays as it is, so serving does not need to write.

        Raises:
            DeviceError: The mark cannot be written.
        """
        mark = self.directory / _MARK
        if mark.is_file():
            return
        part = mark.with_name(f"{_MARK}.part")
        try:
            part.unlink(missing_ok=True)
            with open(create(part), "w", encoding="utf-8") as file:
                file.write(json.dumps(self.made_of, indent=2) + "\n")
            part.replace(mark)
        except OSError as error:
            raise self._unwritable(error) from error

    def options(self) -> dict[str, Any]:
        """The provider's options: the settings, and the places of engines and timings."""
        return self.settings | {
            "trt_engine_cache_enable": 1,
            "trt_engine_cache_path": str(self.directory),
            "trt_timing_cache_enable": 1,
            "trt_timing_cache_path": str(self.directory),
        }

    def _unwritable(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"A TensorRT engine cannot be kept in {self.directory}: {error.strerror or error}. Make it writable, or "
            "set STONNX_HOME to a directory that is, for building and for serving alike."
        )


def settings(
    inputs: Sequence[TensorSpec], max_seq_length: int | None, precision: str, memory_limit: int | None
) -> dict[str, Any]:
    """The provider's options for building an engine: a range for every dynamic input, precision and memory."""
    longest = largest(max_seq_length)
    usual = Shapes(_USUAL.batch, min(_USUAL.sequence, longest.sequence))
    return {
        "trt_fp16_enable": int(precision == "float16"),
        "trt_profile_min_shapes": _profile(inputs, Shapes(1, 1)),
        "trt_profile_opt_shapes": _profile(inputs, usual),
        _LARGEST: _profile(inputs, longest),
        **({} if memory_limit is None else {_WORKSPACE: memory_limit}),
    }


def largest(max_seq_length: int | None) -> Shapes:
    """The largest shapes that an engine is built for."""
    return Shapes(_LARGEST_BATCH, max_seq_length or _LONGEST_SEQUENCE)


def _profile(inputs: Sequence[TensorSpec], shapes: Shapes) -> str:
    """``input_ids:16x64,attention_mask:16x64``: a shape for each input that has a named dimension."""
    sizes = {"batch": shapes.batch, "sequence": shapes.sequence}
    return ",".join(
        f"{spec.name}:{'x'.join(str(sizes.get(str(axis), axis)) for axis in spec.shape)}"
        for spec in inputs
        if any(isinstance(axis, str) for axis in spec.shape)
    )


def _tensorrt_version() -> str:
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "of the system"
