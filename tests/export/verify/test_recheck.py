"""``stonnx verify``: the whole report whatever it says, an exit status that scripts can trust, and clear refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixture_types import TracedOnce
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from stonnx import cli
from stonnx._bundle.manifest import Fidelity, read_manifest, write_manifest
from stonnx._errors import FidelityError, ModelNotFoundError, UnsupportedError
from stonnx_export import RECIPES, recheck
from stonnx_export.recheck import verify_bundle
from stonnx_export.texts import sentences
from stonnx_export.verify import compare
from stonnx_export.verify.figures import ToleranceError

FIGURES = (
    "cosine_mean",
    "cosine_p1",
    "cosine_min",
    "max_abs_difference",
    "batch_invariance",
    "invariance_cosine",
    "neighbours_overlap",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scored pairs."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    texts = [text.replace('"', "'") for text in sentences()]
    file.write_text("".join(f'"{texts[n]}","{texts[n + 40]}",{n % 5}\n' for n in range(12)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def other_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint after a little more training, so to speak: another table of words."""
    directory = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("other") / "tiny")
    file = next(directory.rglob("model.safetensors"))
    weights = load_file(file)
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = weights[name] + np.random.default_rng(0).normal(size=weights[name].shape).astype(np.float32)
    save_file(weights, file, metadata={"format": "pt"})
    return directory


def changed(bundle: Path, directory: Path, **fields: object) -> Path:
    """A copy of a bundle whose manifest says something else."""
    copy = shutil.copytree(bundle, directory / "changed")
    write_manifest(copy, dataclasses.replace(read_manifest(copy), **fields))  # type: ignore[arg-type]
    return copy


