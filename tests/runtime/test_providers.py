"""Devices and CPUs: the name that was asked for, or an error; never another device, never more CPUs than granted."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from stonnx import BundleFormatError, DeviceError, InvalidArgumentError
from stonnx import _session as session_module
from stonnx._providers import PROVIDERS, provider_for
from stonnx._session import Session, _cgroup_cpus, available_cpus

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("device", "name", "options"),
    [
        (None, CPU, {}),
        ("cpu", CPU, {}),
        ("cuda", CUDA, {}),
        ("cuda:0", CUDA, {"device_id": 0}),
        ("cuda:1", CUDA, {"device_id": 1}),
        ("cuda:12", CUDA, {"device_id": 12}),
    ],
)
def test_devices(device: str | None, name: str, options: dict[str, Any]) -> None:
    provider, found = provider_for(device, [CUDA, CPU])
    assert (provider.name, found) == (name, options)


def test_options_of_the_table_are_not_changed() -> None:
    for row in PROVIDERS:
        _, options = provider_for(row.device, [row.name])
        options["device_id"] = 7
        assert provider_for(row.device, [row.name])[1] == row.options


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "mps", "cuda:x", "cuda:-1", "cuda:1.0", "cuda:0:1", "cuda 0", "cpu:0", " cpu", ":0"]
)
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        provider_for(device, [CUDA, CPU])
    assert str(error.value) == f"device {device!r} is not known. Allowed: cpu, cuda, cuda:0."


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "gpu"), ("cuda:3", "gpu")])
def test_missing_providers(device: str, extra: str) -> None:
    with pytest.raises(DeviceError) as error:
        provider_for(device, ["AzureExecutionProvider", "OtherExecutionProvider"])
    message = str(error.value)
    assert f"device {device!r} needs " in message
    assert "(it has AzureExecutionProvider, OtherExecutionProvider)" in message
    assert message.endswith(f'Install it with: pip install "stonnx[{extra}]"')


# --- sessions, with an onnxruntime that answers as told ---


class FakeRuntime(types.SimpleNamespace):
    """As much of onnxruntime as a session needs. ``running`` is what it falls back to, ``error`` what it raises."""

    __version__ = "1.99.0"
    GraphOptimizationLevel = types.SimpleNamespace(ORT_ENABLE_BASIC=1)

    def __init__(self, running: list[str] | None = None, error: Exception | None = None) -> None:
        super().__init__(running=running, error=error, asked=None, SessionOptions=types.SimpleNamespace)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(self, graph: str, settings: Any, providers: list[Any]) -> Any:  # noqa: N802
        if self.error is not None:
            raise self.error
        self.asked, self.settings = providers, settings
        running = self.running or [name if isinstance(name, str) else name[0] for name in providers]
        return types.SimpleNamespace(
            get_providers=lambda: running,
            get_inputs=lambda: [types.SimpleNamespace(name="input_ids")],
            get_outputs=lambda: [types.SimpleNamespace(name="sentence_embedding")],
            get_overridable_initializers=lambda: [types.SimpleNamespace(name="token_type_ids")],
            run=lambda outputs, feeds: [(outputs, feeds)],
        )


def use(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    monkeypatch.setattr(session_module, "_import_onnxruntime", lambda: runtime)
    return runtime


@pytest.mark.parametrize(
    ("device", "name", "providers"),
    [
        (None, "cpu", [(CPU, {})]),
        ("cpu", "cpu", [(CPU, {})]),
        ("cuda", "cuda", [(CUDA, {}), CPU]),
        ("cuda:1", "cuda:1", [(CUDA, {"device_id": 1}), CPU]),
    ],
)
def test_sessions_ask_for_the_device(
    device: str | None, name: str, providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = use(FakeRuntime(), monkeypatch)
    session = Session(Path("model.onnx"), device=device, threads=3)
    assert (session.device, session.threads, session.version) == (name, 3, "1.99.0")
    assert runtime.asked == providers
    assert runtime.settings.intra_op_num_threads == 3
    assert session.inputs == {"input_ids", "token_type_ids"}
    assert session.outputs == {"sentence_embedding"}


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_session_that_falls_back_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime warns and runs on the CPU where a library of CUDA is missing.
    use(FakeRuntime(running=[CPU]), monkeypatch)
    with pytest.raises(DeviceError) as error:
        Session(Path("model.onnx"), device=device)
    message = str(error.value)
    assert f"device {device!r} was asked for, but onnxruntime runs on {CPU}: a library that {CUDA} needs" in message
    assert 'pip install "stonnx[gpu]"' in message


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        ("cpu", BundleFormatError, "onnxruntime 1.99.0 cannot load model.onnx: invalid device ordinal. "),
        ("cuda:7", DeviceError, "cannot load model.onnx on device 'cuda:7': invalid device ordinal. "),
    ],
)
def test_a_session_that_cannot_be_made(
    device: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeRuntime(error=RuntimeError("invalid device ordinal.")), monkeypatch)
    with pytest.raises(kind) as error:
        Session(Path("model.onnx"), device=device)
    assert message in str(error.value)


@pytest.mark.parametrize("device", [0, False, 1], ids=repr)
def test_numbers_are_no_devices(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # 0 is the first GPU in PyTorch: it must not become the CPU because it is false.
    use(FakeRuntime(), monkeypatch)
    with pytest.raises(InvalidArgumentError, match="is not known"):
        Session(Path("model.onnx"), device=device)


def test_feeds_that_a_graph_does_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeRuntime(), monkeypatch)
    session = Session(Path("model.onnx"))
    feeds: dict[str, Any] = {"input_ids": 1, "token_type_ids": None, "prompt_length": 2}
    assert session.run(["sentence_embedding"], feeds) == [(["sentence_embedding"], {"input_ids": 1})]


# --- CPUs ---

# Files as the kernel writes them, below /sys/fs/cgroup: (files, CPUs that they grant).
CGROUPS: dict[str, tuple[dict[str, str], float | None]] = {
    "no control group": ({}, None),
    "v2 without a limit": ({"cpu.max": "max 100000\n"}, None),
    "v2 with two CPUs": ({"cpu.max": "200000 100000\n"}, 2.0),
    "v2 with half a CPU": ({"cpu.max": "50000 100000\n"}, 0.5),
    "v2 with another period": ({"cpu.max": "75000 50000\n"}, 1.5),
    "v2 without a period": ({"cpu.max": "max\n"}, None),
    "v2 that is empty": ({"cpu.max": ""}, None),
    "v1 without a limit": ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    "v1 with three CPUs": ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
    "v1 without a period": ({"cpu/cpu.cfs_quota_us": "300000\n"}, None),
    "v1 with a period of 0": ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
    "v1 that is empty": ({"cpu/cpu.cfs_quota_us": "", "cpu/cpu.cfs_period_us": ""}, None),
    "v2 before v1": (
        {"cpu.max": "100000 100000\n", "cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        1.0,
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_cpus_of_a_control_group(name: str, tmp_path: Path) -> None:
    files, cpus = CGROUPS[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content, encoding="ascii")
    assert _cgroup_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.5, 1), (2, 16.0, 2), (1, 0.1, 1)],
)
def test_available_cpus(affinity: int, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(session_module, "_cgroup_cpus", lambda root: quota)
    assert available_cpus() == expected


def test_available_cpus_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS and Windows have none.
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setattr(session_module, "_cgroup_cpus", lambda root: None)
    assert available_cpus() == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cpus() == 1


def test_the_default_is_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = use(FakeRuntime(), monkeypatch)
    monkeypatch.setattr(session_module, "available_cpus", lambda: 5)
    assert Session(Path("model.onnx")).threads == runtime.settings.intra_op_num_threads == 5
