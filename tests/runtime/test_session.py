"""A real session on the CPU: threads that sleep, memory that comes back, errors that name the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from stonnx import InvalidArgumentError
from stonnx._session import RunControl, Session


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One-hot vectors of the ids, [batch, sequence, 10000], and their sum over tokens: 40 kB of memory a token."""
    nodes = [
        helper.make_node("OneHot", ["input_ids", "depth", "values"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "middle"], ["sum"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 10_000])],
        [
            helper.make_tensor("depth", TensorProto.INT64, [], [10_000]),
            helper.make_tensor("values", TensorProto.FLOAT, [2], [0.0, 1.0]),
            helper.make_tensor("middle", TensorProto.INT64, [1], [1]),
        ],
    )
    path = tmp_path_factory.mktemp("session") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def in_process(program: str) -> list[float]:
    """The numbers that a program prints, run in a process of its own."""
    head = """
import time
from pathlib import Path
import numpy as np
from stonnx._session import Session

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
"""
    result = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return [float(word) for word in result.stdout.split()]


def test_memory_comes_back(wide_graph: Path) -> None:
    before, after, trimmed = in_process(f"""
session = Session(Path({str(wide_graph)!r}), device="cpu", threads=1)
run = lambda tokens: session.run(["sum"], {{"input_ids": np.ones((1, tokens), np.int64)}})
run(10)
print(resident())
run(10_000)  # 400 MB
print(resident())
session.trim()
print(resident())
""")
    assert after - before > 300, "the arena keeps what it has for the next run"
    assert trimmed - before < 30


def test_one_run_can_free_its_memory(wide_graph: Path) -> None:
    before, after = in_process(f"""
session = Session(Path({str(wide_graph)!r}), device="cpu", threads=1)
run = lambda tokens, **options: session.run(["sum"], {{"input_ids": np.ones((1, tokens), np.int64)}}, **options)
run(10)
print(resident())
run(10_000, free_memory=True)
print(resident())
""")
    assert after - before < 30


def test_memory_does_not_grow_with_the_number_of_shapes(minilm_bundle: Path) -> None:
    early, late = in_process(f"""
session = Session(Path({str(minilm_bundle / "model.onnx")!r}), device="cpu", threads=1)
generator = np.random.default_rng(0)
for call in range(150):
    sequence = int(generator.integers(4, 65))
    ids = generator.integers(0, 1000, (int(generator.integers(1, 1 + 256 // sequence)), sequence))
    session.run(["sentence_embedding"], {{"input_ids": ids, "attention_mask": np.ones_like(ids)}})
    if call in (49, 149):
        print(resident())
""")
    assert late - early < 10


def test_threads_sleep_after_a_run(minilm_bundle: Path) -> None:
    """CPU time of the process in the tenth of a second after a run, when nobody needs any.

    onnxruntime's own threads would look for work for 16 ms each.
    """
    (used,) = in_process(f"""
session = Session(Path({str(minilm_bundle / "model.onnx")!r}), device="cpu", threads=4)
ids = np.ones((4, 32), np.int64)
def after_a_run():
    session.run(["sentence_embedding"], {{"input_ids": ids, "attention_mask": ids}})
    start = time.process_time()
    time.sleep(0.1)
    return time.process_time() - start
print(min(after_a_run() for _ in range(5)) * 1e3)
""")
    assert used < 5, f"{used:.1f} ms"


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True], ids=repr)
def test_threads_that_are_none(threads: int, wide_graph: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="threads must be a positive integer or None"):
        Session(wide_graph, device="cpu", threads=threads)


def test_a_run_that_is_stopped(wide_graph: Path) -> None:
    session = Session(wide_graph, device="cpu", threads=1)
    control: RunControl = session.control()
    feeds = {"input_ids": np.ones((1, 4), dtype=np.int64)}
    assert session.run(["sum"], feeds, control)[0][0, 1] == 4
    control.stop()
    for free_memory in (False, True):
        with pytest.raises(Exception, match="terminate"):
            session.run(["sum"], feeds, control, free_memory=free_memory)


def test_the_arithmetic_of_the_caller_stays(wide_graph: Path) -> None:
    # session.set_denormal_as_zero would change it for the thread that makes the session.
    Session(wide_graph, device="cpu", threads=1)
    assert np.full(8, 1e-40, dtype=np.float32)[0] * np.float32(1) > 0


def test_the_version_is_told(wide_graph: Path) -> None:
    assert Session(wide_graph, device="cpu").version == onnxruntime.__version__