class TestWithin:
    def test_the_report_is_the_exporters(
        self, tiny_bundle: Path, tiny_checkpoint: Path, traced_once: TracedOnce
    ) -> None:
        fidelity, exported = verify_bundle(tiny_bundle, tiny_checkpoint), read_manifest(tiny_bundle).fidelity
        assert exported is not None
        assert fidelity.texts == exported.texts
        assert fidelity.compared_with == exported.compared_with
        assert fidelity.tolerance == RECIPES["fp32"].tolerance["embedding"]
        for name in FIGURES:
            assert getattr(fidelity, name) == pytest.approx(getattr(exported, name), abs=1e-6), name
        assert fidelity.spearman_drop is None

    def test_with_scored_pairs(
        self, tiny_bundle: Path, tiny_checkpoint: Path, pairs: Path, traced_once: TracedOnce
    ) -> None:
        assert verify_bundle(tiny_bundle, tiny_checkpoint, pairs=pairs).spearman_drop == pytest.approx(0, abs=1e-3)

    def test_the_command(
        self,
        tiny_bundle: Path,
        tiny_checkpoint: Path,
        pairs: Path,
        traced_once: TracedOnce,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        command = ["verify", str(tiny_bundle), "--against", str(tiny_checkpoint), "--pairs", str(pairs)]
        assert cli.main(command) == 0
        out, err = capsys.readouterr()
        head, *lines = out.splitlines()
        assert head.startswith(f"{tiny_bundle} is within its tolerance of sentence-transformers")
        assert [line.split()[0] for line in lines] == [
            field.name for field in dataclasses.fields(Fidelity) if field.name in (*FIGURES, "spearman_drop")
        ]
        assert "tolerance 0.99999" in next(line for line in lines if line.startswith("cosine_min"))
        assert err == ""

    def test_json(
        self, tiny_bundle: Path, tiny_checkpoint: Path, traced_once: TracedOnce, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["verify", str(tiny_bundle), "--against", str(tiny_checkpoint), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["within_tolerance"] is True
        assert set(report) == {"within_tolerance", *(field.name for field in dataclasses.fields(Fidelity))}


class TestOutside:
    """Against a checkpoint that the bundle was not made from."""

    @pytest.fixture(scope="class")
    @staticmethod
    def pairs(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Pairs in the order that the checkpoint gives them itself: any other order is a drop."""
        texts = [text.replace('"', "'") for text in sentences()[:24]]
        model = SentenceTransformer(str(other_checkpoint), device="cpu")
        first, second = model.encode(texts[:12]), model.encode(texts[12:])
        scores = model.similarity_pairwise(first, second).tolist()
        file = tmp_path_factory.mktemp("own") / "pairs.csv"
        rows = zip(texts[:12], texts[12:], scores, strict=True)
        file.write_text("".join(f'"{a}","{b}",{score!r}\n' for a, b, score in rows), encoding="utf-8")
        return file

    def test_the_error_carries_the_whole_report(self, tiny_bundle: Path, other_checkpoint: Path, pairs: Path) -> None:
        with pytest.raises(ToleranceError, match=r"lowest cosine .*; drop of Spearman's correlation x 100") as caught:
            verify_bundle(tiny_bundle, other_checkpoint, pairs=pairs)
        fidelity = caught.value.fidelity
        assert fidelity is not None
        assert fidelity.cosine_min < 0.99
        assert all(getattr(fidelity, name) is not None for name in (*FIGURES, "spearman_drop"))

    def test_the_command(self, tiny_bundle: Path, other_checkpoint: Path, pairs: Path) -> None:
        """As it is installed: the report on the standard output, what is wrong on the standard error, status 1."""
        script = Path(sys.executable).with_name("stonnx")
        command = [str(script), "verify", str(tiny_bundle), "--against", str(other_checkpoint), "--pairs", str(pairs)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 1
        head, *lines = result.stdout.splitlines()
        assert head.startswith(f"{tiny_bundle} is OUTSIDE its tolerance of sentence-transformers")
        assert {line.split()[0] for line in lines} == {*FIGURES, "spearman_drop"}
        assert "stonnx verify: The bundle differs from sentence-transformers" in result.stderr
        assert "lowest cosine" in result.stderr
        assert "Traceback" not in result.stderr

    def test_json(self, tiny_bundle: Path, other_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["verify", str(tiny_bundle), "--against", str(other_checkpoint), "--json"]) == 1
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert report["within_tolerance"] is False
        assert report["cosine_min"] < 0.99
        assert report["tolerance"]["cosine_min"] == 0.99999
        assert "lowest cosine" in err

    def test_figures_that_are_no_numbers(
        self,
        tiny_bundle: Path,
        tiny_checkpoint: Path,
        traced_once: TracedOnce,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """JSON has no NaN, and other languages cannot read Python's."""
        real = compare.outputs
        monkeypatch.setattr(compare, "outputs", lambda *args, **options: real(*args, **options) * np.float32("nan"))
        assert cli.main(["verify", str(tiny_bundle), "--against", str(tiny_checkpoint), "--json"]) == 1
        out, err = capsys.readouterr()
        report = json.loads(out, parse_constant=lambda constant: pytest.fail(constant))
        assert report["cosine_min"] is None
        assert "lowest cosine nan" in err


class TestRefused:
    @pytest.mark.parametrize("name", ["missing", "empty"])
    def test_no_bundle(self, name: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelNotFoundError, match=f"{name} is not a bundle: it has no stonnx.json"):
            verify_bundle(tmp_path / name, tiny_checkpoint)

    def test_no_checkpoint(self, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["verify", str(tiny_bundle), "--against", str(tmp_path / "missing")]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("stonnx verify: ")
        assert "missing" in err

    def test_pairs_are_read_before_anything_else(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recheck, "load_original", lambda *_: pytest.fail("loaded"))
        file = tmp_path / "pairs.csv"
        file.write_text("a,b,1\n" * 10 + "a,b,nan\n")
        assert cli.main(["verify", str(tmp_path), "--against", str(tmp_path), "--pairs", str(file)]) == 1
        assert "Line 11 of" in capsys.readouterr().err

    def test_another_tokenizer(self, tiny_bundle: Path, minilm_checkpoint: Path) -> None:
        """There are no figures to report: vectors of other tokens are not compared."""
        with pytest.raises(FidelityError, match="The tokenizer differs from the original's") as caught:
            verify_bundle(tiny_bundle, minilm_checkpoint)
        assert not isinstance(caught.value, ToleranceError)

    def test_the_bounds_of_a_recipe_that_is_no_more(
        self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, traced_once: TracedOnce
    ) -> None:
        stored = read_manifest(tiny_bundle).fidelity
        assert stored is not None
        impossible = dataclasses.replace(stored, tolerance={"cosine_min": 1.5})
        bundle = changed(tiny_bundle, tmp_path, recipe="int3", fidelity=impossible)
        with pytest.raises(ToleranceError, match=r"allowed is at least 1\.5"):
            verify_bundle(bundle, tiny_checkpoint)

    def test_a_recipe_without_bounds(self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """No bound would be one that everything is within."""
        bundle = changed(tiny_bundle, tmp_path, recipe="int3", fidelity=None)
        with pytest.raises(
            UnsupportedError, match=r"the recipe 'int3'.* Known: fp32, fp16, bf16, int8\..*stonnx export"
        ):
            verify_bundle(bundle, tiny_checkpoint)
