"""The speed at which onnxruntime multiplies bytes on this CPU, and whether it uses AMX for that.

onnxruntime 1.32.0 asks the kernel for AMX, gets it, and multiplies with AVX512-VNNI all the same, at half of the speed
of 1.26 to 1.31.1. For other versions, the version and the CPU's flags do not tell. Two products do, one of bytes and
one of float32. A VNNI instruction multiplies four bytes while one for float32 multiplies one number, so its rate is at
most about 4 times that of float32 (3.0 to 3.5 on Zen 5). AMX reaches 7 to 9 times.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._device.cpus import cpu_features

# products[rows, 1536] = MatMulIntegerToFloat(rows[rows, 384] uint8, int8[384, 1536] of 3, scales[rows, 1], 1), and the
# same product in float32 with MatMul. tests/device/test_int8_speed.py builds the same graphs.
INTEGER_GRAPH = base64.b64decode(
    "CAo6mgIKNgoFc2hhcGUSB3dlaWdodHMiD0NvbnN0YW50T2ZTaGFwZSoTCgV2YWx1ZSoHCAEQA0oBA6ABBApNCgRyb3dzCgd3ZWlnaHRzCgZzY2"
    "FsZXMKBXNjYWxlEghwcm9kdWN0cyIUTWF0TXVsSW50ZWdlclRvRmxvYXQ6DWNvbS5taWNyb3NvZnQSBXNwZWVkKh0IAhAHQgVzaGFwZUoQgAEA"
    "AAAAAAAABgAAAAAAACoPEAFCBXNjYWxlSgQAAIA/WhsKBHJvd3MSEwoRCAISDQoGEgRyb3dzCgMIgANaHAoGc2NhbGVzEhIKEAgBEgwKBhIEcm"
    "93cwoCCAFiHwoIcHJvZHVjdHMSEwoRCAESDQoGEgRyb3dzCgMIgAxCBAoAEBVCEQoNY29tLm1pY3Jvc29mdBAB"
)
FLOAT_GRAPH = base64.b64decode(
    "CAo6wgEKOQoFc2hhcGUSB3dlaWdodHMiD0NvbnN0YW50T2ZTaGFwZSoWCgV2YWx1ZSoKCAEQAUoEAABAQKABBAohCgRyb3dzCgd3ZWlnaHRzEg"
    "hwcm9kdWN0cyIGTWF0TXVsEgVzcGVlZCodCAIQB0IFc2hhcGVKEIABAAAAAAAAAAYAAAAAAABaGwoEcm93cxITChEIARINCgYSBHJvd3MKAwiA"
    "A2IfCghwcm9kdWN0cxITChEIARINCgYSBHJvd3MKAwiADEIECgAQFUIRCg1jb20ubWljcm9zb2Z0EAE="
)
# The packages to install for a CPU with AMX; the extra `cpu` in pyproject.toml leaves out the same version.
WITH_AMX = 'pip install "onnxruntime>=1.26,!=1.32.0"'
_ROWS, _DEPTH, _WIDTH = 512, 384, 1536
_TURNS = 20
# A ratio between the limit of VNNI and the measured ratio of AMX.
_LEAST_RATIO_OF_AMX = 5.5


@dataclass(frozen=True)
class Int8Speed:
    """Billions of operations a second (a multiplication and an addition are two), in one thread.

    Attributes:
        int8: The speed of a product of bytes.
        float32: The speed of the same product in float32.
        has_amx: Whether the CPU lists ``amx_int8``.
    """

    int8: float
    float32: float
    has_amx: bool

    @property
    def uses_amx(self) -> bool:
        """Whether the product of bytes ran in AMX."""
        return self.has_amx and self.int8 >= _LEAST_RATIO_OF_AMX * self.float32

    def __str__(self) -> str:
        with_amx = ", with AMX" if self.uses_amx else ""
        return f"{self.int8:,.0f} GOP/s in one thread, {self.int8 / self.float32:.1f} times float32{with_amx}"


def measure_int8_speed(onnxruntime: Any) -> Int8Speed:
    """Time both products, about 0.2 s in all. The fastest turn of each counts, because others share the machine."""
    values = np.full((_ROWS, _DEPTH), 5, dtype=np.uint8)
    integers: dict[str, npt.NDArray[Any]] = {"rows": values, "scales": np.ones((_ROWS, 1), dtype=np.float32)}
    floats = {"rows": values.astype(np.float32)}
    return Int8Speed(
        _rate(onnxruntime, INTEGER_GRAPH, integers),
        _rate(onnxruntime, FLOAT_GRAPH, floats),
        "amx_int8" in cpu_features(),
    )


def _rate(onnxruntime: Any, graph: bytes, feeds: Mapping[str, npt.NDArray[Any]]) -> float:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return 2 * _ROWS * _DEPTH * _WIDTH / min(seconds) / 1e9
