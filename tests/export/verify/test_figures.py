"""The figures of a verification: what is measured, and where the line is drawn."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from stonnx._bundle.manifest import Fidelity
from stonnx._errors import FidelityError
from stonnx_export import RECIPES
from stonnx_export.texts import sentences
from stonnx_export.verify import compare
from stonnx_export.verify.figures import check, measure

ORACLE = "the original"
# What the message calls each figure. The first ones are bounded from below, the others from above.
AT_LEAST = {
    "cosine_mean": "mean cosine",
    "cosine_p1": "1st percentile of the cosine",
    "cosine_min": "lowest cosine",
    "invariance_cosine": "lowest cosine of a text alone and in a batch or with padding",
    "neighbours_overlap": "overlap of the ten nearest neighbours",
    "active_overlap": "overlap of active dimensions",
    "rank_correlation": "rank correlation of the scores",
}
AT_MOST = {
    "max_abs_difference": "max_abs_difference",
    "batch_invariance": "batch_invariance",
    "spearman_drop": "drop of Spearman's correlation x 100",
}
NAMES = AT_LEAST | AT_MOST
TOLERANCE = dict.fromkeys(AT_LEAST, 0.999) | {
    "max_abs_difference": 1e-3,
    "batch_invariance": 1e-4,
    "spearman_drop": 0.1,
}


def vectors(scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    return scale * random / np.abs(random).max()


def measured(expected: Any, batched: Any, alone: Any, *padded: Any) -> Fidelity:
    arrays = [np.asarray(array, dtype=np.float32) for array in (expected, batched, alone)]
    more = np.array([alone, *padded], dtype=np.float32)
    return measure(*arrays, more, TOLERANCE, ORACLE)


def report(**figures: float) -> Fidelity:
    """A report that is exactly at every tolerance, but for these figures."""
    return Fidelity(compared_with=ORACLE, texts=1, **{**TOLERANCE, **figures}, tolerance=TOLERANCE)


def named(message: str) -> list[str]:
    """The figures that a message names with a value."""
    return [
        figure for figure, name in NAMES.items() if re.search(rf"(: |; ){re.escape(name)} (nan|[\d.e-]+),", message)
    ]


class TestMeasure:
    def test_equal_vectors(self) -> None:
        fidelity = measured(vectors(), vectors(), vectors())
        assert (fidelity.compared_with, fidelity.texts, fidelity.tolerance) == (ORACLE, 5, TOLERANCE)
        assert fidelity.cosine_mean == pytest.approx(1, abs=1e-12)
        assert fidelity.cosine_min == pytest.approx(1, abs=1e-12)
        assert (fidelity.max_abs_difference, fidelity.batch_invariance) == (0, 0)
        check(fidelity)

    @pytest.mark.parametrize("swapped", [False, True], ids=["alone is off", "the batch is off"])
    def test_figures(self, swapped: bool) -> None:
        right, wrong = [[1, 0], [0, 1]], [[1, 0], [0.6, 0.8]]
        fidelity = measured(right, *((wrong, right) if swapped else (right, wrong)))
        assert fidelity.cosine_min == pytest.approx(0.8, abs=1e-6)
        assert fidelity.cosine_mean == pytest.approx(0.95, abs=1e-6)
        assert fidelity.max_abs_difference == pytest.approx(0.6, abs=1e-6)
        assert fidelity.batch_invariance == pytest.approx(0.6, abs=1e-6)

    def test_a_bundle_that_is_off_alike_everywhere_is_invariant(self) -> None:
        fidelity = measured([[1, 0]], [[0.9, 0]], [[0.9, 0]])
        assert fidelity.max_abs_difference == pytest.approx(0.1, abs=1e-6)
        assert fidelity.batch_invariance == 0

    @pytest.mark.parametrize(("scale", "divisor"), [(1e-3, 1), (1, 1), (2, 2), (1000, 1000)])
    def test_differences_are_relative_to_large_vectors(self, scale: float, divisor: float) -> None:
        """Rounding grows with the vectors, which need not be normalized."""
        expected = vectors(scale)
        batched, alone = expected.copy(), expected.copy()
        batched[2, 3] += 0.5
        alone[2, 3] += 0.25
        fidelity = measured(expected, batched, alone)
        assert fidelity.max_abs_difference == pytest.approx(0.5 / divisor, rel=1e-3)
        assert fidelity.batch_invariance == pytest.approx(0.25 / divisor, rel=1e-3)

    @pytest.mark.parametrize(("ours", "cosine"), [(0.0, 1.0), (1e-3, 0.0)], ids=["also zero", "not zero"])
    def test_zero_vectors(self, ours: float, cosine: float) -> None:
        """A static embedding of a text without tokens is zero."""
        expected, values = vectors(), vectors()
        expected[1], values[1] = 0, ours
        assert measured(expected, values, values).cosine_min == pytest.approx(cosine, abs=1e-12)
        assert measured(values, expected, expected).cosine_min == pytest.approx(cosine, abs=1e-12)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("where", ["expected", "batched", "alone", "everywhere"])
    def test_numbers_that_are_none(self, where: str, bad: float) -> None:
        arrays = {name: vectors() for name in ("expected", "batched", "alone")}
        for name, array in arrays.items():
            if where in (name, "everywhere"):
                array[4, 7] = bad
        fidelity = measured(**arrays)
        assert not fidelity.cosine_min >= TOLERANCE["cosine_min"]
        assert not fidelity.max_abs_difference <= TOLERANCE["max_abs_difference"]
        assert (where == "expected") == (fidelity.batch_invariance == 0)
        with pytest.raises(FidelityError):
            check(fidelity)

    def test_the_first_percentile(self) -> None:
        """Of a hundred and one texts, alone and in a batch, exactly one is worse than it."""
        expected = np.tile(np.array([[1, 0]]), (101, 1))
        angles = np.linspace(0, 1, 101)
        turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        fidelity = measured(expected, turned, turned)
        assert fidelity.cosine_p1 == pytest.approx(np.cos(0.99), abs=1e-3)
        assert fidelity.cosine_min == pytest.approx(np.cos(1), abs=1e-6)
        assert fidelity.cosine_mean == pytest.approx(np.cos(angles).mean(), abs=1e-6)

    def test_invariance_is_between_the_bundle_and_itself(self) -> None:
        fidelity = measured([[1, 0], [0, 1]], [[1, 0], [1, 0]], [[1, 0], [0.6, 0.8]])
        assert fidelity.invariance_cosine == pytest.approx(0.6, abs=1e-6)
        assert measured([[1, 0]], [[0, 1]], [[0, 2]]).invariance_cosine == pytest.approx(1, abs=1e-12)

    def test_padding_must_change_nothing(self) -> None:
        same, other = [[1, 0], [0, 1]], [[1, 0], [0.8, 0.6]]
        fidelity = measured(same, same, same, same, other)
        assert fidelity.invariance_cosine == pytest.approx(0.6, abs=1e-6)
        assert fidelity.batch_invariance == pytest.approx(0.8, abs=1e-6)
        assert fidelity.cosine_min == 1
        assert math.isnan(measured(same, same, same, [[1, 0], [0, math.nan]]).batch_invariance)


class TestAgreement:
    def test_neighbours(self) -> None:
        """Of six texts on an arc, each has its two nearest; one of them moves to the other end."""
        angles = np.array([0, 1, 2.1, 3.3, 4.6, 6]) / 4
        arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        angles[0] = 7 / 4
        moved = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        assert compare.neighbours_overlap(arc, arc, 2) == 1
        # 0: none of two stays; 1 loses 0, 2 keeps both, 3 too, 4 keeps both, 5 gets 0 for one.
        assert compare.neighbours_overlap(arc, moved, 2) == pytest.approx((0 + 1 + 2 + 2 + 2 + 1) / 12)

    def test_neighbours_are_by_cosine_and_never_the_text_itself(self) -> None:
        random = np.random.default_rng(0)
        expected = random.normal(size=(40, 8)).astype(np.float32)
        lengths = random.uniform(1e-3, 1e3, size=(40, 1)).astype(np.float32)
        assert compare.neighbours_overlap(expected, expected * lengths) == 1
        # Ten of the other 39 by chance.
        other = random.normal(size=(40, 8)).astype(np.float32)
        assert compare.neighbours_overlap(expected, other) == pytest.approx(10 / 39, abs=0.08)

    def test_vectors_of_zeros_have_neighbours_too(self) -> None:
        expected = np.zeros((20, 4), dtype=np.float32)
        assert compare.neighbours_overlap(expected, expected) == 1

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param([1, 2, 3, 4, 5], [10, 20, 40, 30, 50], id="distinct"),
            pytest.param([1, 1, 2, 2, 3, 3], [1, 2, 2, 3, 3, 1], id="ties in both"),
            pytest.param([0, 0, 0, 1], [4, 3, 2, 1], id="ties in one"),
            pytest.param([-1.5, 2.5, 2.5, 0], [-3, 5, 5, 0], id="the same order"),
            pytest.param([1, 2, 3], [3, 2, 1], id="the other way round"),
        ],
    )
    def test_rank_correlation_equals_scipy(self, first: list[float], second: list[float]) -> None:
        assert compare.spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
        assert compare.spearman(second, first) == pytest.approx(compare.spearman(first, second), abs=1e-12)

    def test_rank_correlation_of_many(self) -> None:
        random = np.random.default_rng(0)
        first = random.integers(0, 30, size=500).astype(np.float32)
        second = first + random.normal(size=500).astype(np.float32) * 10
        assert compare.spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [([2, 2, 2], [5, 5, 5], 1), ([2, 2, 2], [1, 2, 3], 0), ([1, 2, 3], [2, 2, 2], 0), ([1], [2], 1)],
        ids=str,
    )
    def test_rank_correlation_of_what_does_not_vary(
        self, first: list[float], second: list[float], expected: float
    ) -> None:
        assert compare.spearman(first, second) == expected

    def test_active_dimensions(self) -> None:
        expected = np.array([[1, 2, 0, 0], [0, 0, 3, 4]], dtype=np.float32)
        actual = np.array([[9, 0, 5, 0], [0, 0, 1, 1]], dtype=np.float32)
        assert compare._agreement("sparse", expected, actual)["active_overlap"] == 3 / 5
        assert compare._agreement("sparse", expected, expected * 2)["active_overlap"] == 1
        assert compare._agreement("sparse", expected * 0, actual * 0)["active_overlap"] == 1

    def test_logits_of_the_worst_label(self) -> None:
        expected = np.array([[1, 1], [2, 2], [3, 3]], dtype=np.float32)
        actual = np.array([[1, 3], [2, 2], [3, 1]], dtype=np.float32)
        assert compare._agreement("rerank", expected, actual) == {"rank_correlation": pytest.approx(-1)}

    def test_neighbours_among_the_last_texts(self) -> None:
        """The others are strings of one letter and the like, whose neighbours say nothing."""
        expected = np.random.default_rng(0).normal(size=(len(sentences()) + 1, 8)).astype(np.float32)
        actual = expected.copy()
        actual[0] = -1
        assert compare._agreement("embedding", expected, actual) == {"neighbours_overlap": 1}
        actual[1] = -actual[1]
        assert compare._agreement("embedding", expected, actual)["neighbours_overlap"] < 1


class TestCheck:
    def test_everything_exactly_at_its_tolerance(self) -> None:
        check(report())

    @pytest.mark.parametrize("figure", NAMES)
    def test_one_step_beyond_is_refused_by_name(self, figure: str) -> None:
        beyond = math.nextafter(TOLERANCE[figure], 0 if figure in AT_LEAST else 1)
        with pytest.raises(FidelityError) as raised:
            check(report(**{figure: beyond}))
        assert named(str(raised.value)) == [figure]

    @pytest.mark.parametrize("figure", NAMES)
    def test_nan_is_refused_by_name(self, figure: str) -> None:
        with pytest.raises(FidelityError) as raised:
            check(report(**{figure: math.nan}))
        assert named(str(raised.value)) == [figure]

    @pytest.mark.parametrize("figure", NAMES)
    def test_a_figure_that_nothing_compared_has(self, figure: str) -> None:
        """Without scored pairs, without logits: there is nothing to refuse."""
        check(report(**{figure: None}))

    @pytest.mark.parametrize("figure", NAMES)
    def test_a_figure_without_a_bound_is_for_information(self, figure: str) -> None:
        rest = {name: bound for name, bound in TOLERANCE.items() if name != figure}
        check(dataclasses.replace(report(**{figure: 0.5}), tolerance=rest))

    def test_the_message_has_every_figure_and_what_was_compared(self) -> None:
        with pytest.raises(FidelityError) as raised:
            check(report(cosine_min=0.5, max_abs_difference=0.25, batch_invariance=0.125))
        message = str(raised.value)
        for part in (ORACLE, "0.5000000", "0.25", "0.125", "0.999", "0.001", "0.0001"):
            assert part in message

    def test_it_says_what_padding_does(self) -> None:
        with pytest.raises(FidelityError, match=r"reads the padding.*Set that row to zero"):
            check(report(batch_invariance=0.125))
        with pytest.raises(FidelityError) as raised:
            check(report(cosine_min=0.5))
        assert "padding" not in str(raised.value)

    @pytest.mark.parametrize("nan", [False, True], ids=["worse", "nan"])
    @pytest.mark.parametrize("figure", NAMES)
    @pytest.mark.parametrize("position", [0, 1])
    def test_the_worst_route_counts(self, figure: str, position: int, nan: bool) -> None:
        bad = math.nan if nan else 0.5
        reports = [report(), report()]
        reports[position] = report(**{figure: bad})
        worst = compare._worst(reports)
        assert worst.texts == 2
        assert getattr(worst, figure) == pytest.approx(bad, nan_ok=True)
        with pytest.raises(FidelityError, match=re.escape(NAMES[figure])):
            check(worst)

    def test_a_figure_that_one_route_has(self) -> None:
        """Overlaps of the route that reads documents, where that of queries is a table."""
        reports = [report(active_overlap=None), report(active_overlap=0.9995)]
        assert compare._worst(reports).active_overlap == 0.9995
        assert compare._worst(reports[:1]).active_overlap is None

    def test_recipes_bound_figures_that_there_are(self) -> None:
        for recipe in RECIPES.values():
            for bounds in recipe.tolerance.values():
                assert bounds.keys() <= NAMES.keys()
                assert any(name.startswith("cosine") for name in bounds)
                assert {"invariance_cosine", "batch_invariance"} & bounds.keys()
