"""Several exports to one target at a time, and exports that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from whole_exports import FILES, contents

from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export

# `stonnx export` in a process of its own, without PyTorch: the graph comes from a file, and verification waits for a
# line on standard input.
WAITING = """
import sys
import onnx_ir as ir, tokenizers
from stonnx import cli
from stonnx._bundle.manifest import Fidelity
from stonnx_export import pipeline
from stonnx_export.originals import load
from stonnx_export.originals.original import LoadReport, OriginalTokenizer

graph, tokenizer, *arguments = sys.argv[1:]

class FromFile:
    name = "a file"
    loaded = LoadReport()
    def outputs_as_loaded(self, *_):
        return None
    def images(self):
        return None
    def graph(self, route):
        return ir.load(graph)
    def tokenizer(self, route):
        return OriginalTokenizer(tokenizers.Tokenizer.from_file(tokenizer), 40, 0, 0, "right", (), True)

def verify(*arguments, **options):
    print("verifying", flush=True)
    sys.stdin.readline()
    return Fidelity("nothing", 1, 1.0, 1.0, 0.0, 0.0, arguments[-1])

load._load_original = lambda checkpoint: FromFile()
pipeline.verify_fidelity = verify
pipeline.try_bundle = lambda *arguments: None
sys.exit(cli.main(["export", *arguments, "--quiet"]))
"""


class TestOtherProcesses:
    """Another process is in the middle of its export."""

    @pytest.fixture(scope="class")
    @staticmethod
    def traced(tiny_original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("traced") / "traced.onnx"
        ir.save(tiny_original.graph("default"), path)
        return path

    @pytest.fixture
    def verifying(self, traced: Path, tiny_checkpoint: Path) -> Callable[..., AbstractContextManager[Any]]:
        """``verifying(target, *options)``: a process that has written its files and waits in verification."""

        @contextmanager
        def verifying(target: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
            arguments = [traced, tiny_checkpoint / "tokenizer.json", tiny_checkpoint, "-o", target, *options]
            process = subprocess.Popen(
                [sys.executable, "-c", WAITING, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # A shell starts what it runs in the background with Ctrl-C ignored, and that is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "verifying\n", process.communicate()[1]
                yield process
            finally:
                process.kill()
                process.communicate()

        return verifying

    @pytest.mark.usefixtures("quick")
    def test_one_of_two_wins(self, tiny_checkpoint: Path, tmp_path: Path, verifying: Any) -> None:
        target = tmp_path / "bundle"
        with verifying(target, "--name", "slow") as slow:
            (partial,) = (path for path in tmp_path.glob(".bundle.partial-*") if path.is_dir())
            before = contents(partial)
            assert before
            export(tiny_checkpoint, target, name="fast")
            assert contents(partial) == before
            _, message = slow.communicate("\n", timeout=60)
        assert slow.returncode == 1
        assert "exists already" in message
        assert "Traceback" not in message
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(target).source.name == "fast"
        check_files(target, read_manifest(target))

    @pytest.mark.usefixtures("quick")
    def test_killed(self, tiny_checkpoint: Path, tmp_path: Path, verifying: Any) -> None:
        """What it leaves behind is hidden, and goes with the next export."""
        target = tmp_path / "bundle"
        with verifying(target) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        (partial,) = (path.name for path in tmp_path.iterdir() if path.is_dir())
        assert sorted(path.name for path in tmp_path.iterdir()) == [partial, f"{partial}.lock"]
        assert partial.startswith(".bundle.partial-")
        export(tiny_checkpoint, target)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        check_files(target, read_manifest(target))

    def test_killed_while_overwriting(self, tiny_bundle: Path, old_bundle: Path, verifying: Any) -> None:
        before = contents(old_bundle)
        with verifying(old_bundle, "--overwrite") as process:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        assert contents(old_bundle) == before
        check_files(old_bundle, read_manifest(old_bundle))

    def test_interrupted(self, tmp_path: Path, verifying: Any) -> None:
        with verifying(tmp_path / "bundle") as process:
            process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in message
        assert "Traceback" not in message
        assert not contents(tmp_path)
