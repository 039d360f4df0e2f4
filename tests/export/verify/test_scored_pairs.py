"""Scored pairs: files that hold some, files that do not, and the drop of the rank correlation that they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from stonnx._errors import InvalidArgumentError
from stonnx_export.verify import scored_pairs
from stonnx_export.verify.scored_pairs import ScoredPairs, read_pairs, similarity_name, spearman_drop

Write = Callable[..., Path]

LINES = [f"first {number},second {number},{number / 2}" for number in range(10)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(lines: Sequence[str] | bytes) -> Path:
        file = tmp_path / "pairs.csv"
        file.write_bytes(lines if isinstance(lines, bytes) else "\n".join([*lines, ""]).encode())
        return file

    return write


class TestFiles:
    @pytest.mark.parametrize("head", [[], ["sentence1,sentence2,score"], ["", "a,b,c"]], ids=str)
    def test_with_and_without_a_header(self, head: list[str], write: Write) -> None:
        pairs = read_pairs(write([*head, *LINES]))
        assert pairs.first == [f"first {number}" for number in range(10)]
        assert pairs.second == [f"second {number}" for number in range(10)]
        assert pairs.scores.tolist() == [number / 2 for number in range(10)]

    def test_the_mark_of_utf_8_is_no_part_of_a_text(self, write: Write) -> None:
        assert read_pairs(write(("\ufeff" + "\n".join(LINES)).encode())).first[0] == "first 0"

    def test_quotes_commas_and_empty_texts(self, write: Write) -> None:
        pairs = read_pairs(write([*LINES, '"a, ""b""","two\nlines",-1e3', ",,7"]))
        assert (pairs.first[10], pairs.second[10], pairs.scores[10]) == ('a, "b"', "two\nlines", -1000)
        assert (pairs.first[11], pairs.second[11]) == ("", "")

    @pytest.mark.parametrize("score", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999"])
    @pytest.mark.parametrize("line", [1, 2, 5, 11])
    def test_scores_that_are_no_finite_numbers(self, score: str, line: int, write: Write) -> None:
        """They would be ranked as the highest or lowest ones, without a word."""
        lines = [*LINES]
        lines.insert(line - 1, f"a,b,{score}")
        with pytest.raises(
            InvalidArgumentError, match=rf"Line {line} of .*pairs\.csv has the score '{score}', which is"
        ):
            read_pairs(write(lines))

    @pytest.mark.parametrize("line", ["a,b,high", "a,b", "a,b,1,2", "a;b;1", "a,b,"])
    def test_lines_that_are_no_pair(self, line: str, write: Write) -> None:
        with pytest.raises(
            InvalidArgumentError, match=r"Line 4 of .*pairs\.csv is not a scored pair: .*sentence1,sentence2"
        ):
            read_pairs(write([*LINES[:3], line, *LINES[3:]]))

    def test_lines_are_those_of_the_file(self, write: Write) -> None:
        """Empty ones count, and so do those within quotes."""
        with pytest.raises(InvalidArgumentError, match=r"Line 6 of "):
            read_pairs(write([LINES[0], "", '"two\nlines",b,1', "", "a,b,c", *LINES]))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(b"", "has 0 scored pairs; at least 10", id="empty"),
            pytest.param(b"sentence1,sentence2,score\n", "has 0 scored pairs", id="a header alone"),
            pytest.param("\n".join(LINES[:9]).encode(), "has 9 scored pairs", id="nine"),
            pytest.param(b"\xff\xfe\x00a,b,1\n" * 20, "is not a CSV file that can be read", id="binary"),
            pytest.param(b'"' + b"a" * 200_000 + b"\n", "is not a CSV file that can be read", id="an open quote"),
            pytest.param(b"a,b,1\n" * 20, "All pairs of .* have the score 1, so there is no order", id="one score"),
        ],
    )
    def test_files_that_are_no_pairs(self, content: bytes, message: str, write: Write) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            read_pairs(write(content))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            InvalidArgumentError, match=r"missing\.csv is not a CSV file that can be read: .*No such file"
        ):
            read_pairs(tmp_path / "missing.csv")


class Vectors:
    """A model of vectors by text, as both the original and the bundle; counts its calls."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = {text: np.asarray(vector, dtype=np.float32) for text, vector in vectors.items()}
        self.calls: list[tuple[str, int]] = []

    def outputs(self, route: str, texts: Sequence[Any]) -> np.ndarray:
        self.calls.append((route, len(texts)))
        return np.stack([self.vectors[text] for text in texts])


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``bundle(vectors, task, similarity, routes)``: an engine that gives these vectors."""

    def bundle(
        model: Vectors, task: str = "embedding", similarity: str | None = None, routes: Sequence[str] = ("default",)
    ) -> Any:
        manifest = SimpleNamespace(task=task, similarity_fn_name=similarity, default_route=routes[-1])
        monkeypatch.setattr(scored_pairs, "outputs", lambda route, _, texts: model.outputs(route, texts))
        named = {name: name for name in routes}
        return SimpleNamespace(manifest=manifest, named_routes=named, route=lambda: manifest.default_route)

    return bundle


