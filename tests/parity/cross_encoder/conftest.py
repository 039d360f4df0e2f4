"""A reranker with one score and a classifier with three labels, in stonnx and in the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rerankers import LABELS, make_original, write_reranker

import stonnx


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp("rerank") / "one", 1, "Sigmoid")


@pytest.fixture(scope="module")
def one(bundle: Path) -> stonnx.CrossEncoder:
    """A reranker, with a sigmoid."""
    return stonnx.CrossEncoder(bundle)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> stonnx.CrossEncoder:
    """A classifier into three labels, which gives logits."""
    path = tmp_path_factory.mktemp("rerank") / "three"
    return stonnx.CrossEncoder(write_reranker(path, 3, "Identity", labels=LABELS))


@pytest.fixture(scope="module")
def original_one() -> Any:
    return make_original(1)


@pytest.fixture(scope="module")
def original_three() -> Any:
    return make_original(3)
