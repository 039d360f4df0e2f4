"""Verification: what it measures, where it draws the line, and that no bundle gets past it that is wrong."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from stonnx._bundle import Fidelity
from stonnx._engine import Engine
from stonnx._errors import FidelityError
from stonnx_export import RECIPES, export, heads, recipes, verify
from stonnx_export.original_torch import TorchOriginal
from stonnx_export.passes import PassResult
from stonnx_export.verify import check, measure, verification_texts

TOLERANCE = {"cosine_min": 0.999, "max_abs_difference": 1e-3, "batch_invariance": 1e-4}
ORACLE = "the original"
FIGURES = ("cosine_min", "max_abs_difference", "batch_invariance")
# What the message calls each of them.
NAMES = dict(zip(FIGURES, ("lowest cosine", "max_abs_difference", "batch_invariance"), strict=True))


def vectors(scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    return scale * random / np.abs(random).max()


def measured(expected: Any, batched: Any, alone: Any) -> Fidelity:
    arrays = (np.asarray(array, dtype=np.float32) for array in (expected, batched, alone))
    return measure(*arrays, TOLERANCE, ORACLE)


def report(**figures: float) -> Fidelity:
    """A report that is exactly at every tolerance, but for these figures."""
    return Fidelity(compared_with=ORACLE, texts=1, cosine_mean=1.0, **{**TOLERANCE, **figures}, tolerance=TOLERANCE)


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


class TestCheck:
    def test_everything_exactly_at_its_tolerance(self) -> None:
        check(report())

    @pytest.mark.parametrize("figure", FIGURES)
    def test_one_step_beyond_is_refused_by_name(self, figure: str) -> None:
        beyond = math.nextafter(TOLERANCE[figure], 0 if figure == "cosine_min" else 1)
        with pytest.raises(FidelityError, match=NAMES[figure]) as raised:
            check(report(**{figure: beyond}))
        assert [name for name in NAMES.values() if name in str(raised.value)] == [NAMES[figure]]

    @pytest.mark.parametrize("figure", FIGURES)
    def test_nan_is_refused_by_name(self, figure: str) -> None:
        with pytest.raises(FidelityError, match=f"{NAMES[figure]} nan"):
            check(report(**{figure: math.nan}))

    def test_the_message_has_every_figure_and_what_was_compared(self) -> None:
        with pytest.raises(FidelityError) as raised:
            check(report(cosine_min=0.5, max_abs_difference=0.25, batch_invariance=0.125))
        message = str(raised.value)
        for part in (ORACLE, "0.5000000", "0.25", "0.125", "0.999", "0.001", "0.0001"):
            assert part in message

    @pytest.mark.parametrize("nan", [False, True], ids=["worse", "nan"])
    @pytest.mark.parametrize("figure", FIGURES)
    @pytest.mark.parametrize("position", [0, 1])
    def test_the_worst_route_counts(self, figure: str, position: int, nan: bool) -> None:
        bad = math.nan if nan else {"cosine_min": 0.5}.get(figure, 0.5)
        reports = [report(), report()]
        reports[position] = report(**{figure: bad})
        worst = verify._worst(reports)
        assert worst.texts == 2
        assert getattr(worst, figure) == pytest.approx(bad, nan_ok=True)
        with pytest.raises(FidelityError, match=NAMES[figure]):
            check(worst)


@pytest.mark.parametrize("limit", [16, 40, 512, 1024, 8192])
def test_texts_reach_the_limit_and_beyond(limit: int) -> None:
    texts = verification_texts(limit, 2)
    words = {text.count("a") for text in texts if set(text) <= {"a", " "}}
    room = min(limit, 1024) - 2
    assert {0, 1, 2, room - 1, room, room + 1, room + 40} <= words
    assert max(words) == room + 40
    assert "" in texts
    assert len(set(texts)) > 20


class TestVerify:
    """A real bundle against its original, and against originals that differ from it."""

    TOLERANCE = RECIPES["fp32"].tolerance["embedding"]

    @pytest.fixture(scope="module")
    @staticmethod
    def engine(tiny_bundle: Path) -> Engine:
        return Engine(tiny_bundle, threads=1)

    def test_the_right_original(self, engine: Engine, tiny_original: TorchOriginal) -> None:
        fidelity = verify.verify(engine, tiny_original, self.TOLERANCE)
        assert fidelity.compared_with == tiny_original.name
        assert fidelity.texts == len(verification_texts(40, 2))
        assert fidelity.tolerance == self.TOLERANCE
        assert fidelity.cosine_min > 0.999999

    def test_one_text_that_differs(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = tiny_original.outputs("default", list(verification_texts(40, 2)))
        expected[-3, 5] += 2e-5
        monkeypatch.setattr(tiny_original, "outputs", lambda route, texts: expected)
        with pytest.raises(FidelityError, match="max_abs_difference 2e-05"):
            verify.verify(engine, tiny_original, self.TOLERANCE)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param(lambda ids: [*ids[:-1], ids[-1] + 1], "starting", id="last id"),
            pytest.param(lambda ids: ids[:20], "ids instead of 20", id="other limit"),
        ],
    )
    def test_another_tokenizer(
        self,
        engine: Engine,
        tiny_original: TorchOriginal,
        monkeypatch: pytest.MonkeyPatch,
        change: Any,
        message: str,
    ) -> None:
        ids = tiny_original.token_ids
        monkeypatch.setattr(tiny_original, "token_ids", lambda route, text: change(ids(route, text)))
        with pytest.raises(FidelityError, match=f"tokenizer differs.*{message}"):
            verify.verify(engine, tiny_original, self.TOLERANCE)

    def test_only_a_text_beyond_the_limit_differs(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Truncation at the other side."""
        ids = tiny_original.token_ids

        def from_the_left(route: str, text: str) -> list[int]:
            right = ids(route, text)
            return [right[0], *ids(route, text[-60:])[1:]] if len(right) == 40 and "A" not in text else right

        monkeypatch.setattr(tiny_original, "token_ids", from_the_left)
        with pytest.raises(FidelityError, match="tokenizer differs"):
            verify.verify(engine, tiny_original, self.TOLERANCE)


