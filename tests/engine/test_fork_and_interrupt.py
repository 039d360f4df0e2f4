"""A model in a process that forks, and in one that is interrupted. Each runs in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from toy_bundles import dense_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has neither fork nor SIGINT")

# A hang shows as this. What is waited for takes a second or two.
_HANG_SECONDS = 120
# Ctrl-C ends a call within one second; on a machine where other tests run, it may take several. A call that it did not
# end would take longer than this.
_INTERRUPT_SECONDS = 20

PRELUDE = (
    f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
"""
    + """
import logging, os, signal, sys, threading, time
import numpy as np
import stonnx
from stonnx._model.model import with_limits

# Both sessions are there before the fork, each with its threads.
SideBySide = with_limits(stonnx.SentenceTransformer, tokens_before_second_session=0)
model = SideBySide(sys.argv[1], threads=3)
texts = [f"bread {'rises ' * (index % 9)} {index}" for index in range(400)]


def wait(*children):
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status


def in_child(work):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)
"""
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_bundle(tmp_path_factory.mktemp("toy") / "dense", width=256, rounds=8)


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = PRELUDE + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=_HANG_SECONDS, check=False)


def check(done: subprocess.CompletedProcess[str], printed: str = "") -> None:
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_children_of_a_preloaded_model_serve_like_their_parent(bundle: Path) -> None:
    """As in a server that loads the model once and forks workers: one text, many texts, and the parent goes on."""
    script = """
    expected, first = model.encode(texts), model.encode(texts[0])

    def serve():
        np.testing.assert_array_equal(model.encode(texts[0]), first)
        np.testing.assert_array_equal(model.encode(texts), expected)
        # A fork of a fork.
        wait(in_child(lambda: np.testing.assert_array_equal(model.encode(texts), expected)))

    children = [in_child(serve) for _ in range(3)]
    np.testing.assert_array_equal(model.encode(texts), expected)
    wait(*children)
    """
    check(run(script, bundle))