def pairs_of(count: int = 12) -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """Pairs with random scores and a random vector for each text."""
    rng = np.random.default_rng(0)
    pairs = ScoredPairs([f"a{n}" for n in range(count)], [f"b{n}" for n in range(count)], rng.permutation(count) / 1.0)
    lengths = rng.uniform(0.1, 10, size=(2, count, 1))
    vectors = (rng.normal(size=(2, count, 4)) * lengths).astype(np.float32)
    return pairs, vectors[0], vectors[1]


def model_of(pairs: ScoredPairs, first: np.ndarray, second: np.ndarray) -> Vectors:
    return Vectors(dict(zip([*pairs.first, *pairs.second], [*first, *second], strict=True)))


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a, b: (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1),
    "dot": lambda a, b: (a * b).sum(1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(1),
}


class TestDrop:
    @pytest.mark.parametrize(
        ("task", "named", "similarity"),
        [
            *(("embedding", name, name) for name in SIMILARITIES),
            ("embedding", None, "cosine"),
            ("sparse", None, "dot"),
            ("sparse", "cosine", "cosine"),
        ],
    )
    def test_by_the_similarity_of_the_model(
        self, task: str, named: str | None, similarity: str, bundle: Callable[..., Any]
    ) -> None:
        pairs, first, second = pairs_of()
        rng = np.random.default_rng(1)
        noisy = [array + rng.normal(scale=2, size=array.shape).astype(np.float32) for array in (first, second)]
        correlations = {
            name: [100 * spearmanr(of(*vectors), pairs.scores).statistic for vectors in ((first, second), noisy)]
            for name, of in SIMILARITIES.items()
        }
        drops = {name: before - after for name, (before, after) in correlations.items()}
        assert len({round(drop, 6) for drop in drops.values()}) == 4, "which similarity it is has to show"
        engine = bundle(model_of(pairs, *noisy), task, named)
        assert similarity_name(engine.manifest) == similarity
        drop = spearman_drop(engine, model_of(pairs, first, second), pairs)
        assert drop == pytest.approx(drops[similarity], abs=1e-9)

    def test_a_similarity_that_stonnx_has_not(self, bundle: Callable[..., Any]) -> None:
        pairs, first, second = pairs_of()
        model = model_of(pairs, first, second)
        with pytest.raises(InvalidArgumentError, match="'hamming' is not a similarity function of stonnx"):
            spearman_drop(bundle(model, similarity="hamming"), model, pairs)

    def test_each_side_takes_its_route(self, bundle: Callable[..., Any]) -> None:
        pairs, first, second = pairs_of()
        model, original = (model_of(pairs, first, second) for _ in range(2))
        assert spearman_drop(bundle(model, routes=("query", "document")), original, pairs) == 0
        assert model.calls == original.calls == [("query", 12), ("document", 12)]

    def test_of_a_reranker_by_its_first_logit(self, bundle: Callable[..., Any]) -> None:
        pairs, _, _ = pairs_of()
        logits = np.random.default_rng(2).normal(size=(2, 12, 3))
        logits[0, :, 0] = pairs.scores
        models = [
            Vectors(dict(zip(zip(pairs.first, pairs.second, strict=True), array, strict=True))) for array in logits
        ]
        drop = spearman_drop(bundle(models[1], "rerank"), models[0], pairs)
        assert drop == pytest.approx(100 * (1 - spearmanr(logits[1, :, 0], pairs.scores).statistic))

    @pytest.mark.parametrize("task", ["embedding", "rerank"])
    def test_the_original_computes_its_vectors_once(self, task: str, bundle: Callable[..., Any]) -> None:
        """However often more layers stay in float32."""
        pairs, first, second = pairs_of()
        vectors: dict[Any, Any] = dict(zip([*pairs.first, *pairs.second], [*first, *second], strict=True))
        vectors |= dict(zip(zip(pairs.first, pairs.second, strict=True), first, strict=True))
        original, known = Vectors(vectors), {"default": np.zeros(1, dtype=np.float32)}
        engine = bundle(Vectors(vectors), task)
        assert spearman_drop(engine, original, pairs, known) == 0
        calls = len(original.calls)
        other = bundle(Vectors({text: vector[::-1] * vector for text, vector in vectors.items()}), task)
        drops = [spearman_drop(other, original, pairs, extra) for extra in (known, None)]
        assert drops[0] == drops[1] != 0
        assert len(original.calls) == 2 * calls, "the second time with nothing known"
        assert known["default"] == 0, "what others keep there stays"
