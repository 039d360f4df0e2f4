"""Toy bundles of each task, and models of the dense one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_models import WIDTH, SideBySide
from toy_bundles import dense_bundle, pair_graph, toy_table, wide_sparse_graph, write_bundle

from stonnx import SentenceTransformer
from stonnx._model.model import with_limits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_bundle(tmp_path_factory.mktemp("toy") / "dense", width=WIDTH)


@pytest.fixture
def model(bundle: Path) -> SentenceTransformer:
    return SideBySide(bundle, threads=2)


@pytest.fixture(scope="module")
def model_of_small_windows(bundle: Path) -> SentenceTransformer:
    return with_limits(SideBySide, first_window=3, window=7, window_characters=200)(bundle, threads=2)


@pytest.fixture(scope="module")
def sparse_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs = {"default": wide_sparse_graph(500, 3)}
    return write_bundle(tmp_path_factory.mktemp("toy") / "sparse", graphs, task="sparse", embedding_dimension=500)


@pytest.fixture(scope="module")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs = {"default": pair_graph(toy_table(1, 1), np.float32([0.5]), "Sigmoid")}
    fields = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    return write_bundle(tmp_path_factory.mktemp("toy") / "pairs", graphs, **fields)
