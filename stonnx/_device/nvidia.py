"""NVIDIA's driver and libraries: load the ones from pip, say which are missing, and name the GPU.

Without this, onnxruntime runs on the CPU, and only its log says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import re
import sys
from pathlib import Path
from typing import Any

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Beginnings of library names, and the way to get each library.
_REMEDIES = (
    (("libcuda.so", "nvcuda"), "It comes with the NVIDIA driver; a container needs `--gpus all` to see it."),
    (
        ("libnvinfer", "libnvonnxparser", "nvinfer", "nvonnxparser"),
        "It is part of TensorRT. Install that with: pip install tensorrt-cu{cuda}",
    ),
    (("",), 'It is part of CUDA or cuDNN. Install these with: pip install "onnxruntime-gpu[cuda,cudnn]"'),
)


def load_libraries(onnxruntime: Any) -> str | None:
    """Load the libraries that CUDA's provider links against, from pip's packages or from the system's paths.

    Returns:
        The missing library and its source, or None.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return _missing(_DRIVER, onnxruntime)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints the names of missing libraries there, and carries on
        onnxruntime.preload_dlls()
    name = re.search(r"Failed to load ([^\s:]+)", printed.getvalue())
    return _missing(Path(name.group(1)).name, onnxruntime) if name else None


def load_tensorrt(onnxruntime: Any) -> str | None:
    """Load TensorRT from its package, if that is installed. onnxruntime finds the system's own without help.

    Returns:
        The reason why the package's libraries do not load, with a remedy, or None.
    """
    package = importlib.util.find_spec("tensorrt_libs")
    for directory in package.submodule_search_locations or () if package else ():
        for pattern in ("libnvinfer.so.*", "libnvonnxparser.so.*"):
            for library in Path(directory).glob(pattern):
                try:
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
                except OSError as error:
                    return _why(error, onnxruntime) or (
                        f"{library} cannot be loaded: {error}. Install TensorRT again with: pip install "
                        f"--force-reinstall tensorrt-cu{_cuda(onnxruntime)}"
                    )
    return None


def why_not_loaded(onnxruntime: Any, provider: str) -> str | None:
    """The reason why onnxruntime did not load a provider, or None if that cannot be found out. Ask only after it tried.

    Before that, loading the provider's own library here would leave it without a host, and crash later.
    """
    name = provider.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    if not library.is_file():
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return _why(error, onnxruntime) or str(error)
    return None


def _why(error: OSError, onnxruntime: Any) -> str | None:
    """The missing library that kept another one from loading, or None if something else went wrong."""
    text = str(error)
    return _missing(text.partition(":")[0], onnxruntime) if "cannot open shared object file" in text else None


def _missing(library: str, onnxruntime: Any) -> str:
    text = next(text for beginnings, text in _REMEDIES if library.startswith(beginnings))
    return f"{library} is not here. {text.format(cuda=_cuda(onnxruntime))}"


def _cuda(onnxruntime: Any) -> str:
    """The CUDA version that onnxruntime is made for, as in the names of NVIDIA's packages."""
    return str(getattr(onnxruntime, "cuda_version", "") or "12").partition(".")[0]


def gpu_name(index: int) -> str:
    """Name and compute capability of one GPU."""
    names = gpu_names()
    return names[index] if index < len(names) else "unknown"


def gpu_names() -> list[str]:
    """Name and compute capability of every GPU, as ``NVIDIA H100 (9.0)``; empty without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for index in range(count.value):
        name, major, minor = ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetName(name, len(name), index)
        # The attributes of the compute capability, in cuda.h.
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
        names.append(f"{name.value.decode(errors='replace')} ({major.value}.{minor.value})")
    return names
