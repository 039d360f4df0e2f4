"""What the tests of the engine expect of their toy models."""

from __future__ import annotations

import numpy as np
from toy_bundles import MAX_SEQ_LENGTH, toy_table, toy_tokenizer

from stonnx import SentenceTransformer
from stonnx._model.model import with_limits

WIDTH = 8

# The single-thread session is there from the first text on.
SideBySide = with_limits(SentenceTransformer, tokens_before_second_session=0)


def expected(texts: list[str], limit: int = MAX_SEQ_LENGTH) -> np.ndarray:
    """The vectors of the toy network, computed here."""
    tokenizer, table = toy_tokenizer(), toy_table(WIDTH, 5)
    tokenizer.enable_truncation(limit)
    return np.stack([table[tokenizer.encode(text).ids].mean(axis=0) for text in texts])


LONG = "bread " * 30  # 32 tokens, of which the model reads 16
