"""The scripts behind one decision each: what a pass gains, and how many tokens a run should have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_graphs import encoder
from zoo import build_checkpoint, row

from benchmarks.in_turns import in_turns, ratio
from benchmarks.questions import passes, run_tokens
from stonnx_export import RECIPES, pipeline
from stonnx_export.int8 import products, scales
from stonnx_export.int8.scales import Quantization


def test_turns_are_in_a_new_order_each_round() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    found = in_turns(works, rounds=30)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys("abc", 30)
    assert len(rounds) == 31
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_ratio_is_of_the_same_round() -> None:
    found = {"old": [1.0, 20.0, 3.0, 4.0], "new": [0.5, 10.0, 1.5, 2.0]}
    assert ratio(found, "old", "new") == "2.00x (2.00-2.00)"


def test_every_pass_of_a_recipe_can_be_left_out() -> None:
    for dtype, recipe in RECIPES.items():
        for name in passes.names_of_passes(dtype):
            before = (*recipe.network_passes, *recipe.passes)
            with passes.without(name, dtype):
                changed = RECIPES[dtype]
                left = (*changed.network_passes, *changed.passes)
                assert pipeline.RECIPES is RECIPES
                gone = [run.__module__.rpartition(".")[2] for run in before if run not in left]
            assert RECIPES[dtype] is recipe
            assert set(gone) == (set() if name == "static_scales" else {name})


def test_static_scales_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_SMALLEST", 1)
    monkeypatch.setattr(scales, "_STATIC_NOISE", 1.0)
    model, sequences = encoder(layers=1), [list(range(2, 30)), list(range(30, 50))]
    with passes.without("static_scales", "int8"):
        assert not Quantization(model, sequences).has_static_scales
    assert Quantization(model, sequences).has_static_scales


def test_a_table_of_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = build_checkpoint(row("paraphrase-MiniLM-L3-v2"), tmp_path / "checkpoint")
    names = ["attention_lengths", "fuse_rms_norm", "static_scales"]
    passes.main(["--checkpoint", str(checkpoint), "--passes", ",".join(names), "--rounds", "2"])
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*whole: cosine 0\.99\d+ / 0\.9\d+", title)
    assert "cosine without" in head
    assert [line.split()[0] for line in rows] == names
    for line in (rows[0], rows[2]):
        assert re.fullmatch(r"\w+ +\d+( +\d+\.\d\dx \(\d+\.\d\d-\d+\.\d\d\)){3} +0\.9\d+ / 0\.9\d+", line)
    # BERT has none.
    assert rows[1].split() == ["fuse_rms_norm", "0"]
    with pytest.raises(SystemExit):
        passes.main(["--checkpoint", str(checkpoint), "--passes", "fuse_everything"])
    assert "no such pass: fuse_everything. Allowed: shapes, " in capsys.readouterr().err


def test_sizes_of_runs(minilm_int8_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tokens.main(["--bundle", str(minilm_int8_bundle), "--sizes", "320", "510", "--rounds", "2"])
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("times as fast as with 510 tokens a run")
    assert head.split() == ["320"]
    assert [line.split()[0] for line in rows] == ["short", "passages", "long", "mix"]
    assert all(re.fullmatch(r"\w+ +\d+\.\d\dx \(\d+\.\d\d-\d+\.\d\d\)", line) for line in rows)
