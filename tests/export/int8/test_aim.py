"""Blocks and tables that lose most in 8 bits become bfloat16 if that reaches the recipe's aim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from hostile_networks import with_aim
from sentence_transformers import SentenceTransformer
from small_graphs import nodes_of

import stonnx
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx_export import RECIPES, export, pipeline
from stonnx_export.calibration.measure import text_sequences
from stonnx_export.calibration.texts import CALIBRATION_TEXTS
from stonnx_export.int8 import tables
from stonnx_export.kernels import bfloat16
from stonnx_export.kernels.mixed import MixedQuantization
from stonnx_export.texts import CALLED_TEXTS

pytestmark = pytest.mark.usefixtures("small_products", "small_weights", "hostile_once")

HOSTILE = ["AttentionInt8", "FeedForwardBFloat16", "AttentionInt8", "FeedForwardInt8"]


@pytest.fixture
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_SMALLEST", 1024)


@pytest.fixture
def exported(hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """The manifest of the bundle, in ``tmp_path / "bundle"``, whose aim the hostile block alone misses."""
    with_aim(monkeypatch, cosine_mean=0.99)
    return read_manifest(export(hostile_checkpoint, tmp_path / "bundle", dtype="int8"))


def test_the_block_that_harms_is_bfloat16(exported: Manifest, hostile_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert exported.fidelity is not None
    assert exported.fidelity.cosine_mean >= 0.99
    assert (exported.precision, exported.kept) == ("int8", ())
    assert len(exported.halved) == 2  # the products of one feed-forward network
    assert exported.kernels is not None
    assert exported.kernels.blocks == {"AttentionInt8": 2, "FeedForwardInt8": 1, "FeedForwardBFloat16": 1}
    assert not exported.kernels.stock
    assert exported.rewrites["bfloat16"] == 2
    graph = ir.load(bundle / "model.onnx")
    assert [node.op_type.partition("_")[0] for node in graph.graph if node.domain == "stonnx.kernels"] == HOSTILE
    (node,) = nodes_of(graph, "FeedForwardBFloat16")
    weights = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.BFLOAT16]
    assert len(weights) == 2
    check_files(bundle, exported)
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert f"the matrix products and tables `{'`, `'.join(exported.halved)}`." in card
    text = "Nothing about this is hostile."
    expected = SentenceTransformer(str(hostile_checkpoint), device="cpu").encode(text)
    assert stonnx.SentenceTransformer(bundle, threads=1).encode(text) @ expected > 0.98


def test_an_aim_that_is_out_of_reach_changes_nothing(
    hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What costs speed and is not enough is taken back, static scales too."""
    with_aim(monkeypatch)
    without = export(hostile_checkpoint, tmp_path / "without", dtype="int8", show_progress=True)
    assert "finding" not in capsys.readouterr().err
    with_aim(monkeypatch, cosine_min=1.1)
    bundle = export(hostile_checkpoint, tmp_path / "bundle", dtype="int8", show_progress=True)
    stages = [line.partition(" ...")[0] for line in capsys.readouterr().err.splitlines()]
    assert stages.count("finding the blocks that lose most") >= 1
    vectors = (stonnx.SentenceTransformer(path, threads=1).encode([*CALLED_TEXTS]) for path in (bundle, without))
    np.testing.assert_array_equal(*vectors)
    one, other = (read_manifest(path) for path in (bundle, without))
    assert one.halved == ()
    assert (one.rewrites, one.kernels, one.fidelity) == (other.rewrites, other.kernels, other.fidelity)


def test_an_aim_that_is_reached_costs_nothing(
    hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_aim(monkeypatch, cosine_mean=0.6)
    monkeypatch.setattr(MixedQuantization, "refine", lambda *_: pytest.fail("tried"))
    assert read_manifest(export(hostile_checkpoint, tmp_path / "bundle", dtype="int8")).halved == ()


def test_tables_are_one_part(hostile_original: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go first if they lose most, and then only their rows are read in bfloat16."""
    monkeypatch.setattr(tables, "_SMALLEST", 4096)
    graph = hostile_original.graph("default")
    pipeline._build(graph, hostile_original._checkpoint, "default", hostile_original, RECIPES["int8"])
    sequences = text_sequences(hostile_original.tokenizer("default"), CALIBRATION_TEXTS[:24], 32)
    quantization = MixedQuantization(graph, sequences)
    parts = quantization._parts()
    assert [len(part.groups) for part in parts] == [2, 2, 2, 2, 0]
    errors = quantization._errors_of_parts(lambda *_: None)
    assert max(errors, key=lambda part: errors[part]) == parts[1]
    assert errors[parts[-1]] > 0
    quantization._choose([parts[-1]])
    built, results, _ = quantization.apply()
    assert results[0].name == "bfloat16"
    gathers = [node for node in nodes_of(built, "Gather") if node.inputs[0].dtype == ir.DataType.BFLOAT16]
    assert len(gathers) == results[0].fired == 1
    assert not any(node.inputs[0].dtype == ir.DataType.INT8 for node in nodes_of(built, "Gather"))
