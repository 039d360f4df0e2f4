"""Encoding in several processes: the same result as in one, and how the processes start."""

from __future__ import annotations

import doctest
import inspect
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pools import TEXTS, notes, run, script, start

from stonnx import SentenceTransformer
from stonnx._errors import InvalidArgumentError, PoolError
from stonnx._model import pool as pool_module
from stonnx._model import pooled as pooled_module


def quit_at_once() -> None:
    os._exit(7)


# --- the same results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 7, 1000])
def test_vectors_are_those_of_one_process_in_order(minilm: Any, pool: Any, chunk_size: int | None) -> None:
    vectors = minilm.encode(TEXTS, pool=pool, chunk_size=chunk_size)
    assert (vectors.shape, vectors.dtype) == ((40, 384), np.float32)
    assert np.abs(vectors - minilm.encode(TEXTS)).max() <= 1e-6


def test_one_text_pairs_and_none(minilm: Any, pool: Any) -> None:
    assert np.abs(minilm.encode("one text", pool=pool) - minilm.encode("one text")).max() <= 1e-6
    pairs = [("a", "b"), "c"]
    assert np.abs(minilm.encode(pairs, pool=pool) - minilm.encode(pairs)).max() <= 1e-6
    for options in ({}, {"convert_to_numpy": False}, {"output_value": "token_embeddings"}):
        found, expected = minilm.encode([], pool=pool, **options), minilm.encode([], **options)
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found, expected)


def test_options_apply_as_without_a_pool(minilm: Any, pool: Any) -> None:
    options = {"truncate_dim": 100, "normalize_embeddings": True, "prompt": "query: ", "batch_size": 2}
    found = minilm.encode(TEXTS, pool=pool, **options)
    assert np.abs(found - minilm.encode(TEXTS, **options)).max() <= 1e-6
    assert found.shape == (40, 100)
    vectors = minilm.encode(TEXTS[:3], pool=pool, convert_to_numpy=False)
    assert isinstance(vectors, list)
    assert len(vectors) == 3
    torch = pytest.importorskip("torch")
    assert isinstance(minilm.encode(TEXTS[:3], pool=pool, convert_to_tensor=True), torch.Tensor)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_queries_and_documents_use_the_prompts_of_the_calling_model(
    minilm: Any, pool: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    prompts = {"query": "for: ", "document": "of: "}  # set after the pool was started
    monkeypatch.setattr(minilm, "prompts", prompts)
    found = getattr(minilm, method)(TEXTS[:5], pool=pool)
    expected = minilm.encode([prompts[method.removeprefix("encode_")] + text for text in TEXTS[:5]])
    assert np.abs(found - expected).max() <= 1e-6


def test_vectors_are_quantized_once_over_all_rows(minilm: Any, pool: Any) -> None:
    texts = [f"number {index}" for index in range(120)]
    found = minilm.encode(texts, pool=pool, precision="int8", chunk_size=60)
    expected = minilm.encode(texts, precision="int8")
    assert found.dtype == np.int8
    assert np.abs(found.astype(int) - expected).max() <= 1
    # Over all rows every dimension has its smallest value once; quantized by chunk, each chunk would have it.
    assert (found.min(axis=0) == -128).all()
    assert (found[:60].min(axis=0) > -128).any()
    assert (found[60:].min(axis=0) > -128).any()


def test_tokens_and_features(minilm: Any, pool: Any) -> None:
    texts = TEXTS[:6]
    expected = minilm.encode(texts, output_value=None)
    features = minilm.encode(texts, output_value=None, pool=pool, chunk_size=2)
    for found, item in zip(features, expected, strict=True):
        assert found.keys() == item.keys()
        np.testing.assert_array_equal(found["input_ids"], item["input_ids"])
        assert np.abs(found["sentence_embedding"] - item["sentence_embedding"]).max() <= 1e-6
    tokens = minilm.encode(texts, output_value="token_embeddings", pool=pool, chunk_size=4)
    for found, item in zip(tokens, expected, strict=True):
        assert found.shape == (len(item["input_ids"]), 384)
        assert np.abs(found - item["token_embeddings"]).max() <= 1e-5


def test_max_seq_length_may_change_after_the_pool_was_started(minilm: Any, pool: Any) -> None:
    text, before = "word " * 300, minilm.max_seq_length
    minilm.max_seq_length = 10
    try:
        assert len(minilm.encode(text, output_value=None, pool=pool)["input_ids"]) == 10
    finally:
        minilm.max_seq_length = before
    assert len(minilm.encode(text, output_value=None, pool=pool)["input_ids"]) == before


def test_a_list_of_devices_is_a_pool_for_one_call(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[pool_module.Pool] = []
    start = pooled_module.start_pool
    monkeypatch.setattr(pooled_module, "start_pool", lambda *arguments: started.append(start(*arguments)) or started[0])
    others = set(multiprocessing.active_children())
    vectors = minilm.encode(TEXTS[:4], device=["cpu", "cpu"])
    assert np.abs(vectors - minilm.encode(TEXTS[:4])).max() <= 1e-6
    assert len(started[0]["processes"]) == 2
    assert set(multiprocessing.active_children()) == others


def test_the_old_name_warns_and_works(minilm: Any, pool: Any) -> None:
    with pytest.warns(DeprecationWarning, match="encode_multi_process is deprecated, use encode"):
        vectors = minilm.encode_multi_process(TEXTS[:4], pool, chunk_size=1)
    assert np.abs(vectors - minilm.encode(TEXTS[:4])).max() <= 1e-6


def test_a_progress_bar_counts_texts(minilm: Any, pool: Any, capfd: pytest.CaptureFixture[str]) -> None:
    minilm.encode(TEXTS, pool=pool, show_progress_bar=True, chunk_size=15)
    assert "40/40" in capfd.readouterr().err
    minilm.encode(TEXTS, pool=pool, show_progress_bar=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_pool_and_chunk_size_stand_where_the_original_has_them(method: str) -> None:
    names = list(inspect.signature(getattr(SentenceTransformer, method)).parameters)
    assert names[-4:] == ["truncate_dim", "pool", "chunk_size", "kwargs"]


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "threads"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 2, 1]), (64, [16, 16, 16, 16])]
)
def test_processes_and_threads_are_the_cpus(
    minilm: Any, monkeypatch: pytest.MonkeyPatch, cpus: int, threads: list[int]
) -> None:
    monkeypatch.setattr(pool_module, "available_cpus", lambda: cpus)
    monkeypatch.setattr(pooled_module, "start_pool", lambda kind, states, threads: (states, threads))
    states, shares = minilm.start_multi_process_pool()
    assert shares == threads
    options = [(device, state["_options"]) for device, state in states]
    assert [(device, each["device"], each["threads"]) for device, each in options] == [
        ("cpu", "cpu", count) for count in threads
    ]


