"""Builds of the library that only tests need: with AMX emulated, and with sanitizers."""

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
    flags = [f"-D{option}" for option in options]
    subprocess.run(["cmake", "-S", ROOT / "kernels", "-B", directory / "build", *flags], check=True)
    subprocess.run(["cmake", "--build", directory / "build", "--parallel", "2"], check=True)
    package = directory / "site" / "stonnx_kernels"
    shutil.copytree(ROOT / "kernels" / "stonnx_kernels", package, dirs_exist_ok=True)
    shutil.copy(directory / "build" / "libstonnx_kernels.so", package)
    return package