def noise(scale: float) -> recipes.Pass:
    """A pass that adds noise to one matrix of the graph."""

    def run(model: ir.Model) -> PassResult:
        matrices = [value for value in model.graph.initializers.values() if len(value.shape) == 2]
        value = next(value for value in matrices if value.shape[0] == value.shape[1])
        array = value.const_value.numpy()
        random = np.random.default_rng(0).normal(size=array.shape).astype(array.dtype)
        value.const_value = ir.tensor(array + scale * random, name=value.name)
        return PassResult("noise", 1)

    return run


@pytest.mark.usefixtures("traced_once")
class TestExportRefusesWrongGraphs:
    """From the recipe to the error: the same graph passes without the change."""

    @staticmethod
    def export_with(passes: tuple[recipes.Pass, ...], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Path:
        recipe = dataclasses.replace(RECIPES["fp32"], passes=(*RECIPES["fp32"].passes, *passes))
        monkeypatch.setitem(RECIPES, "fp32", recipe)
        return export(*arguments)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, math.nan])
    def test_noise_in_one_weight(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
    ) -> None:
        with pytest.raises(FidelityError, match="differs from sentence-transformers"):
            self.export_with((noise(scale),), monkeypatch, tiny_checkpoint, tmp_path / "bundle")
        assert not list(tmp_path.iterdir())

    def test_no_noise(self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.export_with((noise(0.0),), monkeypatch, tiny_checkpoint, tmp_path / "bundle")
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    @pytest.mark.parametrize("mode", ["cls", "max", "lasttoken", "weightedmean"])
    def test_another_pooling(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        monkeypatch.setitem(heads._POOLINGS, "mean", heads._POOLINGS[mode])
        with pytest.raises(FidelityError, match="lowest cosine"):
            export(tiny_checkpoint, tmp_path / "bundle")
        assert not list(tmp_path.iterdir())

    def test_a_tolerance_that_nothing_meets(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strict = {"embedding": {"cosine_min": 1.1, "max_abs_difference": -1.0, "batch_invariance": -1.0}}
        monkeypatch.setitem(RECIPES, "fp32", dataclasses.replace(RECIPES["fp32"], tolerance=strict))
        with pytest.raises(FidelityError, match=r"lowest cosine.*max_abs_difference.*batch_invariance"):
            export(tiny_checkpoint, tmp_path / "bundle")
        assert not list(tmp_path.iterdir())
