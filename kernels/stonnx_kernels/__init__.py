"""Where the library of native kernels is. ``stonnx`` finds it by this module, and onnxruntime loads it."""

from pathlib import Path

__version__ = "0.1.0"
# Registered with onnxruntime by ``SessionOptions.register_custom_ops_library(str(LIBRARY))``.
LIBRARY = Path(__file__).parent / "libstonnx_kernels.so"
