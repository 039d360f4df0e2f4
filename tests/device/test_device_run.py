"""Bound runs, pieces of batches and replayed shapes: on the CPU, whose memory onnxruntime binds like a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stonnx import InvalidArgumentError
from stonnx._device.gpu_run import DeviceRun, Shapes

OUTPUTS = ["sum", "tokens"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    """``tokens`` is (table[id] + offset) * mask, [batch, sequence, 4]; ``sum`` adds them up, [batch, 4]."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=0),
        helper.make_node("Cast", ["offset"], ["offset_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["rows", "offset_float"], ["moved"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["moved", "mask_3d"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "middle"], ["sum"], keepdims=0),
    ]
    batch = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, batch) for name in ("input_ids", "attention_mask")]
        + [helper.make_tensor_value_info("offset", TensorProto.INT64, [])],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [*batch, 4]),
        ],
        [
            numpy_helper.from_array(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
            numpy_helper.from_array(np.array(0), "offset"),
        ],
    )
    path = tmp_path_factory.mktemp("device-run") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return onnxruntime.InferenceSession(str(path))


def feeds(batch: int, sequence: int, *, offset: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, sequence + 1, batch)
    values = {
        "input_ids": generator.integers(0, 50, (batch, sequence)),
        "attention_mask": (np.arange(sequence) < lengths[:, None]).astype(np.int64),
    }
    return values if offset is None else values | {"offset": np.array(offset)}


def device_run(session: Any, largest: Shapes | None = None, *, graphs: bool = False) -> DeviceRun:
    return DeviceRun(onnxruntime, session, 0, largest, graphs=graphs, device="cpu")


def assert_same(session: Any, run: Callable[..., list[np.ndarray]], data: Mapping[str, np.ndarray]) -> None:
    for outputs in (OUTPUTS, OUTPUTS[:1], OUTPUTS[::-1]):
        for result, expected in zip(run(outputs, data), session.run(outputs, data), strict=True):
            assert result.dtype == np.float32
            # Padded rows change the order of additions.
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("graphs", [False, True], ids=["bound", "replayed"])
@pytest.mark.parametrize("largest", [None, Shapes(3, 32)], ids=["whole", "pieces"])
@pytest.mark.parametrize("offset", [None, 2], ids=["default", "offset"])
@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (2, 5), (3, 8), (7, 13), (9, 32)])
def test_results(
    batch: int, sequence: int, offset: int | None, largest: Shapes | None, graphs: bool, session: Any
) -> None:
    assert_same(session, device_run(session, largest, graphs=graphs), feeds(batch, sequence, offset=offset))


def test_a_replayed_shape_reads_its_new_input(session: Any) -> None:
    run = device_run(session, graphs=True)
    for seed, (batch, sequence) in enumerate([(3, 5), (4, 8), (3, 7), (3, 5), (1, 1)]):
        assert_same(session, run, feeds(batch, sequence, seed=seed))
    # One recording for 4 x 8 and one for 1 x 1, for each of the three lists of outputs.
    assert len(run._recordings) == 6


def test_a_batch_is_filled_up_with_its_last_text(session: Any) -> None:
    # A text without tokens would be something that networks never see.
    run, data = device_run(session, graphs=True), feeds(3, 8)
    run(OUTPUTS, data)
    (recording,) = run._recordings.values()
    for name, value in data.items():
        assert np.array_equal(recording.inputs[name].numpy(), value[[0, 1, 2, 2]])


def test_results_are_the_callers(session: Any) -> None:
    # Not views of memory that the next run overwrites.
    run = device_run(session, graphs=True)
    first = run(OUTPUTS, feeds(2, 4))
    kept = [array.copy() for array in first]
    run(OUTPUTS, feeds(2, 4, seed=1))
    assert all(np.array_equal(array, copy) for array, copy in zip(first, kept, strict=True))


@pytest.mark.parametrize("graphs", [False, True], ids=["bound", "replayed"])
def test_many_threads(graphs: bool, session: Any) -> None:
    run = device_run(session, Shapes(4, 16), graphs=graphs)
    work = [feeds(1 + seed % 6, 1 + seed % 9, seed=seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda data: run(OUTPUTS, data), work))
    for data, result in zip(work, results, strict=True):
        for array, expected in zip(result, session.run(OUTPUTS, data), strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)


def test_texts_that_are_too_long(session: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="A text has 17 tokens, and the engine of this device takes 16"):
        device_run(session, Shapes(4, 16))(OUTPUTS, feeds(1, 17))
