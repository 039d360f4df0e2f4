"""The runtime as it is shipped: the built wheel in an environment that has nothing of PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

import stonnx
from stonnx import SentenceTransformer
from stonnx._bundle.manifest import read_manifest
from stonnx._device import kernels
from stonnx._tasks import TASKS
from stonnx_export.originals import load

ROOT = Path(__file__).parents[2]
TEXTS = ["The weather is lovely today.", "He drove to the stadium."]

SENTENCES = [f"The {color} boat has {number} sails." for color in ("red", "blue") for number in range(2, 8)]

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


# Vectors of many bundles at once, by the names of their directories.
MANY = """
import json, sys
import numpy as np
import stonnx
vectors = {}
for directory in json.loads(sys.argv[1]):
    with open(directory + "/stonnx.json") as file:
        task = json.load(file)["task"]
    classes = {"embedding": stonnx.SentenceTransformer, "sparse": stonnx.SparseEncoder, "rerank": stonnx.CrossEncoder}
    model = classes[task](directory, threads=1)
    texts = json.loads(sys.argv[2])
    if task == "rerank":
        rows = model.predict([[text, texts[0]] for text in texts], activation_fn="identity").reshape(1, -1)
    else:
        rows = model.encode(texts, **({"convert_to_sparse_tensor": False} if task == "sparse" else {}))
    vectors[directory] = np.asarray(rows).tolist()
print(json.dumps(vectors))
"""
# What kernels of other versions could do otherwise: a causal decoder with fewer heads for keys, attention with a bias
# for each distance, SPLADE's vocabulary in pieces, and a last layer that computes the first token alone.
ZOO = (
    "Qwen/Qwen3-Embedding-0.6B",
    "all-mpnet-base-v2",
    "naver/splade-v3-distilbert",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
)


@pytest.fixture(scope="module", autouse=True)
def _without_kernels() -> Iterator[None]:
    """As in the environments that these tests make, which have none."""
    off = kernels.Unusable("the wheel alone has none", unexpected=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "find", lambda operators=1: off)
        yield


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
    return _environment(tmp_path_factory.mktemp("runtime"), f"{wheel}[cpu]")


@pytest.fixture(scope="module")
def oldest_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the oldest onnxruntime that the project admits."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = extras["cpu"]
    oldest = next(bound.version for bound in Requirement(requirement).specifier if bound.operator == ">=")
    return _environment(tmp_path_factory.mktemp("oldest"), str(wheel), f"onnxruntime=={oldest}.*")


def _environment(directory: Path, *requirements: str) -> Path:
    venv.create(directory, with_pip=True)
    interpreter = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [str(interpreter), "-m", "pip", "install", "--quiet", *requirements]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    return interpreter


def _run(python: Path, *arguments: str, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    command = [str(python), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, cwd=python.parent)
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


@pytest.mark.parametrize("interpreter", ["oldest_python", "python"])
@pytest.mark.parametrize(("bundle", "closeness"), [("minilm_bundle", 0.999999), ("minilm_int8_bundle", 0.999)])
def test_the_oldest_and_the_newest_onnxruntime_give_the_same(
    interpreter: str, bundle: str, closeness: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """int8 leans on what [tokens, 1] scales do, which no release documents.

    Kernels that differ in the last bit make values round to the next of 255 steps: int8 is close, not equal.
    """
    directory = request.getfixturevalue(bundle)
    python = request.getfixturevalue(interpreter)
    report = json.loads(_run(python, "-c", PROGRAM, str(directory), *TEXTS, STONNX_HOME=str(tmp_path)))
    assert [*(tmp_path / "probes").iterdir()], "the probe has to have run there"
    here = SentenceTransformer(directory).encode(TEXTS)
    assert np.vecdot(np.array(report["vectors"]), here).min() >= closeness


@pytest.fixture(scope="module")
def zoo_bundles(tmp_path_factory: pytest.TempPathFactory, shared_directory: Path) -> dict[Path, str]:
    """The bundles of ZOO in fp32 and int8, and the recipe of each."""
    from zoo import build_checkpoint, row
    from zoo.exported import CachedOriginal

    from stonnx_export import export
    from stonnx_export.passes import splade_chunks
    from stonnx_export.verify import compare

    directory, bundles = tmp_path_factory.mktemp("zoo"), {}
    for name in ZOO:
        model = row(name)
        checkpoint = build_checkpoint(model, shared_directory / "zoo")
        original = CachedOriginal(checkpoint, model, shared_directory / "zoo")
        for dtype in ("fp32", "int8"):
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(load, "_load_original", lambda _, original=original: original)
                monkeypatch.setattr(splade_chunks, "CHUNK", 200)  # the vocabularies of the table are small
                # How close they are is tested elsewhere.
                monkeypatch.setattr(compare, "verification_texts", lambda *_: [*TEXTS])
                monkeypatch.setattr(compare, "sentences", lambda: [*SENTENCES])
                bundles[export(checkpoint, directory / f"{model.slug}-{dtype}", dtype=dtype, name=name)] = dtype
    return bundles


def _vectors(directory: Path, texts: list[str]) -> np.ndarray:
    """What MANY gives for a bundle; of a reranker all logits as one row."""
    task = read_manifest(directory).task
    model = getattr(stonnx, TASKS[task].class_name)(directory, threads=1)
    if task == "rerank":
        return model.predict([[text, texts[0]] for text in texts], activation_fn="identity").reshape(1, -1)
    return np.asarray(model.encode(texts, **({"convert_to_sparse_tensor": False} if task == "sparse" else {})))


@pytest.mark.slow
@pytest.mark.parametrize("interpreter", ["oldest_python", "python"])
def test_architectures_on_the_oldest_and_the_newest_onnxruntime(
    interpreter: str, zoo_bundles: dict[Path, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    python = request.getfixturevalue(interpreter)
    directories = json.dumps([str(directory) for directory in zoo_bundles])
    texts = [*TEXTS, "a " * 50, "naïve café"]
    there = json.loads(_run(python, "-c", MANY, directories, json.dumps(texts), STONNX_HOME=str(tmp_path)))
    assert len([*(tmp_path / "probes").iterdir()]) == len(zoo_bundles), "the probe of each has to have run there"
    for directory, dtype in zoo_bundles.items():
        here = _vectors(directory, texts)
        vectors = np.array(there[str(directory)])
        cosines = np.vecdot(vectors, here) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(here, axis=1)
        assert cosines.min() >= (0.999999 if dtype == "fp32" else 0.999), directory.name


@pytest.mark.slow
@pytest.mark.needs("transformers", "5", "the graphs that are counted here")
def test_the_bundles_have_what_could_differ(zoo_bundles: dict[Path, str]) -> None:
    rewrites = [read_manifest(directory).rewrites for directory, dtype in zoo_bundles.items() if dtype == "fp32"]
    decoder, mpnet, splade, reranker = rewrites
    assert decoder["attention_lengths"] == mpnet["fuse_attention"] == 2
    assert splade["splade_chunks"] == 1
    assert reranker["first_token"] > 0


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
