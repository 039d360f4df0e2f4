"""Encoding in several processes: the same result as in one, and no hang and no orphan whatever happens to them."""

from __future__ import annotations

import copy
import doctest
import gc
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import SentenceTransformer
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest, write_manifest
from stonnx._errors import (
    BundleIntegrityError,
    DeviceError,
    InvalidArgumentError,
    InvalidInputError,
    ModelNotFoundError,
    PoolError,
    StonnxError,
)
from stonnx._model import pool as pool_module
from stonnx._model import pooled as pooled_module
from stonnx._model.pool import run_in_pool, start_pool, stop_pool

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

TEXTS = [f"{'several words, ' * (index % 7)}and number {index}" for index in range(40)]


class UnpicklableError(Exception):
    """Two arguments, of which pickle keeps one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Fake:
    """In place of a model: its texts say what happens to them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "load" in state:
            state["load"]()

    def _answer(self, call: tuple[str, tuple[Any, ...]], texts: list[str]) -> Any:
        method, arguments = call
        return getattr(self, method)(texts, *arguments)

    def upper(self, texts: list[str], suffix: str = "") -> list[str]:
        return [text.upper() + suffix for text in texts]

    def act(self, texts: list[str]) -> list[Any]:
        return [ACTIONS[text]() if text in ACTIONS else text for text in texts]

    def refuse_bad(self, texts: list[str]) -> list[str]:
        for text in texts:
            if text.startswith("bad"):
                raise ValueError(text)
        return texts


def fail() -> None:
    raise DeviceError("the device is on holiday")


def fail_unpicklably() -> None:
    raise UnpicklableError("cannot", "travel")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: time.sleep(60),
    "fail": fail,
    "fail unpicklably": fail_unpicklably,
    "return unpicklable": lambda: lambda: None,
    "exit": lambda: sys.exit(3),
    "kill": kill,
    "pid": os.getpid,
    "rayon": lambda: os.environ["RAYON_NUM_THREADS"],
}


def quit_at_once() -> None:
    os._exit(7)


def start(count: int = 2, **state: Any) -> pool_module.Pool:
    return start_pool(Fake, [(f"cpu {number}", state) for number in range(count)], [1] * count)


def run(
    pool: pool_module.Pool, method: str, texts: list[str], *arguments: Any, chunk_size: int | None = 1
) -> list[Any]:
    chunks = run_in_pool(pool, (method, arguments), texts, chunk_size=chunk_size, advance=lambda count: None)
    return [item for chunk in chunks for item in chunk]


def notes(error: BaseException) -> str:
    return "\n".join(error.__notes__)


@pytest.fixture(scope="module")
def fake_pool() -> Iterator[pool_module.Pool]:
    pool = start()
    yield pool
    stop_pool(pool)


@pytest.fixture(scope="module")
def pool(minilm: Any) -> Iterator[pool_module.Pool]:
    pool = minilm.start_multi_process_pool(["cpu", "cpu"])
    yield pool
    minilm.stop_multi_process_pool(pool)


