"""all-MiniLM-L6-v2 against sentence-transformers: the same ids, the same vectors, whatever is encoded beside them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from stonnx_export.texts import verification_texts

TEXTS = [
    *verification_texts(256, 2),
    *(f"Sentence number {i} about {'a rather long subject, ' * (i % 9)}and its end." for i in range(60)),
]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def alone(minilm: Any) -> np.ndarray:
    return np.stack([minilm.encode(text) for text in TEXTS])


@pytest.fixture(scope="module")
def expected(minilm_original: Any) -> np.ndarray:
    return np.asarray(minilm_original.encode(TEXTS))


def test_vectors_equal_the_original(minilm: Any, expected: np.ndarray) -> None:
    vectors = minilm.encode(TEXTS)
    assert _cosines(expected, vectors).min() >= 0.99999
    assert np.abs(expected - vectors).max() <= 1e-5


def test_stsb_vectors_and_rank_correlation(minilm: Any, minilm_original: Any, stsb: Any) -> None:
    sentences = sorted({sentence for first, second, _ in stsb for sentence in (first, second)})
    expected, vectors = minilm_original.encode(sentences, batch_size=128), minilm.encode(sentences)
    assert _cosines(expected, vectors).min() >= 0.99999
    assert np.abs(expected - vectors).max() <= 1e-5
    row = {sentence: index for index, sentence in enumerate(sentences)}
    firsts, seconds = [row[first] for first, _, _ in stsb], [row[second] for _, second, _ in stsb]
    scores = [score for _, _, score in stsb]
    correlations = [spearmanr(_cosines(e[firsts], e[seconds]), scores).statistic * 100 for e in (expected, vectors)]
    assert abs(correlations[0] - correlations[1]) <= 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 1000])
def test_vectors_do_not_depend_on_batches(minilm: Any, alone: np.ndarray, batch_size: int) -> None:
    assert np.abs(alone - minilm.encode(TEXTS, batch_size=batch_size)).max() <= 1e-6


def test_vectors_do_not_depend_on_order_or_companions(minilm: Any) -> None:
    vectors = minilm.encode(TEXTS)
    for seed in range(3):
        order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS) - 20 * seed)
        assert np.abs(vectors[order] - minilm.encode([TEXTS[index] for index in order])).max() <= 1e-6


def test_many_texts_come_back_in_order(minilm: Any) -> None:
    texts = [f"{'word ' * (index % 23)}number {index}" for index in range(3000)]
    vectors = minilm.encode(texts)
    for index in (0, 1, 127, 128, 129, 1151, 1152, 2999):
        assert np.abs(vectors[index] - minilm.encode(texts[index])).max() <= 1e-6


@pytest.mark.parametrize("tokens", [3, 127, 128, 129, 255, 256, 257, 400])
def test_ids_around_the_limit_equal_the_original(minilm: Any, minilm_original: Any, tokens: int) -> None:
    text = " ".join(["word"] * (tokens - 2))
    expected = minilm_original.preprocess([text])["input_ids"][0].tolist()
    features = minilm.encode(text, output_value=None)
    assert features["input_ids"].tolist() == expected
    assert len(expected) == min(tokens, 256)


@pytest.mark.parametrize("limit", [3, 16, 512])
def test_max_seq_length_can_be_set(minilm_bundle: Any, minilm_original: Any, limit: int) -> None:
    from stonnx import SentenceTransformer

    model, before = SentenceTransformer(minilm_bundle), minilm_original.max_seq_length
    model.max_seq_length = minilm_original.max_seq_length = limit
    try:
        text = "word " * 600
        assert np.abs(model.encode(text) - minilm_original.encode(text)).max() <= 1e-5
        assert model.max_seq_length == limit
        assert len(model.encode(text, output_value=None)["input_ids"]) == limit
    finally:
        minilm_original.max_seq_length = before


def test_eight_threads_get_the_vectors_of_one(minilm: Any) -> None:
    expected = minilm.encode(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: minilm.encode(TEXTS[seed:] + TEXTS[:seed]), range(8)))
    for seed, result in enumerate(results):
        assert np.abs(np.roll(expected, -seed, axis=0) - result).max() <= 1e-6
