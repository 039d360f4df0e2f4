"""An onnxruntime that answers as told, so that tests of devices need no hardware.

benchmarks/questions/gpu.py checks a real GPU.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx._bundle.manifest import TensorSpec
from stonnx._device import nvidia, opening
from stonnx._device.facts import GraphFacts
from stonnx._device.opening import open_session
from stonnx._device.session import Session

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0}
DRIVER = "libcuda.so.1"


class FakeSettings(types.SimpleNamespace):
    """SessionOptions and RunOptions."""

    def __init__(self) -> None:
        super().__init__(entries={})

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    add_run_config_entry = add_session_config_entry


class FakeBinding:
    """An IOBinding that keeps what it is told."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: list[tuple[str, str, int]] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str, index: int) -> None:
        self.outputs.append((name, device, index))

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [self.inputs["input_ids"].sum(axis=1, keepdims=True) for _ in self.outputs]


class FakeInferenceSession:
    """An InferenceSession that runs where the runtime says."""

    def __init__(self, runtime: FakeRuntime, providers: Sequence[tuple[str, Any]]) -> None:
        self.runtime, self.bindings, self.options = runtime, [], None
        self.running = runtime.running or [*(name for name, _ in providers), CPU]

    def get_providers(self) -> list[str]:
        return self.running

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="input_ids", shape=["batch", "sequence"], type="tensor(int64)")]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="sentence_embedding", shape=["batch", 8], type="tensor(float)")]

    def get_overridable_initializers(self) -> list[Any]:
        return [types.SimpleNamespace(name="token_type_ids", shape=["batch", "sequence"], type="tensor(int64)")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            types.SimpleNamespace(ep_name=provider, get_nodes=lambda kind=kind: [types.SimpleNamespace(op_type=kind)])
            for kind, provider in self.runtime.operators
        ]

    def run(self, outputs: Any, feeds: Any, options: Any = None) -> list[Any]:
        if self.runtime.run_error is not None:
            raise self.runtime.run_error
        self.options = options
        return [(outputs, feeds)]

    def io_binding(self) -> FakeBinding:
        self.bindings.append(FakeBinding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding: FakeBinding, options: Any = None) -> None:
        pass


class FakeRuntime(types.SimpleNamespace):
    """As much of onnxruntime as a session needs.

    ``running`` is what it falls back to; ``error`` and ``run_error`` are what it raises; ``printed`` is what preloading
    libraries prints; ``operators`` says which operators run where.
    """

    __version__ = "1.99.0"
    cuda_version = "13.0"
    GraphOptimizationLevel = types.SimpleNamespace(ORT_ENABLE_BASIC=1, ORT_ENABLE_ALL=99)
    OrtValue = types.SimpleNamespace(ortvalue_from_numpy=lambda value: value)
    SessionOptions = RunOptions = FakeSettings

    def __init__(self, directory: Path, **told: Any) -> None:
        defaults: dict[str, Any] = {"running": None, "error": None, "run_error": None, "printed": "", "operators": []}
        super().__init__(**defaults | told, asked=[], preloaded=0, __file__=str(directory / "__init__.py"))

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, OPENVINO, CPU]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print(self.printed)

    def InferenceSession(  # noqa: N802
        self, graph: str, settings: FakeSettings, *, providers: list[Any], enable_fallback: int
    ) -> FakeInferenceSession:
        # Otherwise onnxruntime prints an error and takes the CPU.
        assert enable_fallback == 0
        self.asked.append(providers)
        self.settings = settings
        if self.error is not None and providers[0][0] != CPU:
            raise self.error
        self.session = FakeInferenceSession(self, providers)
        return self.session


class Machine:
    """Makes fake runtimes, on a machine whose libraries are all there but for ``missing``."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.monkeypatch = directory, monkeypatch
        self.missing: dict[str, str] = {}
        self.loaded: list[str] = []
        self.gpus = ["NVIDIA A (8.0)", "NVIDIA B (9.0)"]
        monkeypatch.setattr(ctypes, "CDLL", self._load)
        monkeypatch.setattr(nvidia, "gpu_names", lambda: self.gpus)
        monkeypatch.setenv("STONNX_HOME", str(directory / "cache"))
        (directory / "capi").mkdir()
        for name in ("cuda", "tensorrt"):
            (directory / "capi" / f"libonnxruntime_providers_{name}.so").touch()

    def _load(self, name: str | None, mode: int = 0) -> Any:
        self.loaded.append(Path(name or "").name)
        if self.loaded[-1] in self.missing:
            raise OSError(self.missing[self.loaded[-1]])
        return types.SimpleNamespace(malloc_trim=lambda pad: 1)

    def runtime(self, **told: Any) -> FakeRuntime:
        runtime = FakeRuntime(self.directory, **told)
        self.monkeypatch.setattr(opening, "import_onnxruntime", lambda: runtime)
        return runtime


GRAPH = Path("model.onnx")
FACTS = GraphFacts(
    precision="float32",
    sha256="abc",
    inputs=(
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("token_type_ids", "int64", ("batch", "sequence"), optional=True),
        TensorSpec("prompt_length", "int64", (), optional=True),
    ),
    max_seq_length=256,
)


def opened(device: Any, **arguments: Any) -> Session:
    return open_session(GRAPH, device=device, **{"facts": FACTS} | arguments)
