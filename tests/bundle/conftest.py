"""A bundle whose files are stand-ins, and a copy of it that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_manifests import FILES

from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import (
    SCHEMA_VERSION,
    Fidelity,
    Manifest,
    ModuleSpec,
    Route,
    Source,
    TensorSpec,
    TokenizerSpec,
    write_manifest,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose files are stand-ins. Tests that write take a copy."""
    directory = tmp_path_factory.mktemp("bundle")
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    tokenizer = TokenizerSpec(
        file="tokenizer.json",
        max_seq_length=256,
        max_positions=512,
        pad_token_id=0,
        pad_token_type_id=0,
        truncation_side="right",
        add_special_tokens=True,
        special_token_ids=(0, 101, 102),
    )
    route = Route(
        graph="model.onnx",
        opset=20,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")), TensorSpec("mask", "int64", ("batch",), True)),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", 384)),),
        tokenizer=tokenizer,
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        task="embedding",
        source=Source("模型/model", None, "ab" * 32),
        architecture="bert",
        modules=(ModuleSpec("Transformer", {"max_seq_length": 256}), ModuleSpec("Normalize")),
        routes={"default": route},
        precision="float32",
        recipe="fp32",
        requires_cpu_features=(),
        embedding_dimension=384,
        normalized=True,
        similarity_fn_name=None,
        prompts={"query": "query: "},
        default_prompt_name=None,
        truncate_dim=None,
        num_labels=None,
        labels=(),
        activation=None,
        files=hash_files(directory, FILES),
        exporter={"stonnx": "0.1.0"},
        fidelity=Fidelity("PyTorch", 38, 1.0, 1.0, 1e-7, 0.0, {"cosine_min": 0.99999}),
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))
