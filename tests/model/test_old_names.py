"""Members that have another name in newer versions of sentence-transformers."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from stonnx._model.old_arguments import warn_once


def test_tokenize_is_deprecated(minilm: Any, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert minilm.tokenize(["a"])["input_ids"].tolist() == minilm.preprocess(["a"])["input_ids"].tolist()
    told = [record.message for record in caplog.records]
    assert told == ["The `tokenize` method is deprecated, please use `preprocess` instead."]