@pytest.fixture(scope="module")
def other_bundle(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its tokenizer written differently: as far as the hashes tell, another one."""
    directory = tmp_path_factory.mktemp("other")
    for path in minilm_bundle.iterdir():
        os.link(path, directory / path.name)
    (directory / MANIFEST_NAME).unlink()
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").write_bytes((minilm_bundle / "tokenizer.json").read_bytes() + b"\n")
    manifest = read_manifest(minilm_bundle)
    object.__setattr__(manifest, "files", hash_files(directory, manifest.files))
    write_manifest(directory, manifest)
    return directory


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
    with pytest.raises(InvalidArgumentError, match=r"must be a list with at least one, as \['cpu', 'cpu'\]; got"):
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


# --- errors ----------------------------------------------------------------------------------------------------------


def test_results_are_in_order_and_from_all_workers(fake_pool: Any) -> None:
    texts = [f"text {index}" for index in range(101)]
    assert run(fake_pool, "upper", texts, "!", chunk_size=4) == [f"TEXT {index}!" for index in range(101)]
    pids = set(run(fake_pool, "act", ["pid"] * 50))
    assert pids == {process.pid for process in fake_pool["processes"]}


def test_messages_larger_than_any_pipe(fake_pool: Any) -> None:
    texts = ["x" * 3_000_000] * 6
    assert run(fake_pool, "upper", texts) == ["X" * 3_000_000] * 6


def test_an_error_keeps_its_type_and_the_pool_stays_usable(fake_pool: Any) -> None:
    with pytest.raises(DeviceError) as error:
        run(fake_pool, "act", [*"abc", "fail", *"def"])
    assert str(error.value) == "the device is on holiday"
    assert "in fail\n    raise DeviceError" in notes(error.value)
    assert run(fake_pool, "act", [*"abcdef"]) == [*"abcdef"]


@pytest.mark.parametrize(
    ("action", "kind", "message", "place"),
    [
        ("fail unpicklably", PoolError, "UnpicklableError: cannot", "in fail_unpicklably"),
        ("exit", PoolError, "SystemExit: 3", "sys.exit(3)"),
        ("return unpicklable", Exception, "pickle", "pickle.dumps"),
    ],
)
def test_what_cannot_be_sent_is_an_error_too(
    fake_pool: Any, action: str, kind: type[Exception], message: str, place: str
) -> None:
    with pytest.raises(kind) as error:
        run(fake_pool, "act", ["a", action])
    assert message in str(error.value)
    assert place in notes(error.value)
    assert run(fake_pool, "act", ["a"]) == ["a"]


def test_arguments_that_cannot_be_sent_leave_the_pool_usable(fake_pool: Any) -> None:
    with pytest.raises(Exception, match="pickle"):
        run(fake_pool, "upper", ["a"], lambda: None)
    assert run(fake_pool, "upper", ["a"]) == ["A"]


def test_of_several_errors_the_first_is_raised(fake_pool: Any) -> None:
    texts = ["good"] * 20
    texts[2] = "bad: two"
    texts[3] = "bad: three"
    with pytest.raises(ValueError, match="two"):
        run(fake_pool, "refuse_bad", texts)
    with pytest.raises(ValueError, match="nineteen"):
        run(fake_pool, "refuse_bad", ["good"] * 19 + ["bad: nineteen"])


def test_a_bad_text_is_named_and_the_pool_stays_usable(minilm: Any, pool: Any) -> None:
    texts = [*TEXTS[:9], "half \ud800 of a pair"]
    with pytest.raises(InvalidInputError, match=r"^Input 9 is not valid Unicode") as error:
        minilm.encode(texts, pool=pool, chunk_size=2)
    assert error.value.index == 9
    with pytest.raises(InvalidInputError, match="Input 1 is not a text"):
        minilm.encode(["a", None], pool=pool)
    assert minilm.encode(TEXTS[:9], pool=pool).shape == (9, 384)


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, True])
def test_chunk_sizes_that_are_none(minilm: Any, pool: Any, chunk_size: Any) -> None:
    for texts in (TEXTS, []):
        with pytest.raises(ValueError, match="chunk_size must be a positive integer or None, got"):
            minilm.encode(texts, pool=pool, chunk_size=chunk_size)
    with pytest.raises(ValueError, match="chunk_size"):
        minilm.encode(TEXTS, device=["cpu"], chunk_size=chunk_size)


@pytest.mark.parametrize("thing", [{"input": None, "output": None, "processes": []}, {}, 2])
def test_what_is_no_pool(minilm: Any, thing: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"pool must be what model\.start_multi_process_pool"):
        minilm.encode(TEXTS, pool=thing)
    with pytest.raises(InvalidArgumentError, match="pool must be what"):
        minilm.stop_multi_process_pool(thing)


def test_the_pool_of_another_model_is_refused(other_bundle: Path, minilm: Any, pool: Any) -> None:
    other = SentenceTransformer(other_bundle)
    with pytest.raises(InvalidArgumentError, match="This pool was started by another model"):
        other.encode(TEXTS, pool=pool)
    assert minilm.encode(TEXTS[:2], pool=pool).shape == (2, 384)


def test_the_pool_of_another_process_is_refused(fake_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)  # as in a process that was forked
        with pytest.raises(PoolError, match=r"belongs to the process \d+\. Start a new one"):
            run(fake_pool, "upper", ["a"])
        stop_pool(fake_pool)
    assert run(fake_pool, "upper", ["a"]) == ["A"]


# --- death -----------------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to ask for the exit code does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return Path("/proc/self").exists() is False


def all_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def script(tmp_path: Path, text: str) -> list[str]:
    """The arguments of an interpreter that runs a text as a main script, with this module's names."""
    path = tmp_path / "main_script.py"
    here = Path(__file__)
    path.write_text(f"import sys\nsys.path.insert(0, {str(here.parent)!r})\nfrom {here.stem} import *\n{text}\n")
    return [str(path)]


@posix
def test_a_killed_worker_raises_within_seconds_and_stops_the_others() -> None:
    pool = start()
    pids = [process.pid for process in pool["processes"]]
    begin = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"process \d+ \(stonnx on cpu \d\) died with exit code -9 \(SIGKILL"
    ) as error:
        run(pool, "act", ["kill", "sleep", "sleep"])
    assert isinstance(error.value, StonnxError)
    assert time.monotonic() - begin < 10
    assert all_gone(pids, 5)
    with pytest.raises(PoolError, match=r"died with exit code -9.*Start a new one"):
        run(pool, "act", ["a"])
    stop_pool(pool)


