"""Errors and deaths in a pool: an error that says what happened, and no hang and no orphan whatever happens."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pools import TEXTS, alive, all_gone, notes, posix, run, script, start

from stonnx import SentenceTransformer
from stonnx._errors import DeviceError, InvalidArgumentError, InvalidInputError, PoolError, StonnxError
from stonnx._model.pool import stop_pool

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
    assert time.monotonic() - begin < 50  # the others sleep for a minute
    assert all_gone(pids, 30)
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
    assert all_gone(pids, 30)
    with pytest.raises(
        PoolError, match=r"This pool was stopped\. Start a new one with: model\.start_multi_process_pool"
    ):
        run(pool, "act", ["a"])
    stop_pool(pool)


def test_a_pool_that_is_stopped_while_it_works_and_one_that_is_forgotten(tmp_path: Path) -> None:
    pool = start()
    processes = list(pool["processes"])
    begun = [tmp_path / "first", tmp_path / "second"]
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(run, pool, "touch_and_sleep", [*map(str, begun)]) for _ in range(2)]
        while not all(path.exists() for path in begun):
            assert not any(call.done() for call in calls)
            time.sleep(0.01)
        stop_pool(pool)
        with pytest.raises(PoolError, match="stopped while a call was using it"):
            raise next(call.exception(60) for call in calls if "while" in str(call.exception(60)))
        assert all(isinstance(call.exception(60), PoolError) for call in calls)
    del pool, calls

    pool = start()
    processes = list(pool["processes"])
    del pool
    gc.collect()
    for process in processes:
        process.join(60)
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
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode == -number
    assert all_gone(pids, 30)
    assert errors.count("Traceback") == (number == signal.SIGINT), errors
