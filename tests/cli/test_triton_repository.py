"""``stonnx triton``: the model is in the repository complete, or not at all."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, toy_table, write_bundle

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx.cli import main
from stonnx.cli._triton_repository import Serving, render_config

TEXTS = ["bread rises", "the river flows", ""]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    pairs = {"default": pair_graph(toy_table(1, 5), np.float32([0.5]), "Sigmoid")}
    rerank = write_bundle(folder / "rerank", pairs, task="rerank", num_labels=1, activation="sigmoid")
    return {"dense": dense_bundle(folder / "dense"), "rerank": rerank}


def test_it_is_complete(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", str(bundles["dense"]), "-o", str(tmp_path / "new" / "repository")]) == 0
    model = tmp_path / "new" / "repository" / "dense"
    assert "with a copy of the bundle" in capsys.readouterr().out
    assert sorted(path.name for path in model.parent.iterdir()) == ["dense"]
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    assert not (model / "1" / "bundle").is_symlink()
    ours = stonnx.SentenceTransformer(model / "1" / "bundle").encode(TEXTS)
    np.testing.assert_array_equal(ours, stonnx.SentenceTransformer(bundles["dense"]).encode(TEXTS))
    compile((model / "1" / "model.py").read_text(encoding="utf-8"), "model.py", "exec")


def test_a_link(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", str(bundles["dense"]), "-o", str(tmp_path), "--link", "--name", "other"]) == 0
    assert "a link to" in capsys.readouterr().out
    assert (tmp_path / "other" / "1" / "bundle").readlink() == bundles["dense"]


def test_the_configuration(bundles: dict[str, Path], tmp_path: Path) -> None:
    options = "--instances 2 --threads 1 --max-batch-size 8 --max-queue-size 5 --timeout 0.5 --device cuda:1"
    assert main(["triton", str(bundles["rerank"]), "-o", str(tmp_path), *options.split()]) == 0
    config = (tmp_path / "rerank" / "config.pbtxt").read_text(encoding="utf-8")
    for line in (
        'name: "rerank"',
        "max_batch_size: 8",
        '  { name: "query", data_type: TYPE_STRING, dims: [ 1 ] },',
        '  { name: "scores", data_type: TYPE_FP32, dims: [ 1 ] }',
        "instance_group [ { kind: KIND_GPU, count: 2, gpus: [ 1 ] } ]",
        "    default_timeout_microseconds: 500000",
        "    max_queue_size: 5",
        'parameters { key: "device", value { string_value: "cuda" } }',
        'parameters { key: "threads", value { string_value: "1" } }',
    ):
        assert line in config.splitlines()


def test_a_model_that_is_there(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["triton", "-o", str(tmp_path), "--name", "model"]
    assert main([*command, str(bundles["dense"])]) == 0
    assert main([*command, str(bundles["rerank"])]) == 1
    assert "exists already. Choose another name with --name, or replace" in capsys.readouterr().err
    assert 'name: "embedding"' in (tmp_path / "model" / "config.pbtxt").read_text(encoding="utf-8")
    assert main([*command, str(bundles["rerank"]), "--overwrite"]) == 0
    assert 'name: "scores"' in (tmp_path / "model" / "config.pbtxt").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "'a/b' cannot be the name of a model"),
        (["--name", ".hidden"], "cannot be the name"),
        (["--device", "abacus"], "--device 'abacus' is not known. Allowed: "),
        (["--timeout", "0"], "--timeout must be a positive number"),
    ],
)
def test_wrong_arguments(
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main(["triton", str(bundles["dense"]), "-o", str(tmp_path / "repository"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_what_is_not_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", str(tmp_path / "none"), "-o", str(tmp_path / "repository")]) == 1
    assert "does not exist. stonnx triton takes the directory of a bundle" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_a_task_that_has_no_form_for_it(bundles: dict[str, Path]) -> None:
    manifest = replace(read_manifest(bundles["dense"]), task="new")
    with pytest.raises(stonnx.UnsupportedError, match="for the task 'new', only for embedding, sparse, rerank"):
        render_config("name", manifest, Serving())


def test_a_full_disk_leaves_nothing(
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert main(["triton", str(bundles["dense"]), "-o", str(tmp_path / "a" / "b")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command(bundles: dict[str, Path], tmp_path: Path) -> None:
    """The model is not there, and the next command clears up."""
    code = (
        "import os, shutil, signal, sys; from stonnx.cli import main\n"
        "def kill(*paths): os.kill(os.getpid(), signal.SIGKILL)\n"
        "shutil.copyfile = kill; main(sys.argv[1:])"
    )
    command = ["triton", str(bundles["dense"]), "-o", str(tmp_path)]
    killed = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".dense.part"]
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
