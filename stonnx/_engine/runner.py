"""Runs of one graph from any number of threads: the choice of session, parallel runs, forks and Ctrl-C.

Two sessions run the same graph on the CPU. One uses *all threads* for each run: a single text is ready soonest. The
other uses a *single thread* for each run, and as many runs as there are threads go side by side. There, no thread waits
for the slowest one after each operation. That gave 1.05 to 1.2 times the throughput on two idle cores, and 1.2 to 1.9
times when other processes wanted the cores too. onnxruntime's Python API cannot share prepared weights between
sessions, so the single-thread session needs a second copy of the weights. It is made only after so many texts that
they gain by it, and never for large weights, whose products are large enough to keep all threads busy.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt

from stonnx._device.memory import available_memory
from stonnx._device.session import RunControl
from stonnx._engine.graph_session import GraphSession
from stonnx._errors import DeviceError, RunError
from stonnx._limits import Limits

_Feeds = Mapping[str, "npt.NDArray[Any] | None"]
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Outputs:
    """The outputs of a run, the seconds that it waited for threads and its session, and the seconds that it took."""

    arrays: list[npt.NDArray[Any]]
    queue_seconds: float
    run_seconds: float


class Runner:
    """One loaded graph. Many threads may call all methods at once.

    Args:
        load: Loads a session with a number of threads; None stands for the number that the user chose.
        weight_bytes: The size of the weights.
        limits: The limits that decide when a second session is loaded, and which runs need a thread of their own.
        shapes: The shapes of the outputs that the manifest promises.
    """

    def __init__(
        self,
        load: Callable[[int | None], GraphSession],
        weight_bytes: int,
        limits: Limits,
        shapes: Mapping[str, tuple[int | str, ...]],
    ) -> None:
        self._load, self._shapes = load, shapes
        self._limits = limits
        self._weight_bytes = weight_bytes
        session = load(None)
        self._on_cpu = session.device == "cpu"
        # A GPU takes one run after the other.
        self._parallel = session.threads if self._on_cpu else 1
        self._begin(session)
        _runners.add(self)

    def _begin(self, session: GraphSession | None) -> None:
        self._all_threads = session
        self._single_thread: GraphSession | None = None
        self._loading = threading.Lock()
        self._threads = _Threads(self._parallel)
        self._tokens = 0

    @property
    def session(self) -> GraphSession:
        """The session of all threads."""
        if self._all_threads is None:
            if not self._on_cpu:
                raise DeviceError(
                    "This process was forked from one that had loaded the model. A fork does not copy what a device "
                    "other than the CPU needs in a process, such as the connection to a GPU or a library's threads. "
                    "Load the model after the fork, or start the process with multiprocessing's 'spawn' method."
                )
            with self._loading:
                self._all_threads = self._all_threads or self._load(None)
        return self._all_threads

    def workers(self, tokens: int) -> int:
        """The number of runs side by side for a call of so many tokens. This may load the single-thread session."""
        self._tokens += tokens
        if self._single_thread is not None:
            return self._parallel
        if self._parallel == 1 or self._weight_bytes > self._second_copy_bytes():
            return 1
        if self._tokens < self._limits.tokens_before_second_session:
            return 1
        # While one thread loads it, the others go on with the session of all threads.
        if not self._loading.acquire(blocking=False):
            return 1
        try:
            self._single_thread = self._single_thread or self._load(1)
        finally:
            self._loading.release()
        return self._parallel

    def _second_copy_bytes(self) -> int:
        """The most bytes of weights that are held twice: in a small container, a quarter of its memory."""
        memory = available_memory()
        most = self._limits.second_copy_bytes
        return most if memory is None else min(most, memory // 4)

    @property
    def parallel_runs(self) -> int:
        """The number of runs side by side if there are enough texts."""
        return 1 if self._weight_bytes > self._second_copy_bytes() else self._parallel

    def is_on_one_thread(self, workers: int) -> bool:
        """Whether each of so many runs side by side has one thread of the CPU."""
        return self._on_cpu and (workers > 1 or self._parallel == 1)

    def run(
        self,
        outputs: Sequence[str],
        feeds: _Feeds,
        tokens: int,
        *,
        alone: bool,
        control: RunControl | None = None,
        free_memory: bool = False,
    ) -> Outputs:
        """Run the graph.

        Args:
            outputs: Names of the outputs.
            feeds: The inputs.
            tokens: The number of tokens, padding included.
            alone: Whether its call has no other runs meanwhile. It then gets all threads, unless another call has some.
            control: The object that can stop it.
            free_memory: Whether to give back memory at the end.
        """
        start = time.perf_counter()
        session = self.session
        taken = self._threads.take(everything=alone or self._single_thread is None)
        try:
            if taken < self._parallel and (self._single_thread is not None or self.workers(tokens) > 1):
                session = self._single_thread or session
            ready = time.perf_counter()
            arrays = session.run(outputs, feeds, control, free_memory=free_memory)
            self._check(outputs, arrays, feeds)
            return Outputs(arrays, ready - start, time.perf_counter() - ready)
        finally:
            self._threads.give(taken)

    def _check(self, outputs: Sequence[str], arrays: Sequence[npt.NDArray[Any]], feeds: _Feeds) -> None:
        """Check that each output has the shape that the manifest promises: numpy would broadcast another one."""
        ids = next(array for array in feeds.values() if array is not None)
        # Of images, the other sizes are fixed.
        sizes = {"batch": ids.shape[0], "sequence": ids.shape[1]}
        for name, array in zip(outputs, arrays, strict=True):
            promised = self._shapes.get(name)
            if promised is None:
                continue
            wanted = tuple(sizes.get(size, -1) if isinstance(size, str) else size for size in promised)
            if len(wanted) != array.ndim or any(
                size not in (-1, found) for size, found in zip(wanted, array.shape, strict=True)
            ):
                raise RunError(
                    f"The graph gave {name} with the shape {list(array.shape)} for {sizes['batch']} texts of "
                    f"{sizes['sequence']} tokens, and its manifest promises {list(promised)}. Export the model again "
                    "with: stonnx export MODEL -o DIRECTORY"
                )

    def can_run_here(self, tokens: int) -> bool:
        """Whether a run of so many tokens can do without a thread of its own: Ctrl-C reaches the main thread only."""
        return tokens <= self._limits.uninterrupted_tokens or threading.current_thread() is not threading.main_thread()

    def map(self, work: Callable[[_Job, RunControl], _Result], jobs: Iterable[_Job], workers: int) -> Iterator[_Result]:
        """``work(job, control)`` for each job, in worker threads. The results come in the order of the jobs.

        An exception, including Ctrl-C, ends the runs in progress, and no others start.
        """
        control = self.session.control()
        pending: deque[Future[_Result]] = deque()
        threads: set[threading.Thread] = set()

        def in_thread(job: _Job) -> _Result:
            threads.add(threading.current_thread())
            return work(job, control)

        with ThreadPoolExecutor(workers, "stonnx-run") as executor:
            try:
                for job in jobs:
                    pending.append(executor.submit(in_thread, job))
                    # Enough that workers do not wait for the caller to take results, and few enough to bound memory.
                    if len(pending) > 2 * workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BaseException:
                control.stop()
                for future in pending:
                    future.cancel()
                executor.shutdown()
                # If Ctrl-C comes while submit() starts a thread, the executor does not know of it or wait for it.
                for thread in list(threads):
                    thread.join()
                raise

    def warmup(self, outputs: Sequence[str], feeds: _Feeds, *, free_memory: bool) -> None:
        """Run the feeds in every session, including those that would be loaded later."""
        self.workers(self._limits.tokens_before_second_session)
        for session in self.sessions():
            session.run(outputs, feeds, free_memory=free_memory)

    def trim(self) -> None:
        """Give back memory: the single-thread session, until as many texts have come again, and unused arenas."""
        self._single_thread, self._tokens = None, 0
        self.session.trim()

    def sessions(self) -> list[GraphSession]:
        """The loaded sessions."""
        return [session for session in (self._all_threads, self._single_thread) if session is not None]


class _Threads:
    """The threads that all runs of a graph share."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._condition = threading.Condition()

    def take(self, everything: bool) -> int:
        """Wait for a thread. Returns the number of threads taken: all if ``everything`` is set and all are free."""
        with self._condition:
            while not self._free:
                self._condition.wait()
            taken = self._free if everything and self._free == self._count else 1
            self._free -= taken
            return taken

    def give(self, taken: int) -> None:
        """Give threads back."""
        with self._condition:
            self._free += taken
            self._condition.notify(taken)


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Drop the sessions of a forked process. It does not have their threads, and a run would wait forever."""
    for runner in list(_runners):
        for session in runner.sessions():
            # Destroying them would wait for the threads too, so they are kept until the process ends.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        runner._begin(None)
    if "onnxruntime" in sys.modules:
        _leave_without_destructors()


def _leave_without_destructors() -> None:
    """End this process before the destructors of C++ libraries, once Python is finished and C's files are written.

    onnxruntime's destructors wait for a thread that its import starts, and a forked process does not have that thread.
    Without this it hangs or crashes when it exits (seen with onnxruntime 1.32, with and without a session).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc, as all onnxruntime wheels for Linux need
        # The last one goes first.
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
        libc["__cxa_atexit"](ctypes.cast(libc.fflush, ctypes.c_void_p), None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
