"""The threads that run the texts that the queue chooses. They outlive every error of a run."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stonnx._batcher.queue import Queue
from stonnx._batcher.waiting import Lane, Pace, Request, Run
from stonnx._errors import StonnxError
from stonnx._model.work import Work
from stonnx._text.tokens import TokenIds

logger = logging.getLogger("stonnx")

# A run is frozen if it takes this many times as long as expected, and at least this many seconds.
_FROZEN_FACTOR = 20
_FROZEN_SECONDS = 1.0
# The limit before the first measurement, when the time of a run is unknown.
_FROZEN_SECONDS_AT_FIRST = 60.0


@dataclass(frozen=True)
class Done:
    """The outcome of a run for one text: its result, or its error."""

    request: Request
    # The positions of the text in the request: several if it occurs several times.
    positions: Sequence[int]
    result: Any
    error: BaseException | None
    finished: float


@dataclass(frozen=True)
class RunReport:
    """The figures of a run, for metrics."""

    work: Work
    texts: int
    tokens: int
    padded_tokens: int
    seconds: float
    failed_texts: int


@dataclass(frozen=True)
class Load:
    """The waiting and running work at a moment."""

    queued_tokens: int
    queued_bulk_tokens: int
    queued_texts: int
    running_tokens: int
    cancelled_texts: int
    tokens_per_second: float | None


class Workers:
    """Threads that run the texts of a queue, for one or several models on one device.

    Args:
        slots: Threads, each with one run at a time.
        deliver: Called in a worker's thread with the results of a run.
        expire: Called in a worker's thread with requests whose deadline passed before all of their texts ran.
        report: Called in a worker's thread after each run.
    """

    def __init__(
        self,
        slots: int,
        deliver: Callable[[list[Done]], None],
        expire: Callable[[Sequence[Request]], None],
        report: Callable[[RunReport], None] = lambda _: None,
    ) -> None:
        self._queue = Queue(slots)
        self._condition = threading.Condition()
        self._deliver, self._expire, self._report = deliver, expire, report
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"stonnx-batcher-{number}", daemon=True) for number in range(slots)
        ]
        for thread in self._threads:
            thread.start()
        _open.add(self)

    def add(self, request: Request, texts: Sequence[tuple[Any, int, Any, Any]], start: int = 0) -> None:
        """Add texts to a request: see :meth:`Queue.add`."""
        with self._condition:
            self._queue.add(request, texts, time.perf_counter(), start)
            # A thread that takes a run wakes the next one if there is more. Waking all threads for one text would cost
            # more than the text.
            self._condition.notify()

    def cancel(self, request: Request) -> None:
        """Drop a request that nobody waits for any more."""
        with self._condition:
            self._queue.cancel(request)

    def queued_tokens(self, lane: Lane) -> int:
        """Tokens that wait in a lane."""
        with self._condition:
            return self._queue.tokens(lane)

    def seconds_until(self, lane: Lane, pace: Pace, tokens: int, share: float) -> float:
        """Seconds until there is room: see :meth:`Queue.seconds_until`."""
        with self._condition:
            return self._queue.seconds_until(lane, pace, tokens, share)

    def load(self) -> Load:
        """The waiting and running work at this moment."""
        with self._condition:
            queue = self._queue
            return Load(
                queued_tokens=queue.tokens(Lane.INTERACTIVE),
                queued_bulk_tokens=queue.tokens(Lane.BULK),
                queued_texts=queue.texts,
                running_tokens=queue.running_tokens,
                cancelled_texts=queue.cancelled_texts,
                tokens_per_second=queue.pace.tokens_per_second,
            )

    @property
    def failures(self) -> int:
        """The number of runs in a row that failed for all of their texts."""
        return self._queue.failures

    def problem(self) -> str | None:
        """The fault of the threads, or None. A frozen run may still end; then there is no fault any more."""
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if dead and not self._closed:
            return f"{', '.join(dead)} ended"
        now = time.perf_counter()
        with self._condition:
            for run in self._queue.runs:
                expected = run.expected_seconds
                allowed = max(_FROZEN_SECONDS, _FROZEN_FACTOR * expected) if expected else _FROZEN_SECONDS_AT_FIRST
                if now - run.started > allowed:
                    return (
                        f"a run of {run.padded_tokens} tokens is in progress for {now - run.started:.1f} s, and "
                        f"{expected:.3f} s were expected"
                    )
        return None

    def close(self, timeout: float | None = None) -> None:
        """End the threads after the runs in progress. Texts that wait are not run."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._condition:
                run = None
                while not self._closed:
                    run = self._queue.take(time.perf_counter())
                    expired, self._queue.expired = self._queue.expired, []
                    if run is not None or expired:
                        if self._queue.texts:
                            self._condition.notify()
                        break
                    self._condition.wait()
                if self._closed and run is None:
                    return
            try:
                if expired:
                    self._expire(expired)
                if run is not None:
                    # The texts do not get a name here: this frame would hold them until the next run.
                    self._finish(run, _results(run.group.context, [entry.payload for entry in run.entries], run.alone))
            except BaseException:  # a mistake in the receiver of results must not end the thread
                logger.exception("The results of a run could not be delivered")

    def _finish(self, run: Run, results: list[tuple[Any, BaseException | None]]) -> None:
        failed = sum(error is not None for _, error in results)
        padded, tokens = run.padded_tokens, run.tokens
        with self._condition:
            now = time.perf_counter()
            waiters = self._queue.finish(run, now, failed=failed == len(results))
            if self._queue.texts:
                self._condition.notify()
        done = [
            Done(request, positions, result, error, now)
            for (_, requests), (result, error) in zip(waiters, results, strict=True)
            for request, positions in requests.items()
        ]
        self._deliver(done)
        self._report(RunReport(run.group.context, len(results), tokens, padded, now - run.started, failed))


_open: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all threads. A thread that is inside onnxruntime when the interpreter ends would abort the process."""
    for workers in list(_open):
        workers.close()


def _results(work: Work, texts: Sequence[TokenIds], alone: bool) -> list[tuple[Any, BaseException | None]]:
    """The result or the error of each text. A failed run is split, so that only texts that cause an error get it."""
    try:
        return [(result, None) for result in work.run(texts, alone=alone)]
    except BaseException as caught:  # any error belongs to those who wait for these texts
        if len(texts) == 1:
            message = "A run of one text of %d tokens failed: %s"
            details = None if isinstance(caught, StonnxError) else caught
            logger.warning(message, len(texts[0]), caught, exc_info=details)
            return [(None, _without_frames(caught))]
    middle = len(texts) // 2
    return [result for half in (texts[:middle], texts[middle:]) for result in _results(work, half, alone)]


def _without_frames(error: BaseException) -> BaseException:
    """An error without its tracebacks.

    Their frames lead to the texts, and to those who wait for the error. Such a circle would keep all of it until the
    garbage collector comes.
    """
    some: BaseException | None = error
    while some is not None:
        some.__traceback__ = None
        some = some.__cause__ or some.__context__
    return error
