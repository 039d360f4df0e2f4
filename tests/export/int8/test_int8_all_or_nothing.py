"""An int8 export that fails, or is killed, leaves nothing behind; nor does one of damaged weights."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from hostile_networks import with_tolerance
from safetensors.torch import load_file, save_file
from small_graphs import encoder, nodes_of
from zoo import build_checkpoint, row

import stonnx
from stonnx._errors import ExportError
from stonnx_export import export, pipeline
from stonnx_export.graph.read import constant_array
from stonnx_export.int8.scales import Quantization

pytestmark = pytest.mark.usefixtures("small_products")


class TestDamagedWeights:
    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_table_with_one_number_that_is_none(self, tmp_path: Path, value: float, dtype: str) -> None:
        """In a row that no text of the verification may ever read."""
        model = shutil.copytree(build_checkpoint(row("minishlab/potion-base-8M"), tmp_path / "zoo"), tmp_path / "model")
        weights = load_file(model / "model.safetensors")
        weights["embeddings"][1234, 5] = value
        save_file(weights, model / "model.safetensors")
        with pytest.raises(ExportError, match=r"^1 of the 116,672 weights '.*embeddings.*' are NaN or infinite"):
            export(model, tmp_path / "new" / "bundle", dtype=dtype)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "zoo"]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_network(
        self,
        hostile_checkpoint: Path,
        hostile_once: TracedOnce,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        value: float,
    ) -> None:
        graph = hostile_once.graph("default").clone()
        weight = nodes_of(graph, "MatMul")[5].inputs[1]
        array = constant_array(weight).copy()
        array[3, 4] = value
        weight.const_value = ir.tensor(array, name=weight.name)
        monkeypatch.setattr(hostile_once, "graph", lambda route: graph)
        with pytest.raises(ExportError, match=f"1 of the 2,048 weights {weight.name!r} are NaN or infinite"):
            export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")
        assert not list(tmp_path.iterdir())

    def test_a_mask_is_no_damage(self) -> None:
        from stonnx_export.graph.builder import GraphBuilder
        from stonnx_export.graph.save import check_finite

        model = encoder()
        op = GraphBuilder(model.graph)
        op.constant(np.triu(np.full((9, 9), -np.inf, dtype=np.float32), 1), "causal")
        op.constant(np.array(np.inf, dtype=np.float32), "bound")
        op.constant(np.array([np.iinfo(np.int64).max] * 70), "ends")
        check_finite(model)
        op.constant(np.full(100, -np.inf, dtype=np.float32) + np.eye(1, 100, dtype=np.float32)[0], "all")
        check_finite(model)
        op.constant(np.array([1, -np.inf], dtype=np.float32), "weights")
        with pytest.raises(ExportError, match="1 of the 2 weights 'stonnx_weights_0'"):
            check_finite(model)


# An export in a process of its own, without PyTorch, killed while it calibrates, or while it looks for the layers
# that lose most because its bundle was refused.
KILLED = """
import os, signal, sys
import onnx_ir as ir, tokenizers
from stonnx_export import export, pipeline
from stonnx_export.int8 import scales as quantize
from stonnx_export.originals import load
from stonnx_export.originals.original import LoadReport, OriginalTokenizer
from stonnx_export.int8 import products as quantize_products
from stonnx_export.verify.figures import ToleranceError

stage, graph, tokenizer, checkpoint, target = sys.argv[1:]

class FromFile:
    loaded = LoadReport()
    def outputs_as_loaded(self, *_):
        return None
    def images(self):
        return None
    def graph(self, route):
        return ir.load(graph)
    def tokenizer(self, route):
        return OriginalTokenizer(tokenizers.Tokenizer.from_file(tokenizer), 40, 0, 0, "right", (), True)

def refuse(*arguments, **options):
    raise ToleranceError("too far")

quantize_products._SMALLEST = 1024
load._load_original = lambda checkpoint: FromFile()
pipeline.verify_fidelity = refuse
owner = quantize.Quantization if stage == "_errors" else quantize
setattr(owner, stage, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
export(checkpoint, target, dtype="int8")
"""


class TestAllOrNothing:
    """What tests/export/test_pipeline.py shows for fp32, for the steps that int8 adds."""

    @pytest.fixture(autouse=True)
    @staticmethod
    def _retries(hostile_once: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
        with_tolerance(monkeypatch, cosine_mean=0.99)

    @pytest.mark.parametrize(
        ("step", "error"),
        [
            ("_calibrate", KeyboardInterrupt()),
            ("_lower", RuntimeError("boom")),
            ("keep_more", KeyboardInterrupt()),
            ("clear", RuntimeError("boom")),
            ("second _lower", OSError(errno.ENOSPC, "No space left on device")),
        ],
        ids=str,
    )
    def test_a_failure_leaves_nothing(
        self, hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        calls = []

        def fail(*arguments: Any) -> Any:
            calls.append(step)
            if step.startswith("second") and len(calls) == 1:
                return original(*arguments)
            raise error

        owner, name = (Quantization, step) if step == "keep_more" else (pipeline, step.removeprefix("second "))
        original: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, fail)
        expected = ExportError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected, match=str(error.args[-1]) if error.args else None):
            export(hostile_checkpoint, tmp_path / "new" / "bundle", dtype="int8")
        assert calls
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("stage", ["measure", "_errors"])
    def test_killed(self, hostile_checkpoint: Path, hostile_original: TracedOnce, tmp_path: Path, stage: str) -> None:
        """What is left behind is hidden, is not a bundle, and goes with the next export."""
        ir.save(hostile_original.graph("default"), tmp_path / "traced.onnx")
        folder = tmp_path / "bundles"
        folder.mkdir()
        arguments = [stage, tmp_path / "traced.onnx", hostile_checkpoint / "tokenizer.json", hostile_checkpoint]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments), str(folder / "bundle")])
        assert process.wait(120) == -signal.SIGKILL
        (partial,) = (path.name for path in folder.iterdir() if path.is_dir())
        assert sorted(path.name for path in folder.iterdir()) == [partial, f"{partial}.lock"]
        with pytest.raises(stonnx.ModelNotFoundError):
            stonnx.SentenceTransformer(folder / "bundle", local_files_only=True)
        export(hostile_checkpoint, folder / "bundle", dtype="int8")
        assert [path.name for path in folder.iterdir()] == ["bundle"]
