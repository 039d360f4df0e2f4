"""Devices: the name that was asked for, or an error that says what is missing; never another device in silence.

onnxruntime is a fake here that answers as told, so that no hardware is needed. benchmarks/questions/gpu.py checks a
real GPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import importlib.util
import json
import os
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import BundleFormatError, DeviceError, InvalidArgumentError, UnsupportedError, cli
from stonnx._bundle.manifest import TensorSpec
from stonnx._device import nvidia, providers
from stonnx._device import session as session_module
from stonnx._device import tensorrt as tensorrt_module
from stonnx._device.facts import GraphFacts
from stonnx._device.gpu_run import Shapes
from stonnx._device.options import DeviceOptions
from stonnx._device.providers import PROVIDERS, devices_for
from stonnx._device.session import Session

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0}
DRIVER = "libcuda.so.1"


# --- the table ---


@pytest.mark.parametrize(
    ("device", "name", "index"),
    [
        ("cpu", CPU, None),
        ("cuda", CUDA, None),
        ("cuda:0", CUDA, 0),
        ("cuda:12", CUDA, 12),
        ("tensorrt:1", TENSORRT, 1),
        ("openvino", OPENVINO, None),
    ],
)
def test_devices(device: str, name: str, index: int | None) -> None:
    (found,) = devices_for(device, [TENSORRT, OPENVINO, CUDA, CPU])
    assert (found.provider.name, found.index, str(found)) == (name, index, device)
    assert found.options.get("device_id") == index


@pytest.mark.parametrize(
    ("available", "devices"),
    [
        ([CPU], ["cpu"]),
        (["AzureExecutionProvider", CPU], ["cpu"]),
        ([TENSORRT, CUDA, CPU], ["cuda", "cpu"]),
        # Another arithmetic, or minutes of building: only who asks for them gets them.
        ([OPENVINO, CPU], ["cpu"]),
    ],
)
def test_what_no_device_stands_for(available: list[str], devices: list[str]) -> None:
    assert [str(device) for device in devices_for(None, available)] == devices


def test_options_of_the_table_are_not_changed() -> None:
    for row in PROVIDERS:
        (device,) = devices_for(row.device, [row.name])
        device.options["device_id"] = 7
        assert devices_for(row.device, [row.name])[0].options == row.options


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "mps", "cuda:x", "cuda:-1", "cuda:1.0", "cuda:0:1", "cuda 0", "cpu:0", " cpu", ":0", ""]
)
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        devices_for(device, [CUDA, CPU])
    allowed = "cpu, cuda, cuda:0, tensorrt, tensorrt:0, openvino"
    assert str(error.value) == f"device {device!r} is not known. Allowed: {allowed}."


@pytest.mark.parametrize(
    ("device", "command"),
    [
        ("cpu", 'pip install "stonnx[cpu]"'),
        ("cuda:3", 'pip uninstall -y onnxruntime && pip install "stonnx[gpu]"'),
        ("tensorrt", 'pip uninstall -y onnxruntime && pip install "stonnx[gpu]"'),
        ("openvino", "pip uninstall -y onnxruntime && pip install onnxruntime-openvino"),
    ],
)
def test_missing_providers(device: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two wheels overwrite each other's files: the command leaves one.
    monkeypatch.setattr(providers, "installed_wheels", lambda: ["onnxruntime"])
    with pytest.raises(DeviceError) as error:
        devices_for(device, ["AzureExecutionProvider", "OtherExecutionProvider"])
    message = str(error.value)
    assert f"device {device!r} needs " in message
    assert "(it has AzureExecutionProvider, OtherExecutionProvider)" in message
    assert message.endswith(f"Install it with: {command}")


# --- sessions, with an onnxruntime that answers as told ---


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


class FakeSession:
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
    ) -> FakeSession:
        # Otherwise onnxruntime prints an error and takes the CPU.
        assert enable_fallback == 0
        self.asked.append(providers)
        self.settings = settings
        if self.error is not None and providers[0][0] != CPU:
            raise self.error
        self.session = FakeSession(self, providers)
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
        self.monkeypatch.setattr(session_module, "import_onnxruntime", lambda: runtime)
        return runtime


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


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


def open_session(device: Any, **arguments: Any) -> Session:
    return Session(GRAPH, device=device, **{"facts": FACTS} | arguments)


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cpu", [(CPU, {})]),
        ("cuda", [(CUDA, CUDA_OPTIONS)]),
        ("cuda:1", [(CUDA, {**CUDA_OPTIONS, "device_id": 1})]),
    ],
)
def test_sessions_ask_for_the_device(device: str, providers: list[Any], machine: Machine) -> None:
    runtime = machine.runtime()
    session = open_session(device, threads=3)
    assert (session.device, session.threads, session.version) == (device, 3, "1.99.0")
    assert session.fallbacks == ()
    assert runtime.asked == [providers]
    assert runtime.settings.intra_op_num_threads == 3
    assert session.inputs == {"input_ids", "token_type_ids"}
    assert session.outputs == {"sentence_embedding"}


def test_openvino_computes_in_the_precision_of_the_bundle(machine: Machine) -> None:
    runtime = machine.runtime()
    open_session("openvino", threads=3)
    ((name, options),) = runtime.asked[0]
    assert (name, options["device_type"], options["num_of_threads"]) == (OPENVINO, "CPU", 3)
    assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert not runtime.preloaded


def test_kernels_of_onnxruntime_are_fused_on_gpus_only(machine: Machine) -> None:
    runtime = machine.runtime()
    levels = []
    for device in ("cpu", "openvino", "cuda"):
        open_session(device)
        levels.append(runtime.settings.graph_optimization_level)
    assert levels == [1, 1, 99]


def test_libraries_are_loaded_before_the_session(machine: Machine) -> None:
    # Where pip installs CUDA, onnxruntime does not find it by itself.
    runtime = machine.runtime(printed="Failed to load libcublasLt.so.13: cannot open shared object file")
    with pytest.raises(DeviceError) as error:
        open_session("cuda")
    assert runtime.preloaded == 1
    assert runtime.asked == []
    assert str(error.value) == (
        f"device 'cuda' needs {CUDA}, and libcublasLt.so.13 is not here. It is part of CUDA or cuDNN. Install these "
        'with: pip install "onnxruntime-gpu[cuda,cudnn]"'
    )


def test_preloading_prints_nothing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.runtime(printed="Failed to load libcufft.so.12: cannot open shared object file")
    with pytest.raises(DeviceError):
        open_session("cuda")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_without_a_driver(device: str, machine: Machine) -> None:
    runtime = machine.runtime()
    machine.missing[DRIVER] = f"{DRIVER}: cannot open shared object file: No such file or directory"
    with pytest.raises(DeviceError) as error:
        open_session(device)
    assert runtime.asked == []
    assert f"device {device!r} needs " in str(error.value)
    assert f"{DRIVER} is not here. It comes with the NVIDIA driver" in str(error.value)


LIBRARY = "libonnxruntime_providers_cuda.so"


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("libcudnn.so.9: cannot open shared object file: No such file", "libcudnn.so.9 is not here. It is part of"),
        (f"{LIBRARY}: undefined symbol: cuTensorMapEncodeTiled", "undefined symbol: cuTensorMapEncodeTiled"),
        (None, "only its log says why"),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_session_that_falls_back_is_refused(device: str, loader: str | None, message: str, machine: Machine) -> None:
    # onnxruntime warns and runs on the CPU where a library of CUDA is missing.
    machine.runtime(running=[CPU])
    if loader is not None:
        machine.missing[LIBRARY] = loader
    with pytest.raises(DeviceError) as error:
        open_session(device)
    assert f"device {device!r} needs {CUDA}, but onnxruntime 1.99.0 runs on {CPU} instead: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("device", ["cuda", "openvino"])
@pytest.mark.parametrize("operators", [["MatMul"], ["Attention", "Softmax"]])
def test_work_that_is_left_to_the_cpu_is_refused(device: str, operators: list[str], machine: Machine) -> None:
    name = {"cuda": CUDA, "openvino": OPENVINO}[device]
    machine.runtime(operators=[("Shape", CPU), ("Gather", CPU), ("Add", name), *((kind, CPU) for kind in operators)])
    with pytest.raises(DeviceError, match=f"would leave {', '.join(operators)} of this graph to the CPU"):
        open_session(device)


def test_small_operators_may_run_on_the_cpu(machine: Machine) -> None:
    # onnxruntime puts what computes shapes there, and it belongs there.
    machine.runtime(operators=[("Shape", CPU), ("Gather", CPU), ("Gather", CPU), ("MatMul", CUDA)])
    session = open_session("cuda")
    assert session.operators == {(CPU, "Shape"): 1, (CPU, "Gather"): 2, (CUDA, "MatMul"): 1}


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        ("cuda:7", DeviceError, "cannot load model.onnx on device 'cuda:7': invalid device ordinal. "),
        ("openvino", DeviceError, "cannot load model.onnx on device 'openvino': invalid device ordinal. "),
    ],
)
def test_a_session_that_cannot_be_made(device: str, kind: type[Exception], message: str, machine: Machine) -> None:
    machine.runtime(error=RuntimeError("invalid device ordinal."))
    with pytest.raises(kind) as error:
        open_session(device)
    assert message in str(error.value)


def test_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleFormatError, match=r"onnxruntime [0-9.]+ cannot load"):
        Session(tmp_path / "model.onnx", device="cpu")


def test_a_device_that_loads_but_does_not_run(machine: Machine) -> None:
    # A GPU that the wheel has no kernels for fails in the first run only.
    machine.runtime(run_error=RuntimeError("no kernel image is available for execution on the device"))
    with pytest.raises(DeviceError, match="loads the graph but does not run it: no kernel image"):
        open_session("cuda")


@pytest.mark.parametrize(
    ("device", "recipe"), [("cuda", "fp16"), ("cuda:1", "fp16"), ("tensorrt", "fp16"), ("openvino", "fp16")]
)
def test_int8_is_for_the_cpu(device: str, recipe: str, machine: Machine) -> None:
    runtime = machine.runtime()
    with pytest.raises(UnsupportedError, match=f"--dtype {recipe}$"):
        open_session(device, facts=GraphFacts(precision="int8"))
    assert runtime.asked == []


@pytest.mark.parametrize(
    ("device", "wheel", "command"),
    [
        ("cpu", "onnxruntime", "pip install -U onnxruntime"),
        ("cpu", "onnxruntime-openvino", 'pip uninstall -y onnxruntime-openvino && pip install "stonnx[cpu]"'),
        (None, "onnxruntime", "pip install -U onnxruntime"),
        ("cuda", "onnxruntime-gpu", "pip install -U onnxruntime-gpu"),
    ],
)
def test_an_onnxruntime_that_is_too_old(
    device: str | None, wheel: str, command: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before 1.26, attention with lengths gave something else; the OpenVINO wheel of that age is fine for OpenVINO.
    machine.runtime()
    monkeypatch.setattr(session_module, "installed_wheels", lambda: [wheel])
    monkeypatch.setattr(FakeRuntime, "__version__", "1.25.9")
    with pytest.raises(DeviceError) as error:
        open_session(device)
    assert str(error.value).endswith(f"and this is 1.25.9. Install it with: {command}")
    assert open_session("openvino").device == "openvino"


def test_an_openvino_wheel_that_does_not_say_what_runs_where(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = machine.runtime()
    monkeypatch.setattr(session_module, "installed_wheels", lambda: ["onnxruntime-openvino"])
    monkeypatch.setattr(FakeRuntime, "__version__", "1.23.0")
    with pytest.raises(DeviceError, match=r"needs onnxruntime 1\.24 or newer.*pip install -U onnxruntime-openvino$"):
        open_session("openvino")
    assert runtime.asked == []


@pytest.mark.parametrize("device", [0, False, 1], ids=repr)
def test_numbers_are_no_devices(device: Any, machine: Machine) -> None:
    # 0 is the first GPU in PyTorch: it must not become the CPU because it is false.
    machine.runtime()
    with pytest.raises(InvalidArgumentError, match="is not known"):
        open_session(device)


# --- device=None ---


def test_no_device_takes_the_gpu_that_works(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.runtime()
    session = open_session(None)
    assert (session.device, session.fallbacks) == ("cuda", ())
    assert not caplog.records


@pytest.mark.parametrize(
    ("told", "missing", "precision", "reason"),
    [
        ({}, {DRIVER: "no"}, "float32", "NVIDIA driver"),
        ({"printed": "Failed to load libcublas.so.13: no"}, {}, "float32", "libcublas.so.13"),
        ({"error": RuntimeError("out of memory")}, {}, "float32", "out of memory"),
        ({"operators": [("Attention", CPU)]}, {}, "float32", "would leave Attention"),
        ({}, {}, "int8", "--dtype fp16"),
    ],
)
def test_every_fallback_is_recorded(
    told: dict[str, Any],
    missing: dict[str, str],
    precision: str,
    reason: str,
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.runtime(**told)
    machine.missing |= missing
    session = open_session(None, facts=GraphFacts(precision=precision))
    assert session.device == "cpu"
    assert session.operators == {}
    (fallback,) = session.fallbacks
    assert reason in fallback
    assert [record.getMessage() for record in caplog.records] == [f"Running on cpu instead: {fallback}"]


# --- runs ---


def test_feeds_that_a_graph_does_not_have_are_left_out(machine: Machine) -> None:
    machine.runtime()
    feeds: dict[str, Any] = {"input_ids": 1, "token_type_ids": None, "prompt_length": 2}
    assert open_session("cpu").run(["sentence_embedding"], feeds) == [(["sentence_embedding"], {"input_ids": 1})]


def test_outputs_stay_on_the_gpu_until_the_run_is_done(machine: Machine) -> None:
    runtime = machine.runtime()
    session = open_session("cuda:1")
    ids = np.arange(12).reshape(3, 4)
    (result,) = session.run(["sentence_embedding"], {"input_ids": ids})
    (binding,) = runtime.session.bindings
    assert binding.outputs == [("sentence_embedding", "cuda", 1)]
    assert np.array_equal(result, ids.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("device", "arenas"), [("cpu", "cpu:0"), ("cuda", "gpu:0;cpu:0"), ("cuda:1", "gpu:1;cpu:0")])
def test_trimming_shrinks_the_arenas_of_the_device(device: str, arenas: str, machine: Machine) -> None:
    runtime = machine.runtime()
    open_session(device).trim()
    assert runtime.session.options.entries == {"memory.enable_memory_arena_shrinkage": arenas}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_trimming_leaves_what_was_recorded_its_memory(device: str, machine: Machine) -> None:
    """A recording has the addresses of the memory that its run took, and a replay writes there."""
    runtime = machine.runtime()
    session = open_session(device, options=DeviceOptions(cuda_graphs=True, build=device == "tensorrt"))
    # The first run: nothing of it is recorded, or it would be replayed with inputs that are gone.
    assert runtime.session.options.entries == {"gpu_graph_id": "-1"}
    session.trim()
    assert runtime.session.options.entries == {"memory.enable_memory_arena_shrinkage": "cpu:0", "gpu_graph_id": "-1"}


def test_a_memory_limit_and_cuda_graphs(machine: Machine) -> None:
    runtime = machine.runtime()
    open_session("cuda", options=DeviceOptions(memory_limit=2**30, cuda_graphs=True))
    ((_, options),) = runtime.asked[0]
    assert options == {**CUDA_OPTIONS, "gpu_mem_limit": 2**30, "enable_cuda_graph": 1}


# --- TensorRT ---


def build(machine: Machine, device: str = "tensorrt", **arguments: Any) -> dict[str, Any]:
    """Build an engine, as ``stonnx build`` does: the options of its provider."""
    runtime = machine.runtime()
    open_session(device, options=DeviceOptions(build=True), **arguments)
    name, options = runtime.asked[0][0]
    assert name == TENSORRT
    (Path(options["trt_engine_cache_path"]) / "TensorrtExecutionProvider_graph_1_0.engine").touch()
    return options


def test_no_engine_is_built_while_serving(machine: Machine) -> None:
    runtime = machine.runtime()
    with pytest.raises(DeviceError) as error:
        open_session("tensorrt")
    assert runtime.asked == []
    assert (
        "There is no TensorRT engine of this bundle for NVIDIA A (8.0), onnxruntime 1.99.0 and inputs up to "
        "input_ids:64x256,token_type_ids:64x256 in " in str(error.value)
    )
    assert str(error.value).endswith("Build it first: stonnx build BUNDLE --device tensorrt")


def test_the_command_that_builds_what_is_missing(
    machine: Machine, minilm_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = machine.runtime()
    with pytest.raises(DeviceError) as error:
        open_session("tensorrt:1", options=DeviceOptions(memory_limit=2**30))
    command = str(error.value).rpartition(": ")[2]
    assert command == "stonnx build BUNDLE --device tensorrt:1 --memory-limit 1073741824"
    assert cli.main(command.replace("BUNDLE", str(minilm_bundle)).split()[1:]) == 0
    (_, options), _ = runtime.asked[0]
    assert (options["device_id"], options["trt_max_workspace_size"]) == (1, 2**30)


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt:1"])
def test_a_memory_limit_and_cuda_graphs_of_tensorrt(device: str, machine: Machine) -> None:
    runtime = machine.runtime()
    open_session(device, options=DeviceOptions(memory_limit=2**30, cuda_graphs=True, build=True))
    (_, tensorrt), (_, cuda) = runtime.asked[0]
    assert (tensorrt["trt_max_workspace_size"], tensorrt["trt_cuda_graph_enable"]) == (2**30, 1)
    assert cuda["gpu_mem_limit"] == 2**30
    # It is TensorRT's work that is recorded; two recordings of one run are refused.
    assert "enable_cuda_graph" not in cuda
    open_session(device, options=DeviceOptions(build=True))
    (_, tensorrt), (_, cuda) = runtime.asked[1]
    assert not {"trt_max_workspace_size", "trt_cuda_graph_enable"} & tensorrt.keys()
    assert "gpu_mem_limit" not in cuda


def test_a_built_engine_is_used(machine: Machine) -> None:
    built = build(machine)
    runtime = machine.runtime()
    session = open_session("tensorrt")
    assert session.device == "tensorrt"
    assert runtime.asked[0][0] == (TENSORRT, built)
    # What TensorRT has no kernels for runs on CUDA.
    assert runtime.asked[0][1] == (CUDA, CUDA_OPTIONS)


def test_building_ahead_of_serving(machine: Machine, minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = machine.runtime()
    said_before: list[str] = []
    make = runtime.InferenceSession

    def note(*arguments: Any, **options: Any) -> FakeSession:
        said_before.append(capsys.readouterr().err)
        return make(*arguments, **options)

    runtime.InferenceSession = note
    assert cli.main(["build", str(minilm_bundle)]) == 0
    ((name, options), _) = runtime.asked[0]
    assert name == TENSORRT
    # Minutes of silence look like a program that hangs.
    assert said_before == [
        f"Building the engine of the graph 'default' of {minilm_bundle} for tensorrt. This can take minutes, without a "
        "sign of life.\n"
    ]
    output = capsys.readouterr()
    assert output.out.startswith(f"default: {options['trt_engine_cache_path']}, ")
    assert re.fullmatch(r"Done after \d+\.\d s\.\n", output.err)
    assert "input_ids:64x256" in options["trt_profile_max_shapes"]


def test_profiles_cover_every_dynamic_input(machine: Machine) -> None:
    options = build(machine)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,token_type_ids:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:16x64,token_type_ids:16x64"
    assert options["trt_profile_max_shapes"] == "input_ids:64x256,token_type_ids:64x256"
    assert options["trt_fp16_enable"] == 0
    assert build(machine, facts=GraphFacts(precision="float16"))["trt_fp16_enable"] == 1


@pytest.mark.parametrize(
    "change",
    ["graph", "gpu", "onnxruntime", "tensorrt", "longer", "precision", "inputs", "memory", "usual", "largest batch"],
)
def test_an_engine_is_for_one_graph_gpu_set_of_versions_and_range(
    change: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnxruntime builds an engine of other ranges again, at the first start or in the middle of serving.
    build(machine)
    facts, device, options = FACTS, "tensorrt", DeviceOptions()
    match change:
        case "graph":
            facts = dataclasses.replace(FACTS, sha256="def")
        case "gpu":
            device = "tensorrt:1"
        case "onnxruntime":
            monkeypatch.setattr(FakeRuntime, "__version__", "2.0.0")
        case "tensorrt":
            monkeypatch.setattr("stonnx._device.tensorrt._tensorrt_version", lambda: "11")
        case "longer":
            facts = dataclasses.replace(FACTS, max_seq_length=512)
        case "precision":
            facts = dataclasses.replace(FACTS, precision="float16")
        case "inputs":
            facts = dataclasses.replace(FACTS, inputs=FACTS.inputs[:1])
        case "memory":
            options = DeviceOptions(memory_limit=2**30)
        case "usual":
            monkeypatch.setattr(tensorrt_module, "_USUAL", Shapes(8, 64))
        case _:
            monkeypatch.setattr(tensorrt_module, "_LARGEST_BATCH", 128)
    runtime = machine.runtime()
    with pytest.raises(DeviceError, match="There is no TensorRT engine"):
        open_session(device, facts=facts, options=options)
    assert runtime.asked == []


def test_serving_writes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an image that is read-only."""
    build(machine)
    for name in ("mkdir", "touch", "write_text", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(tensorrt_module, "create", refuse)
    machine.runtime()
    assert open_session("tensorrt").device == "tensorrt"


@pytest.mark.parametrize(("owner", "step"), [(Path, "mkdir"), (tensorrt_module, "create")])
def test_building_where_nothing_can_be_written(
    owner: object, step: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, step, refuse)
    machine.runtime()
    with pytest.raises(DeviceError, match=r"cannot be kept in .*: Read-only file system\. .* STONNX_HOME"):
        open_session("tensorrt", options=DeviceOptions(build=True))


def refuse(path: Path, *arguments: Any, **options: Any) -> None:
    # As Path.mkdir does, which looks only afterwards whether the directory is there.
    if not options.get("exist_ok") or not path.is_dir():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_build_that_was_interrupted_does_not_count(machine: Machine) -> None:
    machine.runtime(run_error=RuntimeError("killed"))
    with pytest.raises(DeviceError, match="killed"):
        open_session("tensorrt", options=DeviceOptions(build=True))
    (directory,) = (machine.directory / "cache/tensorrt").iterdir()
    (directory / "TensorrtExecutionProvider_graph_1_0.engine").touch()
    machine.runtime()
    with pytest.raises(DeviceError, match="There is no TensorRT engine"):
        open_session("tensorrt")


def test_batches_over_the_profile_are_run_in_pieces(machine: Machine) -> None:
    build(machine)
    runtime = machine.runtime()
    session = open_session("tensorrt")
    ids = np.arange(150 * 4).reshape(150, 4)
    (result,) = session.run(["sentence_embedding"], {"input_ids": ids})
    assert [len(binding.inputs["input_ids"]) for binding in runtime.session.bindings] == [64, 64, 22]
    assert np.array_equal(result, ids.sum(axis=1, keepdims=True))


def test_texts_over_the_profile_are_refused(machine: Machine) -> None:
    build(machine)
    machine.runtime()
    with pytest.raises(InvalidArgumentError, match="A text has 257 tokens, and the engine of this device takes 256"):
        open_session("tensorrt").run(["sentence_embedding"], {"input_ids": np.ones((1, 257), dtype=np.int64)})


# --- NVIDIA's libraries ---


@pytest.fixture
def tensorrt_package(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package that pip installs, with the libraries that are loaded and others."""
    directory = machine.directory / "tensorrt_libs"
    directory.mkdir()
    for name in ("libnvonnxparser.so.10", "libnvinfer.so.10", "libnvinfer_plugin.so.10", "__init__.py"):
        (directory / name).touch()
    find = importlib.util.find_spec
    found = types.SimpleNamespace(submodule_search_locations=[str(directory)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found if name == "tensorrt_libs" else find(name, *rest)
    )
    return directory


def test_tensorrt_is_loaded_from_its_package(machine: Machine, tensorrt_package: Path) -> None:
    build(machine)
    first, second = (machine.loaded.index(name) for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"))
    assert machine.loaded.index(DRIVER) < first < second  # the parser needs the other
    assert "libnvinfer_plugin.so.10" not in machine.loaded
    machine.loaded.clear()
    open_session("cuda")
    assert "libnvinfer.so.10" not in machine.loaded


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "libnvinfer.so.10",
            "libcublas.so.13: cannot open shared object file: No such file or directory",
            'libcublas.so.13 is not here. It is part of CUDA or cuDNN. Install these with: pip install "',
        ),
        (
            "libnvonnxparser.so.10",
            "libnvinfer.so.10: cannot open shared object file: No such file or directory",
            "libnvinfer.so.10 is not here. It is part of TensorRT. Install that with: pip install tensorrt-cu13",
        ),
        (
            "libnvinfer.so.10",
            "file too short",
            "libnvinfer.so.10 cannot be loaded: file too short. Install TensorRT again with: pip install "
            "--force-reinstall tensorrt-cu13",
        ),
    ],
)
def test_a_tensorrt_that_does_not_load(
    name: str, error: str, message: str, machine: Machine, tensorrt_package: Path
) -> None:
    runtime = machine.runtime()
    machine.missing[name] = error
    with pytest.raises(DeviceError) as raised:
        open_session("tensorrt", options=DeviceOptions(build=True))
    assert str(raised.value).startswith(f"device 'tensorrt' needs {TENSORRT}, and ")
    assert message in str(raised.value)
    assert runtime.asked == []


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


# --- CPUs ---


def test_the_default_is_every_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = machine.runtime()
    monkeypatch.setattr(session_module, "available_cpus", lambda: 5)
    assert open_session("cpu").threads == runtime.settings.intra_op_num_threads == 5
