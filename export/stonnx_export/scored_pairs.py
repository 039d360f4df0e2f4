"""Scored pairs of texts: how much a bundle loses of the original's rank correlation with the scores of people."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stonnx._engine import Engine
from stonnx._errors import InvalidArgumentError
from stonnx._tokenize import Text
from stonnx_export.original import Original
from stonnx_export.verify import outputs, spearman

_FEWEST = 10
_FORMAT = "Each line has a text, a text and a number, as in STSb: sentence1,sentence2,score"


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts and what people say about how similar they are, or how relevant the second one is."""

    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.float64]


def read_pairs(file: str | os.PathLike[str]) -> ScoredPairs:
    """Read a CSV file of scored pairs; a first line without a number is a header.

    Raises:
        InvalidArgumentError: It cannot be read, or a line is no scored pair, or there are fewer than ten.
    """
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgumentError(f"{file} is no CSV file that can be read: {error}. {_FORMAT}") from error
    pairs = []
    for number, row in enumerate(rows, start=1):
        try:
            first, second, score = row
            pairs.append((first, second, float(score)))
        except ValueError:
            if number > 1:
                raise InvalidArgumentError(
                    f"Line {number} of {file} is no scored pair: {row!r:.100}. {_FORMAT}"
                ) from None
    if len(pairs) < _FEWEST:
        raise InvalidArgumentError(f"{file} has {len(pairs)} scored pairs; at least {_FEWEST} are needed. {_FORMAT}")
    return ScoredPairs([a for a, _, _ in pairs], [b for _, b, _ in pairs], np.array([score for _, _, score in pairs]))


def spearman_drop(engine: Engine, original: Original, pairs: ScoredPairs) -> float:
    """Spearman's correlation x 100 of the original's similarities with the scores, less that of the bundle's.

    A reranker's similarity is its first logit, that of vectors the cosine.
    """
    task = engine.manifest.task
    if task == "rerank":
        texts: list[Text] = list(zip(pairs.first, pairs.second, strict=True))
        name = engine.manifest.default_route
        before, after = original.outputs(name, texts)[:, 0], outputs(engine.route(), task, texts)[:, 0]
    else:
        routes, default = engine.named_routes, engine.manifest.default_route
        sides: list[tuple[str, list[Text]]] = [
            ("query" if "query" in routes else default, [*pairs.first]),
            ("document" if "document" in routes else default, [*pairs.second]),
        ]
        expected = [original.outputs(name, texts) for name, texts in sides]
        actual = [outputs(routes[name], task, texts) for name, texts in sides]
        before, after = _cosines(*expected), _cosines(*actual)
    return 100 * (spearman(before, pairs.scores) - spearman(after, pairs.scores))


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    result: npt.NDArray[np.float32] = ((wide * other).sum(axis=1) / np.maximum(norms, 1e-30)).astype(np.float32)
    return result
