"""The soak: what it takes for a plateau, for a thread that is stuck, and for another result than at first."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from toy_bundles import dense_graph, sparse_graph, toy_table, write_bundle

from benchmarks.questions.soak import Plateau, Soak, passed, report, watch

FLAT = Plateau.of([100.0] * 8, 90, 95)


def run(model: Callable[[list[Any]], Any], seconds: float = 0.5, **options: Any) -> Soak:
    soak = Soak([("embedding", model)], seconds, 2, 10)
    threads = [threading.Thread(target=soak.work, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    watch(soak, threads, **{"step": 0.05} | options)
    return soak


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text)] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("steps", "plateau"),
    [
        (np.full(240, 1000.0), True),
        # Warming up is what the first half is for.
        (np.minimum(500 + 5 * np.arange(240), 1000.0), True),
        # Seldom are the runs of all threads large at the same time.
        (np.where(np.arange(240) % 20 == 19, 1500.0, 1000.0), True),
        (np.linspace(1000, 1100, 240), False),
        (1000 + np.maximum(np.arange(240) - 120, 0), False),
    ],
    ids=["flat", "warm-up", "peaks", "slow and steady", "late"],
)
def test_plateau(steps: np.ndarray, plateau: bool) -> None:
    assert Plateau.of(list(steps), 900, 950).is_one is plateau


def test_memory_that_does_not_come_back() -> None:
    assert not Plateau.of([1000.0] * 8, 900, 1000).is_one


def test_results_that_stay() -> None:
    soak = run(lengths)
    assert soak.errors == []
    assert soak.returns == soak.calls // 10 > 0
    assert passed(soak, FLAT)
    assert not passed(soak, Plateau.of(list(np.linspace(100, 200, 8)), 90, 95))


def test_a_result_that_changes() -> None:
    calls = iter(range(1_000_000))
    soak = run(lambda texts: lengths(texts) + 1e-3 * (next(calls) > 5))
    assert "gives other results than at first: 0.001" in soak.errors[0]
    assert not passed(soak, FLAT)


def test_fixed_inputs_that_never_came_back() -> None:
    soak = Soak([("embedding", lengths)], 0, 1, 1000)
    assert not passed(soak, FLAT)
    assert "never came back" in report(soak, FLAT, 1, 1, [])


def test_a_call_that_never_returns(capfd: pytest.CaptureFixture[str]) -> None:
    waits, go_on = iter([False] * 20 + [True]), threading.Event()

    def model(texts: list[str]) -> np.ndarray:
        if next(waits, False):
            go_on.wait()
        return lengths(texts)

    # The other thread goes on, and hides nothing.
    soak = run(model, seconds=60, stuck=0.5)
    go_on.set()
    assert "a call has not returned for" in soak.errors[0]
    assert "in model" in capfd.readouterr().err  # the stack of the call
    assert not passed(soak, FLAT)


def bundles(directory: Path) -> dict[str, Path]:
    table = toy_table(3, 5)
    graphs = {"embedding": dense_graph(table), "sparse": sparse_graph(table), "rerank": dense_graph(table[:, :1])}
    # No token types: like every exported bundle, it runs without them.
    graph = graphs["rerank"].graph
    graph.node[-1].output[0] = graph.output[0].name = "logits"
    graph.node.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1]))
    fields: dict[str, dict[str, Any]] = {
        "embedding": {"embedding_dimension": 3},
        "sparse": {"embedding_dimension": 3},
        "rerank": {"num_labels": 1, "labels": ("LABEL_0",), "activation": "sigmoid"},
    }
    return {
        task: write_bundle(directory / task, {"default": graph}, task=task, **fields[task])
        for task, graph in graphs.items()
    }


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.questions.soak", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)


def test_the_report(tmp_path: Path) -> None:
    options = [word for task, path in bundles(tmp_path).items() for word in (f"--{task}", str(path))]
    result = soak(*options, "--minutes", "0.05", "--every", "20", "-o", str(tmp_path / "soak.md"))
    assert result.returncode in (0, 1), result.stderr
    text = (tmp_path / "soak.md").read_text(encoding="utf-8")
    assert result.stdout.strip() == text.strip(), result.stderr
    for words in (
        "embedding: toy, fp32; sparse: toy, fp32; rerank: toy, fp32",
        "| minutes | lowest, MB |",
        "| errors | 0 |",
    ):
        assert words in text
    assert str(tmp_path) not in text
    # Three seconds are too few for a plateau.
    assert result.returncode == int("**FAILED**" in text)


@pytest.mark.parametrize("task", ["embedding", "sparse", "rerank"])
def test_every_task_takes_part(task: str) -> None:
    others = {"embedding", "sparse", "rerank"} - {task}
    result = soak(*(word for other in others for word in (f"--{other}", "x")))
    assert result.returncode == 2
    assert f"--{task}" in result.stderr
