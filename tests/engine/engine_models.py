"""What the tests of the engine expect of their toy models, and a spy on the runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy_bundles import MAX_SEQ_LENGTH, toy_table, toy_tokenizer

from stonnx import SentenceTransformer
from stonnx._device.session import Session
from stonnx._model.model import with_limits

WIDTH = 8

# The single-thread session is there from the first text on.
SideBySide = with_limits(SentenceTransformer, tokens_before_second_session=0)


def expected(texts: list[str], limit: int = MAX_SEQ_LENGTH) -> np.ndarray:
    """The vectors of the toy network, computed here."""
    tokenizer, table = toy_tokenizer(), toy_table(WIDTH, 5)
    tokenizer.enable_truncation(limit)
    return np.stack([table[tokenizer.encode(text).ids].mean(axis=0) for text in texts])


class Spy:
    """Shapes, sessions and threads of all runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.threads: list[int] = []
        self.freeing: list[bool] = []
        self.loaded: list[int] = []
        run, load = Session.run, Session.__init__

        def spying_run(session: Session, outputs: Any, feeds: Any, *arguments: Any, **options: Any) -> Any:
            self.shapes.append(feeds["input_ids"].shape)
            self.threads.append(session.threads)
            self.freeing.append(options["free_memory"])
            before()
            return run(session, outputs, feeds, *arguments, **options)

        def spying_load(session: Session, *arguments: Any, **options: Any) -> None:
            load(session, *arguments, **options)
            self.loaded.append(session.threads)

        monkeypatch.setattr(Session, "run", spying_run)
        monkeypatch.setattr(Session, "__init__", spying_load)


LONG = "bread " * 30  # 32 tokens, of which the model reads 16
