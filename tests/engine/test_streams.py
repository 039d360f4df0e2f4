"""Texts from an iterator: the same vectors, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import LONG, SideBySide, expected

from stonnx import SentenceTransformer, TextTooLongError
from stonnx._model.model import with_limits


def test_a_stream(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_texts=100)(bundle, threads=2)
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for index in range(250):
            taken += 1
            yield f"bread {index}"

    stream = model.encode_stream(texts(), normalize_embeddings=True)
    assert taken == 0
    first = next(stream)
    assert taken == 100
    parts = [first, *stream]
    assert [len(part) for part in parts] == [100, 100, 50]
    whole = model.encode([f"bread {index}" for index in range(250)], normalize_embeddings=True)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert list(model.encode_stream([])) == []


def test_a_stream_is_cut_by_characters_too(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_characters=1000)(bundle, threads=2)
    parts = list(model.encode_stream(["bread " * 50] * 3 + [("bread " * 100, "bread " * 100), "bread", "sun"]))
    assert [len(part) for part in parts] == [4, 2]


def test_a_stream_of_queries(bundle: Path) -> None:
    model = SentenceTransformer(bundle, prompts={"query": "the ", "document": "of "})
    for task, prompt in (("query", "the "), ("document", "of "), (None, "")):
        (part,) = model.encode_stream(["bread", "river"], task=task)  # type: ignore[arg-type]
        np.testing.assert_allclose(part, expected([f"{prompt}bread", f"{prompt}river"]), atol=1e-6)


def test_errors_of_a_stream(bundle: Path) -> None:
    model = with_limits(SideBySide, stream_texts=10)(bundle, threads=2)
    texts: list[Any] = [f"bread {index}" for index in range(30)]
    texts[23] = None
    with pytest.raises(TypeError, match="Input 3 is not a text but None") as error:
        list(model.encode_stream(texts))
    assert error.value.index == 23  # type: ignore[attr-defined]
    assert error.value.__notes__ == ["Its index is counted from input 20 of the stream."]
    texts[23] = LONG
    with pytest.raises(TextTooLongError, match="Text 23 has 32 tokens"):
        list(model.encode_stream(texts, too_long="error"))
    with pytest.raises(TypeError, match="inputs is a single str"):
        model.encode_stream("bread")
    with pytest.raises(ValueError, match="task must be one of 'query', 'document', got"):
        model.encode_stream([], task="passage")  # type: ignore[arg-type]
    for precision in ("int8", "uint8"):
        with pytest.raises(NotImplementedError, match="takes its ranges from all texts"):
            model.encode_stream([], precision=precision)
