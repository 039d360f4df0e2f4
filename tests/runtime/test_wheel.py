"""The runtime as it is shipped: the built wheel in an environment that has nothing of PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TEXTS = ["The weather is lovely today.", "He drove to the stadium."]

PROGRAM = """
import json, sys
import onnxruntime
before = set(sys.modules)
import stonnx
from stonnx import SentenceTransformer
imported = set(sys.modules)
model = SentenceTransformer(sys.argv[1])
vectors = model.encode(sys.argv[2:])
model.similarity(vectors, vectors)
print(json.dumps({
    "file": stonnx.__file__,
    "vectors": vectors.tolist(),
    "imported": sorted({name.partition(".")[0] for name in imported - before}),
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing but `stonnx[cpu]`."""
    directory = tmp_path_factory.mktemp("runtime")
    venv.create(directory, with_pip=True)
    interpreter = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [str(interpreter), "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    return interpreter


def _run(python: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=python.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_runtime_needs_no_pytorch(python: Path, minilm: Any, minilm_bundle: Path) -> None:
    report = json.loads(_run(python, "-c", PROGRAM, str(minilm_bundle), *TEXTS))
    assert str(python.parents[1]) in report["file"], "the test must run the wheel, not the working tree"
    assert np.abs(np.array(report["vectors"]) - minilm.encode(TEXTS)).max() <= 1e-6
    heavy = {"torch", "transformers", "sentence_transformers", "onnx", "scipy", "sklearn", "stonnx_export"}
    assert not heavy & set(report["modules"])
    # The Hub's client is imported when a name is looked up, a directory needs none.
    assert "huggingface_hub" not in report["imported"]


def test_dependencies_are_three(python: Path) -> None:
    program = "from importlib.metadata import requires; print(*requires('stonnx'), sep='\\n')"
    base = [line for line in _run(python, "-c", program).splitlines() if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in base) == ["huggingface-hub", "numpy", "tokenizers"]


def test_both_packages_are_typed_and_shipped(python: Path) -> None:
    program = (
        "import stonnx, pathlib; site = pathlib.Path(stonnx.__file__).parents[1];"
        "print(*(p for p in ('stonnx/py.typed', 'stonnx_export/py.typed', 'stonnx_export/passes/shapes.py')"
        " if not (site / p).is_file()))"
    )
    assert _run(python, "-c", program).strip() == ""


def test_exporting_without_the_exporter_names_the_command(python: Path, minilm_checkpoint: Path) -> None:
    script = python.with_name("stonnx")
    result = subprocess.run([str(script), "export", str(minilm_checkpoint)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert 'pip install "stonnx[cpu,export]"' in result.stderr
    program = f"from stonnx import SentenceTransformer; SentenceTransformer({str(minilm_checkpoint)!r})"
    result = subprocess.run([str(python), "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"stonnx export {minilm_checkpoint} -o DIRECTORY" in result.stderr
