"""The same toy network in stonnx and in sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
from sparse_networks import DOCUMENT_TABLE, FACTS, PROMPTS, QUERY_TABLE, TEXTS
from toy_bundles import sparse_graph, write_bundle
from toy_networks import sparse_network

import stonnx


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Path:
    return write_bundle(directory / "plain", {"default": sparse_graph(DOCUMENT_TABLE)}, prompts=PROMPTS, **FACTS)


@pytest.fixture(scope="module")
def routed_bundle(directory: Path) -> Path:
    graphs = {"query": sparse_graph(QUERY_TABLE), "document": sparse_graph(DOCUMENT_TABLE)}
    return write_bundle(directory / "routed", graphs, default_route="document", **FACTS)


@pytest.fixture(scope="module")
def model(bundle: Path) -> stonnx.SparseEncoder:
    return stonnx.SparseEncoder(bundle)


@pytest.fixture(scope="module")
def original() -> Any:
    modules = [sparse_network(DOCUMENT_TABLE)]
    return sentence_transformers.SparseEncoder(modules=modules, device="cpu", prompts=PROMPTS)


@pytest.fixture(scope="module")
def vectors(model: stonnx.SparseEncoder) -> Any:
    return model.encode(TEXTS)
