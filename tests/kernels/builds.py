"""Builds of the library that only tests need: with AMX emulated, with sanitizers, and for another architecture."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def can_build() -> bool:
    """Whether this machine has CMake and a C++ compiler."""
    return shutil.which("cmake") is not None and shutil.which(os.environ.get("CXX", "c++")) is not None


def build(directory: Path, *options: str) -> Path:
    """Build the library with options of CMake, as ``STONNX_SANITIZE=ON``; the package that has it."""
    _make(directory / "build", *options)
    package = directory / "site" / "stonnx_kernels"
    shutil.copytree(ROOT / "kernels" / "stonnx_kernels", package, dirs_exist_ok=True)
    shutil.copy(directory / "build" / "libstonnx_kernels.so", package)
    return package


def build_cases(directory: Path, *options: str) -> Path:
    """Build the program that runs one operator without onnxruntime."""
    _make(directory, "STONNX_CASES=ON", *options)
    return directory / "stonnx_kernels_case"


def _make(directory: Path, *options: str) -> None:
    flags = [f"-D{option}" for option in options]
    subprocess.run(["cmake", "-S", ROOT / "kernels", "-B", directory, *flags], check=True)
    subprocess.run(["cmake", "--build", directory, "--parallel", "2"], check=True)
