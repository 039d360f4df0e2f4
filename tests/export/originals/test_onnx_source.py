"""Bundles made from ONNX files of other exporters, against sentence-transformers and bundles made from PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from zoo import build_checkpoint, row
from zoo.exported import exported_once

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._engine.engine import Engine
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals.from_torch import TorchOriginal
from stonnx_export.texts import verification_texts

OUTPUTS = {"embedding": "sentence_embedding", "sparse": "sparse_embedding", "rerank": "logits"}
TOLERANCE = {"embedding": 1e-5, "sparse": 1e-4, "rerank": 1e-4}
# What optimum-cli writes beside its graph: no modules.json, and nothing that belongs to it.
OPTIMUM_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Case:
    """A model of the table, and the ONNX file of another exporter."""

    name: str
    auto: Any
    output: str
    opset: int = 14
    weights_beside: bool = False
    # What its tokenizer leaves out is an input of the file all the same: exporters ask the network what it takes.
    token_types: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}, opset {self.opset}"


CASES = (
    Case("all-MiniLM-L6-v2", AutoModel, "last_hidden_state", token_types=True),
    Case("distiluse-base-multilingual-cased-v2", AutoModel, "last_hidden_state", opset=11),
    Case("all-mpnet-base-v2", AutoModel, "last_hidden_state", weights_beside=True),
    Case("paraphrase-multilingual-mpnet-base-v2", AutoModel, "last_hidden_state", opset=13),
    Case("intfloat/multilingual-e5-small", AutoModel, "last_hidden_state", token_types=True),
    Case("zoo/every-pooling", AutoModel, "last_hidden_state", opset=11, token_types=True),
    Case("naver/splade-cocondenser-ensembledistil", AutoModelForMaskedLM, "logits", token_types=True),
    Case("opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill", AutoModelForMaskedLM, "logits"),
    Case("cross-encoder/nli-roberta-base", AutoModelForSequenceClassification, "logits", opset=11),
    Case(
        "cross-encoder/ms-marco-MiniLM-L6-v2", AutoModelForSequenceClassification, "logits", opset=14, token_types=True
    ),
)


class Read(torch.nn.Module):
    """A network with its inputs in order, and outputs of it."""

    def __init__(self, network: Any, names: tuple[str, ...], read: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.names, self.read = network, names, read

    def forward(self, *values: torch.Tensor) -> Any:
        feeds = dict(zip(self.names, values, strict=True))
        return self.read(self.network(**feeds), feeds["attention_mask"])


def write_onnx(
    network: Any, read: Callable[..., Any], path: Path, outputs: list[str], *, token_types: bool, **options: Any
) -> None:
    """Write the graph of a network, with the names that optimum and transformers.onnx give the dimensions."""
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if token_types else ()))
    ids = torch.full((2, 7), 5)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    if options.pop("dynamo"):
        dimensions = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        options |= {"dynamo": True, "dynamic_shapes": (tuple(dimensions for _ in names),), "verbose": False}
    else:
        axes = {0: "batch_size", 1: "sequence_length"}
        options |= {"dynamo": False, "dynamic_axes": dict.fromkeys((*names, *outputs), axes)}
    path.parent.mkdir(exist_ok=True)
    arguments = (tuple(feeds[name] for name in names), str(path))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch's exporters say about themselves
        wrapped = Read(network.eval(), names, read)
        torch.onnx.export(wrapped, *arguments, input_names=list(names), output_names=outputs, **options)


def put_weights_beside(path: Path) -> None:
    """As optimum stores large models."""
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    assert (path.parent / "model.onnx_data").is_file()


def hub_repository(case: Case, checkpoint: Path, directory: Path) -> Path:
    """The checkpoint with onnx/model.onnx, and without PyTorch's weights of the network."""
    shutil.copytree(checkpoint, directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    network = case.auto.from_pretrained(str(checkpoint), attn_implementation="eager")

    def read(result: Any, _: torch.Tensor) -> Any:
        return result.last_hidden_state if case.auto is AutoModel else result.logits

    path = directory / "onnx" / "model.onnx"
    options = {"dynamo": False, "opset_version": case.opset, "token_types": case.token_types}
    write_onnx(network, read, path, [case.output], **options)
    if case.weights_beside:
        put_weights_beside(path)
    return directory


@dataclass(frozen=True)
class Pair:
    """A checkpoint, its bundle from PyTorch, and its bundle from an ONNX file."""

    case: Case
    checkpoint: Path
    torch: Path
    onnx: Path

    @property
    def manifests(self) -> tuple[Manifest, Manifest]:
        return read_manifest(self.onnx), read_manifest(self.torch)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def pair(request: pytest.FixtureRequest, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    model = row(case.name)
    checkpoint, bundle = exported_once(model, shared_directory / "zoo")
    directory = tmp_path_factory.mktemp("source")
    source = hub_repository(case, checkpoint, directory / "repository")
    return Pair(case, checkpoint, bundle, export(source, directory / "bundle", source="onnx", name=case.name))


def run(bundle: Path, route: str, texts: list[Any]) -> np.ndarray:
    engine = Engine(open_bundle(bundle))
    output = OUTPUTS[engine.manifest.task]
    rows: dict[int, np.ndarray] = {}
    for batch in engine.route(route).stream(texts, [output], batch_size=8):
        rows |= {int(index): values for index, values in zip(batch.indices, batch.outputs[0], strict=True)}
    return np.stack([rows[index] for index in range(len(texts))])


def assert_same(result: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
    wide, other = result.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    assert ((wide * other).sum(axis=1)[norms > 0] / norms[norms > 0]).min(initial=1) >= 0.99999
    assert (norms > 0).sum() >= len(norms) - 3, "most rows are zero, so the comparison says nothing"


class TestHubRepositories:
    def test_results_equal_those_of_both(self, pair: Pair) -> None:
        """The original never saw the ONNX file, nor the bundle's own oracle."""
        checkpoint = read_checkpoint(pair.checkpoint)
        original = TorchOriginal(checkpoint)
        texts: list[Any] = verification_texts(80, 2)[:36]
        if checkpoint.task == "rerank":
            texts = list(zip(texts, texts[7:] + texts[:7], strict=True))
        for route in checkpoint.routes:
            result = run(pair.onnx, route, texts)
            assert_same(result, original.outputs(route, texts), TOLERANCE[checkpoint.task])
            assert_same(result, run(pair.torch, route, texts), TOLERANCE[checkpoint.task])

    def test_the_bundle_is_of_the_same_kind(self, pair: Pair) -> None:
        ours, theirs = pair.manifests
        for field in ("task", "architecture", "modules", "routes", "prompts", "default_prompt_name", "normalized"):
            assert getattr(ours, field) == getattr(theirs, field), field
        for field in ("embedding_dimension", "similarity_fn_name", "num_labels", "labels", "activation"):
            assert getattr(ours, field) == getattr(theirs, field), field
        assert (ours.precision, ours.recipe, ours.default_route) == ("float32", "fp32", theirs.default_route)
        assert ours.files.keys() == theirs.files.keys()

    def test_the_report_names_the_file(self, pair: Pair) -> None:
        ours, theirs = pair.manifests
        heads = "" if ours.task == "rerank" else ", heads in numpy"
        assert ours.fidelity is not None
        assert theirs.fidelity is not None
        assert (
            ours.fidelity.compared_with
            == f"onnx/model.onnx of the checkpoint with onnxruntime {onnxruntime.__version__}{heads}"
        )
        assert ours.fidelity.texts == theirs.fidelity.texts
        assert ours.fidelity.max_abs_difference <= ours.fidelity.tolerance["max_abs_difference"]

    def test_the_graph_is_clean(self, pair: Pair) -> None:
        for name in (route.graph for route in read_manifest(pair.onnx).routes.values()):
            model = onnx.load(pair.onnx / name)
            onnx.checker.check_model(model)
            assert "batch_size" not in str(model.graph.input) + str(model.graph.output)
            producers = {output: node for node in model.graph.node for output in node.output}
            softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
            assert not [node for node in softmaxes if producers[node.input[0]].op_type == "Flatten"]


@pytest.fixture(scope="module")
def optimum_graph(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``optimum-cli export onnx --library-name sentence_transformers`` makes of the tiny checkpoint."""
    directory = tmp_path_factory.mktemp("optimum") / "tiny"
    directory.mkdir()
    for name in OPTIMUM_FILES:
        if (tiny_checkpoint / name).is_file():
            shutil.copy(tiny_checkpoint / name, directory)

    def read(result: Any, mask: torch.Tensor) -> Any:
        tokens, weights = result.last_hidden_state, mask.unsqueeze(-1).float()
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return tokens, torch.nn.functional.normalize(mean, dim=-1)

    network = AutoModel.from_pretrained(str(tiny_checkpoint))
    outputs = ["token_embeddings", "sentence_embedding"]
    write_onnx(network, read, directory / "model.onnx", outputs, dynamo=True, opset_version=18, token_types=True)
    assert onnx.load(directory / "model.onnx").opset_import[0].version == 18
    return directory


class TestOptimum:
    TEXTS = verification_texts(30, 2)

    def test_the_head_of_the_graph_says_the_chain(
        self, optimum_graph: Path, tiny_original: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bundle = export(optimum_graph, tmp_path / "bundle")
        manifest = read_manifest(bundle)
        assert [module.type for module in manifest.modules] == ["Transformer", "Pooling", "Normalize"]
        assert manifest.modules[1].settings["modes"] == ["mean"]
        assert manifest.routes["default"].tokenizer.max_seq_length == 40  # as its tokenizer_config.json says
        assert manifest.fidelity is not None
        assert manifest.fidelity.compared_with.startswith("model.onnx of the checkpoint with onnxruntime")
        assert "has no modules.json" in caplog.text
        assert_same(run(bundle, "default", self.TEXTS[:20]), tiny_vectors(tiny_original, self.TEXTS[:20]), 1e-5)

    def test_modules_json_says_it_where_it_is(
        self, optimum_graph: Path, tiny_checkpoint: Path, tiny_original: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_checkpoint, tmp_path / "source")
        (tmp_path / "source" / "model.safetensors").unlink()
        shutil.copytree(optimum_graph, tmp_path / "source", dirs_exist_ok=True)
        bundle = export(tmp_path / "source", tmp_path / "bundle")
        manifest = read_manifest(bundle)
        assert manifest.routes["default"].tokenizer.max_seq_length == 40
        assert dict(manifest.prompts) == {"query": "find: ", "document": ""}
        assert_same(run(bundle, "default", self.TEXTS), tiny_vectors(tiny_original, self.TEXTS), 1e-5)


def tiny_vectors(original: Any, texts: list[str]) -> np.ndarray:
    """What sentence-transformers makes of texts, whichever way the fixture holds it."""
    if isinstance(original, SentenceTransformer):
        return np.stack([original.encode(text, prompt="") for text in texts])
    return np.asarray(original.outputs("default", texts))


WITHOUT_PYTORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "sentence_transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
EXPORT_AND_LOAD = """
import json
import stonnx
import stonnx_export.pipeline
from stonnx import cli

status = cli.main(["export", sys.argv[1], "-o", sys.argv[2], "--quiet"])
if status == 0:
    model = getattr(stonnx, sys.argv[3])(sys.argv[1])  # exported again, into the cache
    texts = sys.argv[4:]
    if isinstance(model, stonnx.CrossEncoder):
        result = model.predict([texts, texts[::-1]])
    else:
        result = model.encode(texts)
    print(json.dumps((result.toarray() if isinstance(model, stonnx.SparseEncoder) else result).tolist()))
assert not {"torch", "transformers", "sentence_transformers"} & set(sys.modules)
sys.exit(status)
"""


class TestWithoutPyTorch:
    TEXTS = ("The weather is lovely today.", "a")

    def run(
        self, checkpoint: Path, tmp_path: Path, kind: str = "SentenceTransformer"
    ) -> subprocess.CompletedProcess[str]:
        code = WITHOUT_PYTORCH + EXPORT_AND_LOAD
        return subprocess.run(
            [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "bundle"), kind, *self.TEXTS],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "STONNX_HOME": str(tmp_path / "home")},
        )

    def test_a_checkpoint_with_an_onnx_file(
        self, optimum_graph: Path, tiny_checkpoint: Path, tiny_original: Any, tmp_path: Path
    ) -> None:
        """PyTorch's weights are there too, and left alone."""
        shutil.copytree(tiny_checkpoint, tmp_path / "source")
        shutil.copy(optimum_graph / "model.onnx", tmp_path / "source")
        for data in optimum_graph.glob("model.onnx[._]data"):
            shutil.copy(data, tmp_path / "source")
        result = self.run(tmp_path / "source", tmp_path)
        assert result.returncode == 0, result.stderr
        assert "cosine to the original mean 1.0000000" in result.stdout
        vectors = np.array(json.loads(result.stdout.splitlines()[-1]))
        assert_same(vectors, tiny_vectors(tiny_original, list(self.TEXTS)), 1e-5)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("naver/splade-cocondenser-ensembledistil", "SparseEncoder"),
            ("cross-encoder/ms-marco-MiniLM-L6-v2", "CrossEncoder"),
        ],
    )
    def test_a_sparse_model_and_a_reranker(self, shared_directory: Path, tmp_path: Path, name: str, kind: str) -> None:
        checkpoint = build_checkpoint(row(name), shared_directory / "zoo")
        source = hub_repository(next(case for case in CASES if case.name == name), checkpoint, tmp_path / "source")
        result = self.run(source, tmp_path, kind)
        assert result.returncode == 0, result.stderr
        original = getattr(sentence_transformers, kind)(str(checkpoint), device="cpu")
        texts = list(self.TEXTS)
        if kind == "CrossEncoder":
            expected = original.predict([texts, texts[::-1]])
        else:
            expected = np.stack([original.encode([text], convert_to_sparse_tensor=False)[0] for text in texts])
        found = np.array(json.loads(result.stdout.splitlines()[-1]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))

    def test_a_table_of_vectors_needs_no_network(self, shared_directory: Path, tmp_path: Path) -> None:
        checkpoint = build_checkpoint(row("minishlab/potion-base-8M"), shared_directory / "zoo")
        result = self.run(checkpoint, tmp_path)
        assert result.returncode == 0, result.stderr
        expected = SentenceTransformer(str(checkpoint), device="cpu").encode(list(self.TEXTS))
        assert_same(np.array(json.loads(result.stdout.splitlines()[-1])), expected, 1e-5)

    def test_a_checkpoint_without_one(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        result = self.run(tiny_checkpoint, tmp_path)
        assert result.returncode == 1
        assert "torch is not installed" in result.stderr
        assert 'pip install "stonnx[cpu,export]"' in result.stderr
        assert "--source onnx" in result.stderr
        assert "Traceback" not in result.stderr
