"""Devices and CPUs: the name that was asked for, or an error; never another device, never more CPUs than granted."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from stonnx import BundleFormatError, DeviceError, InvalidArgumentError
from stonnx import _session as session_module
from stonnx._providers import PROVIDERS, provider_for
from stonnx._session import Session

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


def test_the_default_is_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = use(FakeRuntime(), monkeypatch)
    monkeypatch.setattr(session_module, "available_cpus", lambda: 5)
    assert Session(Path("model.onnx")).threads == runtime.settings.intra_op_num_threads == 5
