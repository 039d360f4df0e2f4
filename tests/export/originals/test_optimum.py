"""What optimum-cli really writes, as the source of bundles; only the environment with transformers 4.57 has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import build_checkpoint, row

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx._tasks import TASKS
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals.from_torch import TorchOriginal
from stonnx_export.texts import verification_texts

pytestmark = pytest.mark.needs("optimum-onnx", "0.1", "optimum-cli")

TOLERANCE = {"embedding": 1e-5, "sparse": 1e-4, "rerank": 1e-4}


@dataclass(frozen=True)
class Case:
    """A model of the table, how optimum-cli is called for it, and the modules that the graph alone tells, if any."""

    name: str
    options: tuple[str, ...] = ("--task", "feature-extraction")
    modules: tuple[str, ...] = ()


CASES = (
    Case("all-MiniLM-L6-v2", modules=("Transformer", "Pooling", "Normalize")),
    Case("all-mpnet-base-v2", modules=("Transformer", "Pooling", "Normalize")),
    Case("msmarco-distilbert-dot-v5", modules=("Transformer", "Pooling")),
    Case("Qwen/Qwen3-Embedding-0.6B", modules=("Transformer", "Pooling", "Normalize")),
    Case("LaBSE"),
    Case("naver/splade-cocondenser-ensembledistil", ("--task", "fill-mask", "--library-name", "transformers")),
    Case("cross-encoder/ms-marco-MiniLM-L6-v2", ("--task", "text-classification"), modules=("Transformer",)),
)


@dataclass(frozen=True)
class Written:
    """A checkpoint, and the directory that optimum-cli made of it."""

    case: Case
    checkpoint: Path
    directory: Path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def written(
    request: pytest.FixtureRequest, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    case: Case = request.param
    checkpoint = build_checkpoint(row(case.name), shared_directory / "zoo")
    directory = tmp_path_factory.mktemp("optimum") / "model"
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(checkpoint)]
    subprocess.run([*command, *case.options, str(directory)], check=True, capture_output=True)
    return Written(case, checkpoint, directory)


def check(written: Written, bundle: Path) -> None:
    """The bundle gives what sentence-transformers gives."""
    model_row = row(written.case.name)
    texts: list[Any] = verification_texts(60, 2)[:24]
    if model_row.task == "rerank":
        texts = list(zip(texts, texts[5:] + texts[:5], strict=True))
    expected = TorchOriginal(read_checkpoint(written.checkpoint, model_row.task)).outputs("default", texts)
    model = getattr(stonnx, TASKS[model_row.task].class_name)(bundle)
    if model_row.task == "rerank":
        result = model.predict(texts, activation_fn="identity").reshape(expected.shape)
    elif model_row.task == "sparse":
        result = model.encode(texts, convert_to_sparse_tensor=False)
    else:
        result = model.encode(texts, prompt="")
    assert np.abs(result - expected).max() <= TOLERANCE[model_row.task] * max(1.0, np.abs(expected).max())


def test_beside_the_files_of_the_checkpoint(written: Written, tmp_path: Path) -> None:
    """As a repository that ships onnx/model.onnx: everything of the checkpoint but PyTorch's weights of the network."""
    repository = tmp_path / "repository"
    shutil.copytree(written.checkpoint, repository, ignore=lambda folder, _: weights(Path(folder), written.checkpoint))
    (repository / "onnx").mkdir()
    for file in written.directory.glob("model.onnx*"):
        shutil.copy(file, repository / "onnx")
    bundle = export(repository, tmp_path / "bundle", source="onnx", name=written.case.name)
    check(written, bundle)


def weights(folder: Path, checkpoint: Path) -> list[str]:
    return ["model.safetensors"] if folder == checkpoint else []


def test_alone(written: Written, tmp_path: Path) -> None:
    """Without modules.json the graph says the modules, or the export is refused: never a wrong model."""
    if not written.case.modules:
        with pytest.raises(stonnx.StonnxError, match=r"no modules\.json|token embeddings"):
            export(written.directory, tmp_path / "bundle")
        return
    bundle = export(written.directory, tmp_path / "bundle")
    assert tuple(module.type for module in read_manifest(bundle).modules) == written.case.modules
    check(written, bundle)
