"""The wheel of native kernels: what is in it, and that it runs in an environment without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import onnx_ir as ir
import pytest
from small_graphs import encoder

from stonnx_export.kernels import outline

ROOT = Path(__file__).parents[2]
# Which kernels a session has that is made with them, by onnxruntime's own profile.
PROGRAM = """
import ctypes, json, sys
import numpy as np, onnxruntime, stonnx_kernels
library = ctypes.CDLL(str(stonnx_kernels.LIBRARY))
library.stonnx_kernels_variant.restype = library.stonnx_kernels_version.restype = ctypes.c_char_p
library.stonnx_kernels_float_as_bf16(1)
results = []
for registered in (False, True):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = sys.argv[2]
    if registered:
        options.register_custom_ops_library(str(stonnx_kernels.LIBRARY))
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    (result,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    events = json.load(open(session.end_profiling()))
    operators = {event["args"].get("op_name") for event in events if event.get("cat") == "Node"}
    results.append((result, sorted(name for name in operators if name)))
(plain, _), (kernels, operators) = results
print(json.dumps({
    "onnxruntime": onnxruntime.__version__,
    "version": library.stonnx_kernels_version().decode(),
    "package": stonnx_kernels.__version__,
    "variant": library.stonnx_kernels_variant().decode(),
    "bfloat16": library.stonnx_kernels_bf16(),
    "operators": operators,
    "difference": float(np.abs(plain - kernels).max()),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", directory, ROOT / "kernels"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"this machine cannot build the kernels: {built.stderr.strip().splitlines()[-1]}")
    (found,) = directory.glob("*.whl")
    return found


@pytest.mark.slow
def test_what_is_in_it(wheel: Path) -> None:
    assert wheel.name.startswith("stonnx_kernels-0.1.0-py3-none-")
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {"stonnx_kernels/__init__.py", "stonnx_kernels/libstonnx_kernels.so"}


@pytest.mark.slow
@pytest.mark.parametrize("onnxruntime", ["onnxruntime==1.26.0", "onnxruntime"])
def test_it_runs_without_a_compiler(onnxruntime: str, wheel: Path, tmp_path: Path) -> None:
    model = encoder()
    model.graph.sort()
    outline.run(model, {"Float"})
    graph = tmp_path / "model.onnx"
    ir.save(model, graph)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel, onnxruntime, "numpy"], check=True)
    environment = {**os.environ, "PATH": str(python.parent), "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, "-c", PROGRAM, graph, tmp_path / "profile"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(run.stdout)
    assert found["version"] == found["package"]
    assert found["variant"]
    if found["bfloat16"]:
        assert {"AttentionFloat", "FeedForwardFloat"} <= set(found["operators"])
        assert 0 < found["difference"] < 0.1
    else:
        assert found["difference"] == 0
