"""Devices: the name that was asked for, or an error that says what is missing; never another device in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_onnxruntime import CPU, CUDA, CUDA_OPTIONS, DRIVER, OPENVINO, TENSORRT, FakeRuntime, Machine, opened

from stonnx import BundleFormatError, DeviceError, InvalidArgumentError, UnsupportedError
from stonnx._device import opening, providers
from stonnx._device.facts import GraphFacts
from stonnx._device.opening import open_session
from stonnx._device.providers import PROVIDERS, devices_for

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
    session = opened(device, threads=3)
    assert (session.device, session.threads, session.version) == (device, 3, "1.99.0")
    assert session.fallbacks == ()
    assert runtime.asked == [providers]
    assert runtime.settings.intra_op_num_threads == 3
    assert session.inputs == {"input_ids", "token_type_ids"}
    assert session.outputs == {"sentence_embedding"}


def test_openvino_computes_in_the_precision_of_the_bundle(machine: Machine) -> None:
    runtime = machine.runtime()
    opened("openvino", threads=3)
    ((name, options),) = runtime.asked[0]
    assert (name, options["device_type"], options["num_of_threads"]) == (OPENVINO, "CPU", 3)
    assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert not runtime.preloaded


def test_kernels_of_onnxruntime_are_fused_on_gpus_only(machine: Machine) -> None:
    runtime = machine.runtime()
    levels = []
    for device in ("cpu", "openvino", "cuda"):
        opened(device)
        levels.append(runtime.settings.graph_optimization_level)
    assert levels == [1, 1, 99]


def test_libraries_are_loaded_before_the_session(machine: Machine) -> None:
    # Where pip installs CUDA, onnxruntime does not find it by itself.
    runtime = machine.runtime(printed="Failed to load libcublasLt.so.13: cannot open shared object file")
    with pytest.raises(DeviceError) as error:
        opened("cuda")
    assert runtime.preloaded == 1
    assert runtime.asked == []
    assert str(error.value) == (
        f"device 'cuda' needs {CUDA}, and libcublasLt.so.13 is not here. It is part of CUDA or cuDNN. Install these "
        'with: pip install "onnxruntime-gpu[cuda,cudnn]"'
    )


def test_preloading_prints_nothing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.runtime(printed="Failed to load libcufft.so.12: cannot open shared object file")
    with pytest.raises(DeviceError):
        opened("cuda")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_without_a_driver(device: str, machine: Machine) -> None:
    runtime = machine.runtime()
    machine.missing[DRIVER] = f"{DRIVER}: cannot open shared object file: No such file or directory"
    with pytest.raises(DeviceError) as error:
        opened(device)
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
        opened(device)
    assert f"device {device!r} needs {CUDA}, but onnxruntime 1.99.0 runs on {CPU} instead: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("device", ["cuda", "openvino"])
@pytest.mark.parametrize("operators", [["MatMul"], ["Attention", "Softmax"]])
def test_work_that_is_left_to_the_cpu_is_refused(device: str, operators: list[str], machine: Machine) -> None:
    name = {"cuda": CUDA, "openvino": OPENVINO}[device]
    machine.runtime(operators=[("Shape", CPU), ("Gather", CPU), ("Add", name), *((kind, CPU) for kind in operators)])
    with pytest.raises(DeviceError, match=f"would leave {', '.join(operators)} of this graph to the CPU"):
        opened(device)


def test_small_operators_may_run_on_the_cpu(machine: Machine) -> None:
    # onnxruntime puts what computes shapes there, and it belongs there.
    machine.runtime(operators=[("Shape", CPU), ("Gather", CPU), ("Gather", CPU), ("MatMul", CUDA)])
    session = opened("cuda")
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
        opened(device)
    assert message in str(error.value)


def test_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleFormatError, match=r"onnxruntime [0-9.]+ cannot load"):
        open_session(tmp_path / "model.onnx", device="cpu")


def test_a_device_that_loads_but_does_not_run(machine: Machine) -> None:
    # A GPU that the wheel has no kernels for fails in the first run only.
    machine.runtime(run_error=RuntimeError("no kernel image is available for execution on the device"))
    with pytest.raises(DeviceError, match="loads the graph but does not run it: no kernel image"):
        opened("cuda")


@pytest.mark.parametrize(
    ("device", "recipe"), [("cuda", "fp16"), ("cuda:1", "fp16"), ("tensorrt", "fp16"), ("openvino", "fp16")]
)
def test_int8_is_for_the_cpu(device: str, recipe: str, machine: Machine) -> None:
    runtime = machine.runtime()
    with pytest.raises(UnsupportedError, match=f"--dtype {recipe}$"):
        opened(device, facts=GraphFacts(precision="int8"))
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
    monkeypatch.setattr(opening, "installed_wheels", lambda: [wheel])
    monkeypatch.setattr(FakeRuntime, "__version__", "1.25.9")
    with pytest.raises(DeviceError) as error:
        opened(device)
    assert str(error.value).endswith(f"and this is 1.25.9. Install it with: {command}")
    assert opened("openvino").device == "openvino"


def test_an_openvino_wheel_that_does_not_say_what_runs_where(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = machine.runtime()
    monkeypatch.setattr(opening, "installed_wheels", lambda: ["onnxruntime-openvino"])
    monkeypatch.setattr(FakeRuntime, "__version__", "1.23.0")
    with pytest.raises(DeviceError, match=r"needs onnxruntime 1\.24 or newer.*pip install -U onnxruntime-openvino$"):
        opened("openvino")
    assert runtime.asked == []


@pytest.mark.parametrize("device", [0, 1, np.int64(0)], ids=repr)
def test_numbers_are_gpus(device: Any, machine: Machine) -> None:
    # As in PyTorch: 0 must not become the CPU because it is false.
    machine.runtime()
    assert opened(device).device == f"cuda:{device}"


@pytest.mark.parametrize("device", [False, True, 0.0, -1], ids=repr)
def test_what_is_not_a_device(device: Any, machine: Machine) -> None:
    machine.runtime()
    with pytest.raises(InvalidArgumentError, match="is not known"):
        opened(device)


# --- device=None ---


def test_no_device_takes_the_gpu_that_works(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.runtime()
    session = opened(None)
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
    session = opened(None, facts=GraphFacts(precision=precision))
    assert session.device == "cpu"
    assert session.operators == {}
    (fallback,) = session.fallbacks
    assert reason in fallback
    assert [record.getMessage() for record in caplog.records] == [f"Running on cpu instead: {fallback}"]


# --- CPUs ---


def test_the_default_is_every_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = machine.runtime()
    monkeypatch.setattr(opening, "available_cpus", lambda: 5)
    assert opened("cpu").threads == runtime.settings.intra_op_num_threads == 5
