"""Which GPUs NVIDIA's driver finds."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from stonnx._device import nvidia


class FakeDriver:
    """As much of libcuda.so.1 as naming GPUs takes. ``status`` is what it answers to being started."""

    def __init__(self, status: int = 0) -> None:
        self.gpus = [(b"NVIDIA H100", 9, 0), (b"Tesla T4", 7, 5)]
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> None:  # noqa: N802
        assert size == len(name)
        name.value = self.gpus[device][0]

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:  # noqa: N802
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
        value._obj.value = self.gpus[device][{75: 1, 76: 2}[attribute]]


def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert nvidia.gpu_names() == ["NVIDIA H100 (9.0)", "Tesla T4 (7.5)"]
    assert [nvidia.gpu_name(index) for index in (0, 1, 2)] == ["NVIDIA H100 (9.0)", "Tesla T4 (7.5)", "unknown"]


def test_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(status=100))
    assert nvidia.gpu_names() == []

    def no_driver(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert nvidia.gpu_names() == []
