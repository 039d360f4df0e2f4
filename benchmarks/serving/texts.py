"""Texts with their expected vectors, each computed alone before any server is under load."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import stonnx
from benchmarks.serving.client import Reply, embedding_body
from benchmarks.texts import mixed_texts, texts

# Number of texts of each kind. A server that keeps earlier answers would gain from repeated texts; none of these does.
_COUNT = 200
BULK = 2048
# Under overload, thousands of texts wait, and a server computes equal waiting texts once.
_WAITING = 6000
_LONG_CHARACTERS = 8_000


@dataclass(frozen=True)
class Known:
    """Texts, the vector of each computed alone, and the bodies of their requests."""

    texts: Sequence[str]
    vectors: np.ndarray
    bodies: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.bodies)

    def difference(self, reply: Reply, index: int) -> float:
        """The largest difference between an answer and the vector of the text alone."""
        (row,) = rows_of(reply)
        return float(np.abs(row - self.vectors[index]).max())


@dataclass(frozen=True)
class Bulk:
    """Many texts in one request."""

    body: bytes
    vectors: np.ndarray
    texts: Sequence[str]

    def difference(self, reply: Reply) -> float:
        return float(np.abs(np.stack(rows_of(reply)) - self.vectors).max())


@dataclass(frozen=True)
class Texts:
    """All texts that the shapes send."""

    short: Known
    mix: Known
    long: Known
    bulk: Bulk
    waiting: Known


def rows_of(reply: Reply) -> list[np.ndarray]:
    """The vectors of an answer, in the order of its inputs, whether it is base64 or numbers."""
    rows = [item["embedding"] for item in sorted(json.loads(reply.body)["data"], key=lambda item: item["index"])]
    return [
        np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else np.array(row, np.float32)
        for row in rows
    ]


def known_texts(bundle: Path, *, is_short: bool = False, model: str = "model") -> Texts:
    """The texts, with vectors that a separate model computes one by one. It computes those of overload together,
    because there are thousands.

    Args:
        bundle: The bundle of the model.
        is_short: Make only short texts and the mix.
        model: The model's name in requests.
    """
    encoder = stonnx.SentenceTransformer(bundle)
    words = texts(1, _LONG_CHARACTERS // 3, seed=9)[0]

    def alone(some: Sequence[str]) -> np.ndarray:
        return np.stack([encoder.encode(text) for text in some])

    def known(some: Sequence[str]) -> Known:
        return Known(some, alone(some), [embedding_body(text, model) for text in some])

    many = mixed_texts(1 if is_short else BULK, seed=3)
    crowd = texts(1 if is_short else _WAITING, 12, seed=4)
    return Texts(
        # Twelve words and two special tokens are 14 tokens.
        short=known(texts(_COUNT, 12, seed=1)),
        mix=known(mixed_texts(_COUNT, seed=2)),
        long=known([words[:_LONG_CHARACTERS]]),
        bulk=Bulk(embedding_body(many, model), alone(many), many),
        waiting=Known(crowd, encoder.encode(crowd), [embedding_body(text, model) for text in crowd]),
    )
