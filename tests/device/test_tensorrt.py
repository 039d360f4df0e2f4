"""TensorRT: engines are built ahead of serving, for one graph, GPU and range, and never while serving."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import os
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_onnxruntime import (
    CUDA,
    CUDA_OPTIONS,
    DRIVER,
    FACTS,
    TENSORRT,
    FakeInferenceSession,
    FakeRuntime,
    Machine,
    opened,
)

from stonnx import DeviceError, InvalidArgumentError, cli
from stonnx._device import tensorrt as tensorrt_module
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.gpu_run import Shapes

# --- TensorRT ---


def build(machine: Machine, device: str = "tensorrt", **arguments: Any) -> dict[str, Any]:
    """Build an engine, as ``stonnx build`` does: the options of its provider."""
    runtime = machine.runtime()
    opened(device, options=DeviceOptions(build=True), **arguments)
    name, options = runtime.asked[0][0]
    assert name == TENSORRT
    (Path(options["trt_engine_cache_path"]) / "TensorrtExecutionProvider_graph_1_0.engine").touch()
    return options


def test_no_engine_is_built_while_serving(machine: Machine) -> None:
    runtime = machine.runtime()
    with pytest.raises(DeviceError) as error:
        opened("tensorrt")
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
        opened("tensorrt:1", options=DeviceOptions(memory_limit=2**30))
    command = str(error.value).rpartition(": ")[2]
    assert command == "stonnx build BUNDLE --device tensorrt:1 --memory-limit 1073741824"
    assert cli.main(command.replace("BUNDLE", str(minilm_bundle)).split()[1:]) == 0
    (_, options), _ = runtime.asked[0]
    assert (options["device_id"], options["trt_max_workspace_size"]) == (1, 2**30)


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt:1"])
def test_a_memory_limit_and_cuda_graphs_of_tensorrt(device: str, machine: Machine) -> None:
    runtime = machine.runtime()
    opened(device, options=DeviceOptions(memory_limit=2**30, cuda_graphs=True, build=True))
    (_, tensorrt), (_, cuda) = runtime.asked[0]
    assert (tensorrt["trt_max_workspace_size"], tensorrt["trt_cuda_graph_enable"]) == (2**30, 1)
    assert cuda["gpu_mem_limit"] == 2**30
    # It is TensorRT's work that is recorded; two recordings of one run are refused.
    assert "enable_cuda_graph" not in cuda
    opened(device, options=DeviceOptions(build=True))
    (_, tensorrt), (_, cuda) = runtime.asked[1]
    assert not {"trt_max_workspace_size", "trt_cuda_graph_enable"} & tensorrt.keys()
    assert "gpu_mem_limit" not in cuda


def test_a_built_engine_is_used(machine: Machine) -> None:
    built = build(machine)
    runtime = machine.runtime()
    session = opened("tensorrt")
    assert session.device == "tensorrt"
    assert runtime.asked[0][0] == (TENSORRT, built)
    # What TensorRT has no kernels for runs on CUDA.
    assert runtime.asked[0][1] == (CUDA, CUDA_OPTIONS)


def test_building_ahead_of_serving(machine: Machine, minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = machine.runtime()
    said_before: list[str] = []
    make = runtime.InferenceSession

    def note(*arguments: Any, **options: Any) -> FakeInferenceSession:
        said_before.append(capsys.readouterr().err)
        return make(*arguments, **options)

    runtime.InferenceSession = note
    assert cli.main(["build", str(minilm_bundle)]) == 0
    ((name, options), _) = runtime.asked[0]
    assert name == TENSORRT
    # Minutes of silence look like a program that hangs.
    assert said_before == [
        f"Building the engine of the graph 'default' of {minilm_bundle} for tensorrt. This can take minutes, and "
        "prints nothing meanwhile.\n"
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
        opened(device, facts=facts, options=options)
    assert runtime.asked == []


def test_serving_writes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an image that is read-only."""
    build(machine)
    for name in ("mkdir", "touch", "write_text", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(tensorrt_module, "create", refuse)
    machine.runtime()
    assert opened("tensorrt").device == "tensorrt"


@pytest.mark.parametrize(("owner", "step"), [(Path, "mkdir"), (tensorrt_module, "create")])
def test_building_where_nothing_can_be_written(
    owner: object, step: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, step, refuse)
    machine.runtime()
    with pytest.raises(DeviceError, match=r"cannot be kept in .*: Read-only file system\. .* STONNX_HOME"):
        opened("tensorrt", options=DeviceOptions(build=True))


def refuse(path: Path, *arguments: Any, **options: Any) -> None:
    # As Path.mkdir does, which looks only afterwards whether the directory is there.
    if not options.get("exist_ok") or not path.is_dir():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_build_that_was_interrupted_does_not_count(machine: Machine) -> None:
    machine.runtime(run_error=RuntimeError("killed"))
    with pytest.raises(DeviceError, match="killed"):
        opened("tensorrt", options=DeviceOptions(build=True))
    (directory,) = (machine.directory / "cache/tensorrt").iterdir()
    (directory / "TensorrtExecutionProvider_graph_1_0.engine").touch()
    machine.runtime()
    with pytest.raises(DeviceError, match="There is no TensorRT engine"):
        opened("tensorrt")


def test_batches_over_the_profile_are_run_in_pieces(machine: Machine) -> None:
    build(machine)
    runtime = machine.runtime()
    session = opened("tensorrt")
    ids = np.arange(150 * 4).reshape(150, 4)
    (result,) = session.run(["sentence_embedding"], {"input_ids": ids})
    assert [len(binding.inputs["input_ids"]) for binding in runtime.session.bindings] == [64, 64, 22]
    assert np.array_equal(result, ids.sum(axis=1, keepdims=True))


def test_texts_over_the_profile_are_refused(machine: Machine) -> None:
    build(machine)
    machine.runtime()
    with pytest.raises(InvalidArgumentError, match="A text has 257 tokens, and the engine of this device takes 256"):
        opened("tensorrt").run(["sentence_embedding"], {"input_ids": np.ones((1, 257), dtype=np.int64)})


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
    opened("cuda")
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
        opened("tensorrt", options=DeviceOptions(build=True))
    assert str(raised.value).startswith(f"device 'tensorrt' needs {TENSORRT}, and ")
    assert message in str(raised.value)
    assert runtime.asked == []
