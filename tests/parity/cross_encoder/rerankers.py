"""Toy rerankers in stonnx and in the original, and what they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
from toy_bundles import pair_graph, toy_table, write_bundle
from toy_networks import pair_network

# What the sums over tokens leave of float32, at scores of up to about 2.
TOLERANCE: dict[str, float] = {"rtol": 1e-6, "atol": 1e-6}
LABELS = ("contradiction", "entailment", "neutral")
PROMPTS = {"query": "question : ", "shout": "zzz "}
QUERY = "what is the city of bread ?"
DOCUMENTS = [
    "the river flows",
    "",
    "bread rises and the sun shines and the river flows " * 2,
    "Straße 42 ?",
    "the city of bread",
    "a",
]
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("the river", "a"), ("a", "the river"), (DOCUMENTS[2], QUERY)]


def score_tables(labels: int) -> tuple[np.ndarray, np.ndarray]:
    return toy_table(labels, labels, active=0.5), np.linspace(0.5, -1, labels, dtype=np.float32)


def write_reranker(directory: Path, count: int, operator: str, **fields: Any) -> Path:
    graphs = {"default": pair_graph(*score_tables(count), operator)}
    facts = {"task": "rerank", "num_labels": count, "activation": operator.lower(), "prompts": PROMPTS}
    return write_bundle(directory, graphs, **(facts | fields))


def make_original(labels: int) -> Any:
    class Original(sentence_transformers.CrossEncoder):
        # The original asks its transformer, which a toy network does not have.
        num_labels = labels

    return Original(modules=[pair_network(*score_tables(labels))], device="cpu", prompts=PROMPTS)


def assert_same_scores(expected: Any, result: Any) -> None:
    assert type(result) is type(expected)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, **TOLERANCE)
