"""Layers that int8 harms stay in float32 until the tolerance holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from hostile_networks import with_tolerance
from sentence_transformers import SentenceTransformer
from small_graphs import nodes_of

import stonnx
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._errors import FidelityError
from stonnx_export import RECIPES, export, pipeline
from stonnx_export.calibration.texts import CALIBRATION_TEXTS
from stonnx_export.int8 import scales
from stonnx_export.int8.products import groups
from stonnx_export.int8.scales import Quantization

pytestmark = pytest.mark.usefixtures("small_products")

GROUPS_OF_A_LAYER = 4


class TestMixedPrecision:
    @pytest.fixture
    def names(self, hostile_once: TracedOnce) -> list[str]:
        """The groups of the network, in the order of the graph."""
        graph = hostile_once.graph("default")
        pipeline._build(graph, hostile_once._checkpoint, "default", hostile_once, RECIPES["int8"])
        return [group.name for group in groups(graph)]

    def test_what_harms_stays_in_float32(
        self, hostile_checkpoint: Path, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_tolerance(monkeypatch, cosine_mean=0.9)
        everything = read_manifest(export(hostile_checkpoint, tmp_path / "loose", dtype="int8"))
        assert everything.kept == ()
        assert everything.fidelity.cosine_mean < 0.99
        with_tolerance(monkeypatch, cosine_mean=0.99)
        bundle = export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        manifest = read_manifest(bundle)
        assert len(names) == 2 * GROUPS_OF_A_LAYER
        assert manifest.kept == (names[3],)  # the product that reads the hostile neuron
        assert manifest.fidelity.cosine_mean >= 0.99
        assert (manifest.precision, manifest.recipe) == ("int8", "int8")
        check_files(bundle, manifest)
        self.assert_kept(bundle, manifest)
        text = "Nothing about this is hostile."
        expected = SentenceTransformer(str(hostile_checkpoint), device="cpu").encode(text)
        models = [stonnx.SentenceTransformer(path, threads=1) for path in (bundle, tmp_path / "loose")]
        cosines = [model.encode(text) @ expected for model in models]
        assert cosines[0] > 0.98
        assert cosines[1] < cosines[0]

    @staticmethod
    def assert_kept(bundle: Path, manifest: Manifest) -> None:
        products = {str(node.outputs[0].name) for node in nodes_of(ir.load(bundle / "model.onnx"), "MatMul")}
        assert set(manifest.kept) <= products
        card = (bundle / "README.md").read_text(encoding="utf-8")
        assert f"In float32 for accuracy: the matrix products `{'`, `'.join(manifest.kept)}`." in card

    def test_the_first_share_that_is_enough(
        self, hostile_checkpoint: Path, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bound between what an eighth and what a half of the layers reach."""
        reached = []
        for bound in (0.99, 0.0):
            with_tolerance(monkeypatch, cosine_mean=bound)
            reached.append(read_manifest(export(hostile_checkpoint, tmp_path / str(bound), dtype="int8")))
        first = reached[0].fidelity.cosine_mean
        with_tolerance(monkeypatch, cosine_mean=first + (1 - first) / 10)
        manifest = read_manifest(export(hostile_checkpoint, tmp_path / "bundle", dtype="int8"))
        assert len(manifest.kept) in (2, 4)
        assert manifest.kept[0] == names[3]
        assert manifest.fidelity.cosine_mean > first

    def test_half_is_not_enough(
        self,
        hostile_checkpoint: Path,
        names: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with_tolerance(monkeypatch, cosine_min=1.1)
        with pytest.raises(FidelityError) as raised:
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8", show_progress=True)
        message = str(raised.value)
        assert "lowest cosine 0.9" in message
        assert "Nothing was written." in message
        assert f"Half of its layers were kept in float32 already; the one that loses most is {names[3]}." in message
        assert "--dtype fp32" in message
        assert "--calibrate FILE" in message
        assert not list(tmp_path.iterdir())
        stages = [line.partition(" ...")[0] for line in capsys.readouterr().err.splitlines()]
        tried = ["writing the files", "verifying against the original"]
        static = [*tried, "giving every token a scale of its own"]
        assert stages[3:] == ["calibrating", *static, *[*tried, "finding the layers that lose most"] * 4]

    @pytest.mark.parametrize("terminal", [True, False])
    def test_progress_of_long_stages(
        self,
        hostile_checkpoint: Path,
        names: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        terminal: bool,
    ) -> None:
        """On a terminal only: in a file there would be a line of it."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        with_tolerance(monkeypatch, cosine_mean=0.99)
        export(hostile_checkpoint, tmp_path / "bundle", dtype="int8", show_progress=True)
        written = capsys.readouterr().err
        count = len(names)
        for stage in ("calibrating", "finding the layers that lose most"):
            line = next(line for line in written.split("\n") if line.startswith(stage))
            steps = [f"{stage} ... {done} of {count}" for done in range(1, count + 1)]
            *shown, last = [part.rstrip() for part in line.split("\r")]
            assert shown == ([f"{stage} ...", *steps] if terminal else [])
            assert re.fullmatch(rf"{stage} \.\.\. [0-9.]+ s", last)

    def test_more_precision_is_tried_for_figures_only(
        self, hostile_checkpoint: Path, hostile_once: TracedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not for a tokenizer that differs, which it would not help."""
        monkeypatch.setattr(hostile_once, "token_ids", lambda *_: [1, 2, 3])
        monkeypatch.setattr(Quantization, "keep_more", lambda *_: pytest.fail("tried"))
        with pytest.raises(FidelityError, match="tokenizer differs") as raised:
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        assert "layers" not in str(raised.value)
        assert not list(tmp_path.iterdir())

    def test_calibrated_with_texts(
        self, hostile_checkpoint: Path, hostile_once: TracedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their ranges are others, and so are the weights."""
        seen = []
        measure = scales.measure
        monkeypatch.setattr(scales, "measure", lambda *args: seen.append(args[2]) or measure(*args))
        with_tolerance(monkeypatch, cosine_mean=0.9)
        lines = [f"A man is playing {number} flutes in the park." for number in range(20)]
        (tmp_path / "texts.txt").write_text("\n".join(lines))
        given = export(hostile_checkpoint, tmp_path / "a", dtype="int8", calibrate=tmp_path / "texts.txt")
        without = export(hostile_checkpoint, tmp_path / "b", dtype="int8")
        assert seen[0] == [hostile_once.token_ids("default", line) for line in lines]
        # Static scales hold other texts and random tokens as well.
        assert [len(sequences) for sequences in seen[1:]] == [len(CALIBRATION_TEXTS) + 64] * 2
        assert (given / "model.onnx").read_bytes() != (without / "model.onnx").read_bytes()
