"""Texts that are longer than the model takes: counted, and cut, logged or refused as the caller says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_models import LONG, expected

from stonnx import SentenceTransformer, TextTooLongError


def test_too_long_is_an_error_where_that_is_asked_for(bundle: Path) -> None:
    model = SentenceTransformer(bundle, too_long="error", threads=2)
    texts = ["river", "bread", LONG, "sun", LONG + "sun", LONG]
    with pytest.raises(TextTooLongError) as error:
        model.encode(texts)
    assert (error.value.index, error.value.tokens, error.value.limit) == (2, 32, 16)
    assert str(error.value).startswith("Text 2 has 32 tokens, and the model reads 16. Split it, or")
    assert isinstance(error.value, ValueError)
    with pytest.raises(TextTooLongError, match="Text 0 has 32 tokens"):
        model.encode(LONG)
    with pytest.raises(TextTooLongError, match="Text 1500 has 32 tokens"):
        model.encode([f"bread {index}" for index in range(1500)] + [LONG] * 2)
    # A call decides for itself, and everything else goes through.
    np.testing.assert_allclose(model.encode(texts, too_long="truncate"), expected(texts), atol=1e-6)
    model.encode(["bread " * 14])
    model.too_long = "truncate"
    model.encode(LONG)


def test_too_long_with_a_pool(bundle: Path) -> None:
    model = SentenceTransformer(bundle, threads=2)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        texts = [f"bread {index}" for index in range(10)]
        with pytest.raises(TextTooLongError, match="Text 7 has 32 tokens") as error:
            model.encode([*texts[:7], LONG, *texts[7:]], pool=pool, chunk_size=2, too_long="error")
        assert error.value.index == 7
        vectors = model.encode([*texts[:7], LONG, *texts[7:], LONG], pool=pool, chunk_size=2)
        np.testing.assert_allclose(vectors, expected([*texts[:7], LONG, *texts[7:], LONG]), atol=1e-6)
    finally:
        model.stop_multi_process_pool(pool)
    stats = model.last_stats
    assert stats is not None
    assert (stats.texts, stats.unique_texts, stats.truncated.tolist()) == (12, 12, [7, 11])
    assert stats.tokens_per_text.tolist() == [4] * 7 + [16] + [4] * 3 + [16]
    assert stats.batches == 6


def test_too_long_is_logged_where_that_is_asked_for(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    model.encode(["bread", LONG], too_long="truncate")
    model.encode(["bread"], too_long="warn")
    assert not caplog.records
    model.encode(["bread", LONG, "river", LONG], too_long="warn")
    (record,) = caplog.records
    assert record.name == "stonnx"
    assert record.getMessage() == "2 of 4 texts have more tokens than the model reads and lost their end: 1, 3"
    model.encode([LONG] * 20, too_long="warn")
    assert caplog.records[1].getMessage().endswith("lost their end: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")


def test_too_long_has_three_values(bundle: Path, model: SentenceTransformer) -> None:
    match = "too_long must be one of 'truncate', 'warn', 'error', got 'raise'"
    with pytest.raises(ValueError, match=match):
        SentenceTransformer(bundle, too_long="raise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        model.encode("bread", too_long="raise")
    with pytest.raises(ValueError, match=match):
        model.too_long = "raise"  # type: ignore[assignment]


def test_count_tokens(model: SentenceTransformer) -> None:
    assert model.count_tokens("bread rises") == 4
    counts = model.count_tokens(["", "bread", LONG, ("bread", "river")], prompt="the ")
    assert counts.tolist() == [3, 4, 33, 6]
    assert counts.dtype == np.int64
