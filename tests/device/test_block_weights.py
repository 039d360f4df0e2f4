"""Weights that kernels have packed take no memory, and nothing reads them again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from kernels.layers import Compared, Layer, feeds_of
from kernels.test_operators import skip_without_bfloat16

from stonnx._bundle.manifest import Kernels
from stonnx._device import block_weights
from stonnx._device import kernels as native
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.opening import open_session
from stonnx._device.session import Session

LAYER = Layer(hidden=256, heads=4, head_size=64, kv_heads=4, inner=512)
PRECISIONS = {"int8": "int8", "bf16": "bfloat16", "fp32": "float32"}


@pytest.fixture(scope="module", params=PRECISIONS)
def dtype(request: pytest.FixtureRequest) -> str:
    found = native.find()
    if isinstance(found, native.Unusable):
        pytest.skip(f"there are no native kernels: {found.reason}")
    skip_without_bfloat16(found, request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def graph(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = native.find()
    assert isinstance(found, native.Library)
    path = tmp_path_factory.mktemp("weights") / "model.onnx"
    ir.save(Compared(LAYER, dtype, found).model, path)
    return path


def facts(dtype: str) -> GraphFacts:
    kind = {"int8": "Int8", "bf16": "BFloat16", "fp32": "Float"}[dtype]
    return GraphFacts(precision=PRECISIONS[dtype], kernels=Kernels(1, {f"Attention{kind}": 1, f"FeedForward{kind}": 1}))


def opened(graph: Path, dtype: str) -> Session:
    options = DeviceOptions(bfloat16=True) if dtype == "fp32" else None
    session = open_session(graph, device="cpu", threads=1, facts=facts(dtype), options=options)
    assert session.kernels
    return session


def resident(graph: Path) -> int:
    """Kilobytes of a file that are mapped and in memory."""
    lines, found, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(graph))
        elif inside and first == "Rss:":
            found += int(line.split()[1])
    return found


def test_the_weights_of_blocks_are_mapped_and_not_in_memory(graph: Path, dtype: str) -> None:
    session = opened(graph, dtype)
    weights = next(each for each in session.held if isinstance(each, block_weights.BlockWeights))
    # Queries, keys, values, output; up and down.
    assert len(weights.values) == 6
    session.run(["output"], feeds_of((9, 5)))
    assert str(graph) in Path("/proc/self/maps").read_text()
    assert resident(graph) == 0


def test_the_same_results_as_with_a_copy(graph: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = feeds_of((30, 5, 17))
    (mapped,) = opened(graph, dtype).run(["output"], feeds)
    monkeypatch.setattr(block_weights, "_weights", lambda data, kinds: [])
    (copied,) = opened(graph, dtype).run(["output"], feeds)
    np.testing.assert_array_equal(mapped, copied)


def test_weights_that_something_else_reads_are_copied(graph: Path, dtype: str, tmp_path: Path) -> None:
    model = ir.load(graph)
    block = next(node for node in model.graph if node.domain == "stonnx.kernels")
    weight = next(value for value in block.inputs if value is not None and value.name and "extra" not in value.name
                  and value.const_value is not None and value.const_value.size >= 65536)  # fmt: skip
    read = ir.node("Cast", [weight], attributes={"to": ir.DataType.FLOAT}, num_outputs=1)
    model.graph.append(read)
    ir.save(model, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx", dtype)
    weights = next(each for each in session.held if isinstance(each, block_weights.BlockWeights))
    assert len(weights.values) == 5
    assert weight.name not in weights.values


def test_blocks_that_no_kernel_runs_keep_their_weights(graph: Path, dtype: str) -> None:
    from stonnx._device.wheels import import_onnxruntime

    with contextlib.closing(block_weights.BlockWeights(import_onnxruntime(), graph, ())) as weights:
        assert not weights.values


_CUT_OFF_MEANWHILE = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from stonnx._device import block_weights
from stonnx._device.wheels import import_onnxruntime
graph = Path(sys.argv[1])
kind = {"int8": "Int8", "bf16": "BFloat16", "fp32": "Float"}[sys.argv[2]]
weights = block_weights.BlockWeights(import_onnxruntime(), graph, [kind])
before = {name: value.numpy() for name, value in weights.values.items()} if kind != "BFloat16" else {}
os.truncate(graph, 10)
assert len(weights.values) == 6 and all(array.any() for array in before.values())
print("fine")
"""


def test_a_file_that_is_cut_off_while_kernels_pack(graph: Path, dtype: str, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(graph.read_bytes())
    run = subprocess.run([sys.executable, "-c", _CUT_OFF_MEANWHILE, copy, dtype], capture_output=True, text=True)
    assert run.stdout.strip() == "fine", run.stderr[-2000:]


_CUT_OFF = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
from kernels.layers import feeds_of
from device.test_block_weights import opened
graph = Path(sys.argv[1])
session = opened(graph, sys.argv[2])
feeds = feeds_of((30, 5))
(before,) = session.run(["output"], feeds)
os.truncate(graph, 10)
(after,) = session.run(["output"], feeds)
assert (before == after).all()
del session
print("fine")
"""


def test_a_file_that_is_cut_off_later(graph: Path, dtype: str, tmp_path: Path) -> None:
    """Reading a page that is not there any more would end the process."""
    copy = tmp_path / "model.onnx"
    copy.write_bytes(graph.read_bytes())
    program = _CUT_OFF.format(tests=str(Path(__file__).parents[1]))
    run = subprocess.run([sys.executable, "-c", program, copy, dtype], capture_output=True, text=True)
    assert run.stdout.strip() == "fine", run.stderr[-2000:]


def test_an_onnxruntime_that_is_too_old_for_attended_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime 1.26 and 1.27 give attention with the input ``attended`` other values than the body has."""
    if isinstance(found := native.find(), native.Unusable):
        pytest.skip(f"there are no native kernels: {found.reason}")
    monkeypatch.setattr(native, "import_onnxruntime", lambda: SimpleNamespace(__version__="1.27.2"))
    assert isinstance(native.find(1), native.Library)
    old = native.find(2)
    assert isinstance(old, native.Unusable)
    assert "need onnxruntime 1.28 or newer, and this is 1.27.2" in old.reason


def test_an_old_onnxruntime_without_kernels_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    off = native.Unusable("it is not installed", unexpected=False)
    monkeypatch.setattr(native, "_load", lambda: off)
    monkeypatch.setattr(native, "import_onnxruntime", lambda: SimpleNamespace(__version__="1.27.2"))
    assert native.find(2) is off
