"""Scored pairs of texts: how much a bundle loses of the original's rank correlation with the scores of people."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import Manifest
from stonnx._engine.engine import Engine
from stonnx._engine.probe import rows_of_texts
from stonnx._errors import InvalidArgumentError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx.util.similarity_function import SimilarityFunction
from stonnx_export.originals.original import Original, in_front
from stonnx_export.verify.compare import outputs
from stonnx_export.verify.figures import spearman

_FEWEST = 10
_FORMAT = "Each line has a text, a text and a number, as in STSb: sentence1,sentence2,score"


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts and people's scores of how similar they are, or of how relevant the second one is."""

    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.float64]


def read_pairs(file: str | os.PathLike[str]) -> ScoredPairs:
    """Read a CSV file of scored pairs; a first line without a number is a header.

    Raises:
        InvalidArgumentError: The file cannot be read, or a line is not a scored pair, or the file has fewer than ten
            pairs, or all pairs have the same score.
    """
    try:
        # Excel marks UTF-8 with a byte order mark, which is not part of the first text.
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgumentError(f"{file} is not a CSV file that can be read: {error}. {_FORMAT}") from error
    pairs = []
    for index, (number, row) in enumerate(rows):
        try:
            first, second, score = row
            pairs.append((first, second, float(score)))
        except ValueError:
            if index > 0:
                raise InvalidArgumentError(
                    f"Line {number} of {file} is not a scored pair: {row!r:.100}. {_FORMAT}"
                ) from None
            continue
        # Sorting puts NaN after infinity, so that a missing score would rank as the highest of all.
        if not math.isfinite(pairs[-1][2]):
            raise InvalidArgumentError(
                f"Line {number} of {file} has the score {score!r}, which is not a finite number. Take the line out, or "
                f"give the pair a score. {_FORMAT}"
            )
    if len(pairs) < _FEWEST:
        raise InvalidArgumentError(f"{file} has {len(pairs)} scored pairs; at least {_FEWEST} are needed. {_FORMAT}")
    if len({score for _, _, score in pairs}) == 1:
        raise InvalidArgumentError(
            f"All pairs of {file} have the score {pairs[0][2]:g}, so there is no order to compare with. {_FORMAT}"
        )
    return ScoredPairs([a for a, _, _ in pairs], [b for _, b, _ in pairs], np.array([score for _, _, score in pairs]))


def spearman_drop(
    engine: Engine,
    original: Original,
    pairs: ScoredPairs,
    known: dict[str, npt.NDArray[np.float32]] | None = None,
) -> float:
    """Spearman's correlation x 100 of the original's similarities with the scores, minus that of the bundle's.

    A reranker's similarity is its first logit. The similarity of vectors is the one that the model itself names.

    Args:
        engine: The bundle.
        original: The original that it was made from.
        pairs: The scored pairs.
        known: The original's similarities. The first call fills it, and the next calls read it.
    """
    known = {} if known is None else known
    if TASKS[engine.manifest.task].gives_labels:
        before, after = _logits(engine, original, pairs, known)
    else:
        before, after = _similarities(engine, original, pairs, known)
    return 100 * (spearman(before, pairs.scores) - spearman(after, pairs.scores))


_Series = npt.NDArray[np.float32]
# The only key of ``known``.
_SIMILARITIES = "similarities of the pairs"


def _logits(
    engine: Engine, original: Original, pairs: ScoredPairs, known: dict[str, _Series]
) -> tuple[_Series, _Series]:
    texts: list[Text] = list(zip(pairs.first, pairs.second, strict=True))
    if _SIMILARITIES not in known:
        known[_SIMILARITIES] = original.outputs(engine.manifest.default_route, texts)[:, 0]
    return known[_SIMILARITIES], outputs(engine.route(), engine.manifest.task, texts)[:, 0]


def _similarities(
    engine: Engine, original: Original, pairs: ScoredPairs, known: dict[str, _Series]
) -> tuple[_Series, _Series]:
    manifest, routes = engine.manifest, engine.named_routes
    similarity = SimilarityFunction.to_similarity_pairwise_fn(similarity_name(manifest))
    sides: list[tuple[str, list[Text]]] = [
        ("query" if "query" in routes else manifest.default_route, [*pairs.first]),
        ("document" if "document" in routes else manifest.default_route, [*pairs.second]),
    ]
    row = TASKS[manifest.task]
    if row.row_mask is not None:
        tasks = list(zip(("query", "document"), sides, strict=True))
        if _SIMILARITIES not in known:
            known[_SIMILARITIES] = similarity(*(original.rows(task, texts) for task, (_, texts) in tasks))
        ours = []
        for task, (_, texts) in tasks:
            called = [in_front(manifest.prompts.get(task) or "", text) for text in texts]
            ours.append(rows_of_texts(engine.route(), row, task, called))
        return known[_SIMILARITIES], similarity(*ours)
    if _SIMILARITIES not in known:
        known[_SIMILARITIES] = similarity(*(original.outputs(name, texts) for name, texts in sides))
    return known[_SIMILARITIES], similarity(*(outputs(routes[name], manifest.task, texts) for name, texts in sides))


def similarity_name(manifest: Manifest) -> str:
    """How the vectors of a bundle are compared: as its model says, or else as its class does by default."""
    return manifest.similarity_fn_name or str(TASKS[manifest.task].similarity)
