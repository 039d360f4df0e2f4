"""``stonnx export``: its progress, its output and its exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixture_types import Feeds, Run
from whole_exports import FILES, STAGES, contents, stopping_at

from stonnx._bundle.manifest import read_manifest
from stonnx_export import export


@pytest.mark.usefixtures("quick")
class TestProgress:
    def test_a_line_for_each_stage(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", show_progress=True)
        output = capsys.readouterr()
        assert output.out == ""
        assert [re.sub(r" \.\.\. \d+\.\d s$", "", line) for line in output.err.splitlines()] == STAGES

    @pytest.mark.parametrize("show", [False, None], ids=["off", "no terminal"])
    def test_nothing(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], show: bool | None
    ) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", show_progress=show)
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        export(tiny_checkpoint, tmp_path / "bundle")
        assert len(capsys.readouterr().err.splitlines()) == len(STAGES)

    @pytest.mark.parametrize(
        ("step", "stage"),
        [
            ("read_checkpoint", 0),
            ("graph", 1),
            ("_build", 2),
            ("_write_graph", 3),
            ("verify_fidelity", 4),
            ("render", 5),
        ],
    )
    def test_the_stage_that_failed(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        stage: int,
    ) -> None:
        stopping_at(step, RuntimeError("boom"), tmp_path / "bundle", monkeypatch)
        with pytest.raises(RuntimeError, match="boom"):
            export(tiny_checkpoint, tmp_path / "bundle", show_progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == stage + 1
        assert lines[-1] == f"{STAGES[stage]} ... failed"


def command_line(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("stonnx")
    return subprocess.run(
        [str(script), "export", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


class TestCommandLine:
    def test_export(
        self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, tiny_feeds: Feeds, run: Run
    ) -> None:
        """Everything for real, in a process of its own: the graph computes the same to the bit."""
        bundles = tmp_path / "tiny-fp32", tiny_bundle
        result = command_line(tiny_checkpoint, "--name", "acme/tiny", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert [line.partition(" ...")[0] for line in result.stderr.splitlines()] == STAGES
        assert result.stdout.startswith("tiny-fp32: embedding, float32, ")
        assert "cosine to PyTorch mean 1.0000000" in result.stdout
        assert len(result.stdout.splitlines()) == 1
        assert sorted(contents(tmp_path)) == [f"tiny-fp32/{name}" for name in FILES]
        assert read_manifest(tmp_path / "tiny-fp32").source.name == "acme/tiny"
        feeds = tiny_feeds((9, 4, 1))
        for ours, expected in zip(*(run(bundle / "model.onnx", **feeds) for bundle in bundles), strict=True):
            np.testing.assert_array_equal(ours, expected)

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            pytest.param(("./missing", "-o", "bundle"), 1, "not a directory here", id="no model"),
            pytest.param(("CHECKPOINT", "-o", "bundle", "--dtype", "fp64"), 1, "got 'fp64'", id="dtype"),
            pytest.param(("CHECKPOINT", "-o", "file"), 1, "--overwrite", id="target exists"),
            pytest.param((), 2, "the following arguments are required: model", id="no arguments"),
        ],
    )
    def test_failures(
        self, tiny_checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
    ) -> None:
        (tmp_path / "file").write_text("data")
        filled = [str(tiny_checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
        result = command_line(*filled, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (status, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert contents(tmp_path) == {"file": b"data"}

    def test_errors_start_with_the_command(self, tmp_path: Path) -> None:
        assert command_line("./missing", cwd=tmp_path).stderr.splitlines()[-1].startswith("stonnx export: ")

    @pytest.mark.parametrize("package", ["onnx_ir", "torch", "sentence_transformers"])
    def test_without_the_extra(self, tiny_checkpoint: Path, tmp_path: Path, package: str) -> None:
        code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from stonnx import cli
sys.exit(cli.main(["export", *sys.argv[2:]]))
"""
        arguments = [package, str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "--quiet"]
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
        assert result.returncode == 1
        assert 'pip install "stonnx[cpu,export]"' in result.stderr
        assert package in result.stderr
        assert "Traceback" not in result.stderr
        assert not contents(tmp_path)
