"""The facts that a loaded model gives about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a running model, for logs and bug reports."""

    directory: str
    source: str
    task: str
    architecture: str
    precision: str
    device: str
    threads: int
    onnxruntime: str
    # Which of two forms of an int8 graph runs, "full-range" or "saturation-safe"; empty if there is only one.
    form: str
    # The instructions that native kernels use, as "avx512_vnni"; empty if stock operators run everything.
    kernels: str
    # Devices and kernels that do not work here, and why: with device=None the devices that were tried first.
    fallbacks: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())
