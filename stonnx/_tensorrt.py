"""TensorRT engines: built ahead of serving, and kept for one graph on one kind of GPU with one set of versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stonnx import _nvidia
from stonnx._bundle import TensorSpec
from stonnx._device_run import Shapes
from stonnx._errors import DeviceError
from stonnx._hub import cache_directory

# An engine is built for shapes up to these, and tuned for the middle ones. The batches of a run are up to 1,024 tokens,
# so that most short texts fit; what does not is run in pieces.
_LARGEST_BATCH = 64
_USUAL = Shapes(16, 64)
# For models that cut nothing.
_LONGEST_SEQUENCE = 512
# Says that an engine was built to its end, and of what.
_MARK = "built.json"


@dataclass(frozen=True)
class Engine:
    """Where the engine of a graph is kept, and what it was built with."""

    directory: Path
    made_of: dict[str, str]

    @classmethod
    def of(cls, sha256: str, index: int, onnxruntime: str) -> Engine:
        """The engine of a graph, given by its hash, on one of the GPUs."""
        gpus = _nvidia.gpu_names()
        made_of = {
            "graph": sha256,
            "gpu": gpus[index] if index < len(gpus) else "unknown",
            "onnxruntime": onnxruntime,
            "tensorrt": _tensorrt_version(),
        }
        key = hashlib.sha256("\0".join(made_of.values()).encode()).hexdigest()[:16]
        return cls(cache_directory() / "tensorrt" / key, made_of)

    def require(self, *, allowed: bool) -> None:
        """See that the engine is there, or that building it is allowed.

        Raises:
            DeviceError: Neither.
        """
        built = (self.directory / _MARK).is_file() and any(self.directory.glob("*.engine"))
        if not built and not allowed:
            raise DeviceError(
                f"There is no TensorRT engine of this bundle for {self.made_of['gpu']} and onnxruntime "
                f"{self.made_of['onnxruntime']} in {self.directory}. Building it takes minutes, so that is not done "
                "while serving. Build it first: stonnx build BUNDLE --device tensorrt"
            )

    def remember(self) -> None:
        """Mark the engine as complete."""
        part = self.directory / f"{_MARK}.part"
        part.write_text(json.dumps(self.made_of, indent=2) + "\n", encoding="utf-8")
        part.replace(self.directory / _MARK)

    def options(self, inputs: Sequence[TensorSpec], max_seq_length: int | None, precision: str) -> dict[str, Any]:
        """The provider's options: where engines and timings are kept, and a range for every dynamic input."""
        self.directory.mkdir(parents=True, exist_ok=True)
        longest = largest(max_seq_length)
        usual = Shapes(_USUAL.batch, min(_USUAL.sequence, longest.sequence))
        return {
            "trt_engine_cache_enable": 1,
            "trt_engine_cache_path": str(self.directory),
            "trt_timing_cache_enable": 1,
            "trt_timing_cache_path": str(self.directory),
            "trt_fp16_enable": int(precision == "float16"),
            "trt_profile_min_shapes": _profile(inputs, Shapes(1, 1)),
            "trt_profile_opt_shapes": _profile(inputs, usual),
            "trt_profile_max_shapes": _profile(inputs, longest),
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