def test_a_child_tokenizes_whatever_the_environment_says(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this, the tokenizers package waits in the child for threads that only the parent has."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    script = """
    expected = model.encode(texts)

    def serve():
        np.testing.assert_array_equal(model.encode(texts), expected)
        np.testing.assert_array_equal(SideBySide(sys.argv[1], threads=3).encode(texts), expected)
        assert model.count_tokens(texts).sum() > 400

    child = in_child(lambda: (signal.alarm(60), serve()))
    np.testing.assert_array_equal(model.encode(texts), expected)
    wait(child)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    """
    check(run(script, bundle))


def test_a_child_of_a_parent_that_has_not_tokenized_keeps_its_threads(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    script = """
    def serve():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
        assert len(model.encode(texts)) == 400

    wait(in_child(lambda: (signal.alarm(60), serve())))
    """
    check(run(script, bundle))


def test_a_fork_in_the_middle_of_a_run(bundle: Path) -> None:
    """The locks that other threads hold are held in the child forever, by nobody."""
    script = """
    expected = model.encode(texts)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            model.encode(texts)
            model.encode(texts[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(6):
        time.sleep(0.05)
        children.append(in_child(lambda: np.testing.assert_array_equal(model.encode(texts), expected)))
    wait(*children)
    stop.set()
    for thread in threads:
        thread.join()
    """
    check(run(script, bundle))


def test_a_child_ends_as_any_process_does(bundle: Path, tmp_path: Path) -> None:
    """Destroying the sessions of the parent would wait for threads that the child does not have."""
    script = """
    import atexit, ctypes, multiprocessing

    model.encode(texts)
    for status in (0, 3):
        child = os.fork()
        if not child:
            model.encode(texts)
            del model
            atexit.register(lambda: print("by Python"))
            libc = ctypes.CDLL(None)
            libc.fopen.restype = ctypes.c_void_p
            libc.fputs(b"by C", ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w")))
            sys.exit(status)
        assert os.waitpid(child, 0) == (child, status << 8)
    process = multiprocessing.get_context("fork").Process(target=lambda: print(model.encode("bread").shape, flush=True))
    process.start()
    process.join()
    assert process.exitcode == 0
    """
    # What Python and C had not written yet is written in the end.
    check(run(script, bundle, tmp_path / "file"), "by Python\nby Python\n(256,)\n")
    assert (tmp_path / "file").read_text() == "by C"


def test_a_child_that_uses_no_model_ends_too(bundle: Path) -> None:
    script = """
    for _ in range(2):
        child = os.fork()
        if not child:
            sys.exit(0)
        wait(child)
    """
    check(run(script, bundle))


def test_a_child_on_a_gpu_is_told(bundle: Path) -> None:
    script = """
    # As if it ran on a GPU, which a forked process cannot use.
    runner = model._route._runner
    runner._on_cpu = False

    def serve():
        try:
            model.encode("bread")
        except stonnx.DeviceError as error:
            print(error, flush=True)

    wait(in_child(serve))
    """
    done = run(script, bundle)
    assert done.returncode == 0
    assert "This process was forked from one that had loaded the model" in done.stdout
    assert "Load the model after the fork" in done.stdout


INTERRUPTED = """
import pytest
from fake_session import Sessions

model.warmup()
expected = model.encode(texts[0])
ends, started = [], threading.Event()


def run(asked):
    if not started.is_set():
        started.set()
        print("running", flush=True)
    try:
        return asked.go()
    finally:
        ends.append(str(sys.exc_info()[1]))


patch = pytest.MonkeyPatch()
Sessions(patch, model, answer=run)
try:
    encode()
except KeyboardInterrupt:
    print("interrupted", *ends[-1:], flush=True)
patch.undo()
print(np.allclose(model.encode(texts[0]), expected), flush=True)
print(len([thread for thread in threading.enumerate() if "stonnx" in thread.name]), flush=True)
"""


@pytest.mark.parametrize(
    ("encode", "endless"),
    [
        ("lambda: model.encode([text + str(index) for index in range(10**5) for text in texts[:2]])", True),
        # A run that takes many seconds, and must not come to its end.
        ("lambda: model.encode('a ' * 20_000)", False),
        ("lambda: [model.encode(texts[0]) for _ in iter(int, 1)]", True),
    ],
    ids=["many texts", "one run", "one text at a time"],
)
def test_ctrl_c_ends_a_call_and_leaves_the_model_usable(tmp_path: Path, encode: str, endless: bool) -> None:
    bundle = dense_bundle(tmp_path / "slow", width=512, rounds=200, max_seq_length=20_002)
    first = interrupted(f"{PRELUDE}\nencode = {encode}\n{INTERRUPTED}", bundle)
    assert "terminate flag" in first or endless


def interrupted(program: str, bundle: Path, *, after: float = 0.0) -> str:
    """Run a program that prints ``running``, send it SIGINT, and return the line that says that it was interrupted."""
    # A shell that runs the tests in the background has them ignore SIGINT, and so their children.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeds}\n{program}", str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Not communicate(), which does not see what readline() has read ahead.
        watchdog = threading.Timer(_HANG_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == "running\n"
            time.sleep(after)
            sent = time.perf_counter()
            process.send_signal(signal.SIGINT)
            first = process.stdout.readline()
            seconds = time.perf_counter() - sent
            others = process.stdout.read().splitlines()
            process.wait()
        finally:
            watchdog.cancel()
            process.kill()
    assert others == ["True", "0"]
    assert first.startswith("interrupted")
    assert process.returncode == 0
    assert seconds < _INTERRUPT_SECONDS
    return first


TOKENIZING = """
import tokenizers

# Texts that cannot be shortened, of characters each of which is a token: some seconds of tokenization for a million.
for route in model._engine.routes:
    route.tokenizer._can_be_shortened = False
model.warmup()
expected = model.encode(texts[0])
print("running", flush=True)
try:
    encode()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(np.allclose(model.encode(texts[0]), expected), flush=True)
print(len([thread for thread in threading.enumerate() if thread.name.startswith("stonnx-run")]), flush=True)
"""


@pytest.mark.parametrize(
    "encode",
    [
        "lambda: model.encode([f'{index} ' + 'abc def ghij ' * 20_000 for index in range(100)])",
        "lambda: model.encode([f'{index} ' + 'abc def ghij ' * 2_000 for index in range(1000)])",
        "lambda: model.encode('abc def ghij ' * 1_500_000)",
        "lambda: model.count_tokens('abc def ghij ' * 1_500_000)",
    ],
    ids=["a hundred texts", "a thousand texts", "one text", "counting"],
)
def test_ctrl_c_ends_a_call_that_tokenizes(bundle: Path, encode: str) -> None:
    interrupted(f"{PRELUDE}\nencode = {encode}\n{TOKENIZING}", bundle, after=0.7)
