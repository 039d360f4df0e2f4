"""A model with native kernels in a process that forks, pickles, is interrupted, has many threads, or runs for long.

``tests/engine`` has the same for stock operators. Each test has processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stonnx._device import kernels as native

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has neither fork nor SIGINT"),
    pytest.mark.skipif(isinstance(native.find(), native.Unusable), reason="there are no native kernels"),
]

# A hang shows as this.
_HANG_SECONDS = 240

PRELUDE = (
    f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
"""
    + """
import json, os, pickle, random, re, signal, sys, threading, time
import numpy as np
import stonnx
from stonnx._model.model import with_limits

# Both sessions are there from the start, the one with all threads and the one with a single thread for each run.
SideBySide = with_limits(stonnx.SentenceTransformer, tokens_before_second_session=0)


def load():
    model = SideBySide(sys.argv[1], device="cpu", threads=2)
    assert model.info.kernels, model.info.fallbacks
    return model


def texts(seed, count, longest=60):
    generator = random.Random(seed)
    return ["bread rises and falls " * generator.randrange(1, longest // 4) + str(index) for index in range(count)]


def resident():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\\s+(\\d+)", status.read()).group(1)) / 1024
"""
)


def run(bundle: Path, script: str) -> Any:
    """What a script prints as JSON at its end."""
    command = [sys.executable, "-c", PRELUDE + script, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_fork_while_threads_run_and_load(minilm_int8_bundle: Path) -> None:
    """Sixteen threads run kernels, one makes sessions, and each child makes its own and gets the same vectors."""
    script = """
model, some = load(), texts(0, 12)
expected, first = model.encode(some), model.encode(some[0])
stop, wrong = threading.Event(), []


def work():
    while not stop.is_set():
        if not np.array_equal(model.encode(some), expected) or not np.array_equal(model.encode(some[0]), first):
            wrong.append(True)


def make():
    while not stop.is_set():
        load()


threads = [threading.Thread(target=work) for _ in range(16)] + [threading.Thread(target=make)]
for thread in threads:
    thread.start()
children = []
for _ in range(4):
    time.sleep(0.2)
    child = os.fork()
    if not child:
        signal.alarm(100)
        same = np.array_equal(model.encode(some), expected) and np.array_equal(model.encode(some[0]), first)
        os._exit(0 if same and model.info.kernels else 1)
    children.append(child)
stop.set()
for thread in threads:
    thread.join()
print(json.dumps([len(wrong), *(os.waitpid(child, 0)[1] for child in children)]))
"""
    assert run(minilm_int8_bundle, script) == [0, 0, 0, 0, 0]


def test_a_fork_while_another_thread_packs_weights() -> None:
    """The lock of the packed weights is free in the child."""
    script = """
from stonnx._device import kernels

library, stop = kernels.find(), threading.Event()


def pack():
    while not stop.is_set():
        library.seconds_of_a_layer(1024, 4096, 8, 1, bfloat16=False)


threads = [threading.Thread(target=pack) for _ in range(2)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(12):
    time.sleep(0.03)
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if library.seconds_of_a_layer(64, 64, 1, 1, bfloat16=False) > 0 else 1)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print(json.dumps(statuses))
"""
    assert run(Path(), script) == [0] * 12


def test_pickle_pool_and_trim(minilm_int8_bundle: Path) -> None:
    script = """
from stonnx._engine.engine import Engine
from stonnx._engine.probe import outputs_of

model, some = stonnx.SentenceTransformer(sys.argv[1], device="cpu", threads=2), texts(1, 40)
assert model.info.kernels
expected = model.encode(some)
model.trim()
assert np.array_equal(model.encode(some), expected)
again = pickle.loads(pickle.dumps(model))
assert again.info.kernels == model.info.kernels
assert np.array_equal(again.encode(some), expected)
pool = model.start_multi_process_pool(["cpu", "cpu"])
try:
    pooled = model.encode(some, pool=pool)
finally:
    model.stop_multi_process_pool(pool)
engine = Engine(model._engine.bundle, device="cpu", kernels=False)
stock = outputs_of(engine.route(), "embedding", some)
print(json.dumps([float(np.abs(pooled - expected).max()), float(np.abs(stock - expected).max())]))
"""
    pooled, stock = run(minilm_int8_bundle, script)
    # Pooling, which is not a kernel, adds up in an order that depends on the batch. Stock operators are further away.
    assert pooled < 1e-6 < 1e-4 < stock


def test_ctrl_c_ends_a_call(minilm_int8_bundle: Path) -> None:
    script = """
import pytest
from fake_session import Sessions

signal.signal(signal.SIGINT, signal.default_int_handler)
model, started, sent = load(), threading.Event(), []
expected = model.encode(texts(2, 8))


def run(asked):
    started.set()
    return asked.go()


def interrupt():
    started.wait()
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)


Sessions(pytest.MonkeyPatch(), model, answer=run)
threading.Thread(target=interrupt).start()
try:
    model.encode(texts(3, 100_000, 400), batch_size=256)
    seconds = None
except KeyboardInterrupt:
    seconds = time.perf_counter() - sent[0]
same = bool(np.array_equal(model.encode(texts(2, 8)), expected))
print(json.dumps([seconds, same, len([each for each in threading.enumerate() if "stonnx-run" in each.name])]))
"""
    seconds, same, left = run(minilm_int8_bundle, script)
    assert seconds is not None
    # Within a second on a quiet machine.
    assert seconds < 5
    assert (same, left) == (True, 0)


def test_memory_stays_on_a_plateau(minilm_int8_bundle: Path) -> None:
    """Over calls of random shapes from four threads, and over models that are loaded and dropped."""
    script = """
import gc

model = load()


def calls(seed):
    for number in range(seed, seed + 12):
        model.encode(texts(number, 1 + number % 23, 120))
        model.encode(texts(number, 1, 900)[0])


runs, loads = [], []
for part in range(4):
    threads = [threading.Thread(target=calls, args=(48 * part + 12 * thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs.append(resident())
del model
for part in range(4):
    for _ in range(5):
        load().encode(texts(part, 3))
        gc.collect()
    loads.append(resident())
print(json.dumps([runs, loads]))
"""
    runs, loads = run(minilm_int8_bundle, script)
    # A leak of a call's working memory, of about 2 MB, would be 250 MB; of the packed weights, of 11 MB, 165 MB.
    assert max(runs[1:]) - runs[0] < 40
    assert max(loads[1:]) - loads[0] < 40
