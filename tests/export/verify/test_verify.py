"""Verification of whole bundles: no bundle gets past it that is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from stonnx._bundle.bundle import open_bundle
from stonnx._engine.engine import Engine
from stonnx._errors import FidelityError
from stonnx_export import RECIPES, export, recipes, texts
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.heads import pooling
from stonnx_export.originals.from_torch import TorchOriginal
from stonnx_export.passes import PassResult
from stonnx_export.texts import sentences, verification_texts
from stonnx_export.verify import compare


def test_sentences_have_neighbours() -> None:
    """Each shares its first half with seven others, and its second half with as many."""
    texts = sentences()
    assert len(set(texts)) == len(texts) == 128
    starts, ends = [Counter(text[:10] for text in texts), Counter(text[-10:] for text in texts)]
    assert set(starts.values()) == set(ends.values()) == {8}


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
    # Texts that are encoded as queries and as documents too.
    CALLED = len(texts.CALLED_TEXTS)

    @pytest.fixture(scope="module")
    @staticmethod
    def engine(tiny_bundle: Path) -> Engine:
        return Engine(open_bundle(tiny_bundle), threads=1)

    def test_the_right_original(self, engine: Engine, tiny_original: TorchOriginal) -> None:
        fidelity = compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)
        assert fidelity.compared_with == tiny_original.name
        assert fidelity.texts == len(verification_texts(40, 2)) + len(sentences()) + 2 * self.CALLED
        assert fidelity.tolerance == self.TOLERANCE
        assert fidelity.cosine_min > 0.999999

    def test_the_original_is_run_once(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the original gives for them is computed once, however often the bundle is made again."""
        calls: list[int] = []
        outputs = tiny_original.outputs

        def counted(route: str, texts: Any) -> np.ndarray:
            calls.append(len(texts))
            return outputs(route, texts)

        monkeypatch.setattr(tiny_original, "outputs", counted)
        known: dict[str, np.ndarray] = {}
        reports = [compare.verify_fidelity(engine, tiny_original, self.TOLERANCE, known=known) for _ in range(2)]
        assert reports[0] == reports[1]
        assert reports[0].texts == len(verification_texts(40, 2)) + 128 + 2 * self.CALLED
        assert calls == [reports[0].texts - 2 * self.CALLED]
        assert list(known) == ["default"]
        assert reports[0].neighbours_overlap == 1
        assert (reports[0].active_overlap, reports[0].rank_correlation, reports[0].spearman_drop) == (None, None, None)

    def test_one_text_that_differs(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = tiny_original.outputs("default", [*verification_texts(40, 2), *sentences()])
        expected[len(verification_texts(40, 2)) - 3, 5] += 2e-5
        monkeypatch.setattr(tiny_original, "outputs", lambda route, texts: expected)
        with pytest.raises(FidelityError, match="max_abs_difference 2e-05"):
            compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)

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
        monkeypatch.setattr(tiny_original, "token_ids", lambda *arguments: change(ids(*arguments)))
        with pytest.raises(FidelityError, match=f"tokenizer differs.*{message}"):
            compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)

    def test_only_a_text_beyond_the_limit_differs(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Truncation at the other side."""
        ids = tiny_original.token_ids

        def from_the_left(route: str, text: str, task: str | None = None, prompt: str = "") -> list[int]:
            right = ids(route, text, task, prompt)
            return (
                [right[0], *ids(route, text[-60:], task, prompt)[1:]] if len(right) == 40 and "A" not in text else right
            )

        monkeypatch.setattr(tiny_original, "token_ids", from_the_left)
        with pytest.raises(FidelityError, match="tokenizer differs"):
            compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)

    @pytest.mark.needs("sentence-transformers", "6", "limits for tasks")
    @pytest.mark.parametrize("task", ["query", "document"])
    def test_a_limit_of_a_task(self, engine: Engine, tiny_checkpoint: Path, tmp_path: Path, task: str) -> None:
        """The bundle was made without it, so the ids of the task differ."""
        changed = with_settings(tiny_checkpoint, tmp_path, {f"{task}_length": 8})
        with pytest.raises(FidelityError, match=f"differs from the original's for the {task} .* instead of 8"):
            compare.verify_fidelity(engine, TorchOriginal(read_checkpoint(changed)), self.TOLERANCE)

    @pytest.mark.parametrize("task", ["query", "document"])
    def test_another_prompt(
        self, engine: Engine, tiny_original: TorchOriginal, monkeypatch: pytest.MonkeyPatch, task: str
    ) -> None:
        monkeypatch.setitem(tiny_original._model.prompts, task, "look up: ")
        with pytest.raises(FidelityError, match="lowest cosine"):
            compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)

    @pytest.mark.parametrize(("ours", "theirs"), [("query", "query"), ("query", "document"), (None, "query")])
    def test_the_default_prompt(
        self,
        engine: Engine,
        tiny_original: TorchOriginal,
        monkeypatch: pytest.MonkeyPatch,
        ours: str | None,
        theirs: str,
    ) -> None:
        """What a plain encode gives, as far as the bundle says that there is a default."""
        monkeypatch.setattr(engine, "manifest", dataclasses.replace(engine.manifest, default_prompt_name=ours))
        monkeypatch.setattr(tiny_original._model, "default_prompt_name", theirs)
        if ours != theirs and ours:
            with pytest.raises(FidelityError, match="lowest cosine"):
                compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)
            return
        fidelity = compare.verify_fidelity(engine, tiny_original, self.TOLERANCE)
        extra = (3 if ours else 2) * self.CALLED
        assert fidelity.texts == len(verification_texts(40, 2)) + len(sentences()) + extra


def with_settings(checkpoint: Path, directory: Path, settings: dict[str, Any]) -> Path:
    """A copy of a checkpoint whose Transformer has some settings more."""
    changed = shutil.copytree(checkpoint, directory / "changed")
    file = changed / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return changed


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
        monkeypatch.setitem(pooling.POOLINGS, "mean", pooling.POOLINGS[mode])
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