@posix
def test_a_worker_that_was_killed_between_two_calls() -> None:
    pool = start()
    assert run(pool, "act", ["a"]) == ["a"]
    victim = pool["processes"][1]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(PoolError, match="died with exit code -9"):
        run(pool, "act", ["sleep"])  # not given to the dead one
    stop_pool(pool)


def test_a_stopped_pool_raises_and_may_be_stopped_again() -> None:
    pool = start(1)
    pids = [process.pid for process in pool["processes"]]
    stop_pool(pool)
    assert all_gone(pids, 5)
    with pytest.raises(
        PoolError, match=r"This pool was stopped\. Start a new one with: model\.start_multi_process_pool"
    ):
        run(pool, "act", ["a"])
    stop_pool(pool)


def test_a_pool_that_is_stopped_while_it_works_and_one_that_is_forgotten() -> None:
    pool = start()
    processes = list(pool["processes"])
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(run, pool, "act", ["sleep", "sleep"]) for _ in range(2)]
        time.sleep(0.2)
        stop_pool(pool)
        with pytest.raises(PoolError, match="stopped while a call was using it"):
            raise next(call.exception(10) for call in calls if "while" in str(call.exception(10)))
        assert all(isinstance(call.exception(10), PoolError) for call in calls)
    del pool, calls

    pool = start()
    processes = list(pool["processes"])
    del pool
    gc.collect()
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [0, 0]


def test_threads_share_a_pool(fake_pool: Any) -> None:
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(run, fake_pool, "upper", [f"a{n}"] * 30, str(n)) for n in range(4)]
    for number, call in enumerate(calls):
        assert call.result() == [f"A{number}{number}"] * 30


WORKING = """
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = start()
    print(*(process.pid for process in pool["processes"]), flush=True)
    run(pool, "act", ["sleep"] * 4)
"""


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_workers_end_with_the_parent(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, *script(tmp_path, WORKING)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        assert [alive(pid) for pid in pids] == [True, True]
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as a terminal does it
        else:
            parent.send_signal(number)
        _, errors = parent.communicate(timeout=20)
    assert parent.returncode == -number
    assert all_gone(pids, 10)
    assert errors.count("Traceback") == (number == signal.SIGINT), errors


# --- pickled models --------------------------------------------------------------------------------------------------


def test_a_pickled_model_is_its_path_and_options(minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(minilm_bundle.parent)
    model = SentenceTransformer(
        minilm_bundle.name, prompts={"q": "ask: "}, default_prompt_name="q", truncate_dim=50, threads=1
    )
    model.max_seq_length = 12
    model.similarity_fn_name = "dot"
    message = pickle.dumps(model)
    assert len(message) < 5000
    monkeypatch.chdir("/")
    twin = pickle.loads(message)
    assert type(twin) is SentenceTransformer
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length", "similarity_fn_name", "device"):
        assert getattr(twin, name) == getattr(model, name)
    assert twin.info.threads == 1
    np.testing.assert_array_equal(twin.encode(TEXTS), model.encode(TEXTS))
    again = copy.deepcopy(twin)
    again.prompts["q"] = ""
    assert twin.prompts["q"] == "ask: "


def test_a_pickled_model_whose_bundle_has_gone_or_changed(
    minilm: Any, minilm_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(other_bundle)
    state = minilm.__getstate__()
    twin = SentenceTransformer.__new__(SentenceTransformer)
    with pytest.raises(BundleIntegrityError, match="is another bundle than when the model was pickled"):
        twin.__setstate__(state | {"_directory": tmp_path / "bundle"})
    with pytest.raises(ModelNotFoundError, match=r"is not a bundle here\. A pickled model is the path of its bundle"):
        twin.__setstate__(state | {"_directory": tmp_path})
    twin.__setstate__(state)
    assert twin.info.directory == str(minilm_bundle.resolve())


def test_examples_run() -> None:
    assert doctest.testmod(pool_module).failed == 0
