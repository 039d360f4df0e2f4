"""Toy bundles and models of each task, with prompts that change their vectors, for every engine and adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hosts import QUERY, TEXTS
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

import stonnx


@pytest.fixture(scope="package")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of a ``dense``, a ``sparse`` and a ``rerank`` bundle."""
    folder = tmp_path_factory.mktemp("toys")
    prompts = {"query": "question: ", "document": "document: "}
    dense = {"task": "embedding", "embedding_dimension": 8, "prompts": prompts, "similarity_fn_name": "cosine"}
    sparse = {"task": "sparse", "embedding_dimension": 40, "similarity_fn_name": "dot"}
    rerank = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    pairs = pair_graph(toy_table(1, 5), np.float32([0.5]), "Sigmoid")
    return {
        "dense": write_bundle(folder / "dense", {"default": dense_graph(toy_table(8, 5))}, **dense),
        "sparse": write_bundle(folder / "sparse", {"default": sparse_graph(toy_table(40, 6))}, **sparse),
        "rerank": write_bundle(folder / "rerank", {"default": pairs}, **rerank),
    }


@pytest.fixture(scope="module")
def dense(toys: dict[str, Path]) -> stonnx.SentenceTransformer:
    return stonnx.SentenceTransformer(toys["dense"])


@pytest.fixture(scope="module")
def sparse(toys: dict[str, Path]) -> stonnx.SparseEncoder:
    return stonnx.SparseEncoder(toys["sparse"])


@pytest.fixture(scope="module")
def reranker(toys: dict[str, Path]) -> stonnx.CrossEncoder:
    return stonnx.CrossEncoder(toys["rerank"])


@pytest.fixture(scope="module")
def order(reranker: stonnx.CrossEncoder) -> list[tuple[int, float]]:
    """The texts in the order of their scores for the query."""
    return [(row["corpus_id"], float(row["score"])) for row in reranker.rank(QUERY, TEXTS)]