def test_a_device_may_be_named_often(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "available_cpus", lambda: 2)
    monkeypatch.setattr(pooled_module, "start_pool", lambda kind, states, threads: (states, threads))
    states, shares = minilm.start_multi_process_pool(["cuda:0", "cpu", "cpu"])
    assert [state["_options"]["device"] for _, state in states] == ["cuda:0", "cpu", "cpu"]
    assert shares == [1, 1, 1]


@pytest.mark.parametrize("devices", [[], "cpu", 4])
def test_what_is_no_list_of_devices(minilm: Any, devices: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be a list with at least one, such as \['cpu', 'cpu'\]; got"):
        minilm.start_multi_process_pool(devices)


def test_an_error_while_loading_keeps_its_type(minilm: Any) -> None:
    others = set(multiprocessing.active_children())
    with pytest.raises(InvalidArgumentError, match=r"device 'tpu' is not known\. Allowed: cpu") as error:
        minilm.start_multi_process_pool(["tpu"])
    assert "It was raised in a worker process:\n\nTraceback" in notes(error.value)
    assert "in devices_for" in notes(error.value)
    assert set(multiprocessing.active_children()) == others


def test_a_worker_that_dies_while_loading() -> None:
    with pytest.raises(
        PoolError, match=r"\(stonnx on cpu 0\) died with exit code 7\..*before the worker was ready.*if __na"
    ):
        start(1, load=quit_at_once)


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, *script(tmp_path, "pool = start(1)")], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 1
    assert "current process has finished its bootstrapping phase" in found.stderr
    assert "everything there that starts a pool must stand under `if __name__ == '__main__':`" in found.stderr


def test_tokenizers_get_the_threads_of_their_worker(fake_pool: Any) -> None:
    assert run(fake_pool, "act", ["rayon"]) == [os.environ.get("RAYON_NUM_THREADS", "1")]


# --- pickled models --------------------------------------------------------------------------------------------------


def test_examples_run() -> None:
    assert doctest.testmod(pool_module).failed == 0
