"""What a loaded model says about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelInfo:
    """What is running: for logs and bug reports."""

    directory: str
    source: str
    task: str
    architecture: str
    precision: str
    device: str
    threads: int
    onnxruntime: str
    # Which of two forms of an int8 graph runs, "full-range" or "saturation-safe"; empty where there is one.
    form: str
    # The instructions that native kernels use, as "avx512_vnni"; empty if stock operators run everything.
    kernels: str
    # What does not work here and why: with device=None the devices that were tried first, and native kernels.
    fallbacks: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())
