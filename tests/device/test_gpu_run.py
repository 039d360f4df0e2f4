"""Runs on a GPU: what is fed, where outputs stay, and which memory is returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_onnxruntime import CUDA_OPTIONS, Machine, opened

from stonnx._device.device_options import DeviceOptions


def test_feeds_that_a_graph_does_not_have_are_left_out(machine: Machine) -> None:
    machine.runtime()
    feeds: dict[str, Any] = {"input_ids": 1, "token_type_ids": None, "prompt_length": 2}
    assert opened("cpu").run(["sentence_embedding"], feeds) == [(["sentence_embedding"], {"input_ids": 1})]


def test_outputs_stay_on_the_gpu_until_the_run_is_done(machine: Machine) -> None:
    runtime = machine.runtime()
    session = opened("cuda:1")
    ids = np.arange(12).reshape(3, 4)
    (result,) = session.run(["sentence_embedding"], {"input_ids": ids})
    (binding,) = runtime.session.bindings
    assert binding.outputs == [("sentence_embedding", "cuda", 1)]
    assert np.array_equal(result, ids.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("device", "arenas"), [("cpu", "cpu:0"), ("cuda", "gpu:0;cpu:0"), ("cuda:1", "gpu:1;cpu:0")])
def test_trimming_shrinks_the_arenas_of_the_device(device: str, arenas: str, machine: Machine) -> None:
    runtime = machine.runtime()
    opened(device).trim()
    assert runtime.session.options.entries == {"memory.enable_memory_arena_shrinkage": arenas}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_trimming_leaves_what_was_recorded_its_memory(device: str, machine: Machine) -> None:
    """A recording has the addresses of the memory that its run took, and a replay writes there."""
    runtime = machine.runtime()
    session = opened(device, options=DeviceOptions(cuda_graphs=True, build=device == "tensorrt"))
    # The first run: nothing of it is recorded, or it would be replayed with inputs that are gone.
    assert runtime.session.options.entries == {"gpu_graph_id": "-1"}
    session.trim()
    assert runtime.session.options.entries == {"memory.enable_memory_arena_shrinkage": "cpu:0", "gpu_graph_id": "-1"}


def test_a_memory_limit_and_cuda_graphs(machine: Machine) -> None:
    runtime = machine.runtime()
    opened("cuda", options=DeviceOptions(memory_limit=2**30, cuda_graphs=True))
    ((_, options),) = runtime.asked[0]
    assert options == {**CUDA_OPTIONS, "gpu_mem_limit": 2**30, "enable_cuda_graph": 1}
