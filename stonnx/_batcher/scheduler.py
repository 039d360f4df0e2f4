"""Texts of many tasks of an event loop, tokenized, admitted, queued, and awaited."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stonnx._batcher.waiting import Group, Lane, Pace, Request
from stonnx._batcher.workers import Done, Load, RunReport, Workers
from stonnx._engine.route import LoadedRoute
from stonnx._errors import (
    DeadlineError,
    OverloadedError,
    TextTooLongError,
    TokenIdError,
    TokenizerError,
    TooManyTokensError,
)
from stonnx._model.work import Work
from stonnx._text.tokens import Text, TokenIds

# Requests of more texts wait in the lane of bulk work.
_MOST_INTERACTIVE_TEXTS = 8
# The event loop tokenizes texts of so few characters in all: another thread would cost more than they do.
_CHARACTERS_IN_LOOP = 1024
# The most texts and characters to tokenize at a time, so that the first of many texts run soon.
_TEXTS_AT_A_TIME = 128
_CHARACTERS_AT_A_TIME = 1 << 17
# Threads that tokenize. The tokenizers package uses more of its own for many texts.
_TOKENIZING_THREADS = 2
# A rough figure, to see whether there is room for a request before it is tokenized.
_CHARACTERS_PER_TOKEN = 4
# At least as many tokens as a model adds to a text.
_SPECIAL_TOKENS = 4
# The shortest time after which a caller is told to retry.
_SHORTEST_RETRY_SECONDS = 0.05
# The limit of a lane: seconds of work by the measured speed, or tokens before the first measurement.
QUEUED_SECONDS = 10.0
_QUEUED_TOKENS_AT_FIRST = 1 << 20
# The largest usual request of each lane fits into an empty queue, however slow the machine: (texts, tokens of each).
_ALWAYS = {Lane.INTERACTIVE: (_MOST_INTERACTIVE_TEXTS, 8192), Lane.BULK: (2048, 512)}


@dataclass
class Answer:
    """The results of a request.

    Attributes:
        rows: The result of each text, in order: see :meth:`Work.run`.
        tokens: Tokens of each text that the model read, special tokens included.
        truncated: Positions of texts that were longer than the model reads, ascending.
        tokenize_seconds: Seconds from the call until its texts were tokenized.
        queue_seconds: Seconds from then until the first of them ran.
        run_seconds: Seconds from then until the last of them had run.
    """

    rows: list[Any]
    tokens: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0


def is_bulk(texts: int, bulk: bool | None = None) -> bool:
    """Whether a request of so many texts waits for the texts of others: as it says, or if it is large."""
    return texts > _MOST_INTERACTIVE_TEXTS if bulk is None else bulk


class _Pending:
    """A request whose results are coming in.

    Workers put them here, and wake the event loop when the last one is there. To wake it after every run of a large
    request would cost as much as the runs of small ones.
    """

    def __init__(self, texts: int, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.rows: list[Any] = [None] * texts
        self.future: asyncio.Future[None] = loop.create_future()
        self.finished = 0.0
        self._lock = threading.Lock()
        self._missing = texts
        self._is_over = False
        self._error: BaseException | None = None

    def take(self, done: Done) -> bool:
        """Keep the result of a text. Any thread may call this. True: the request is over, so call :meth:`settle`."""
        with self._lock:
            if self._is_over:
                return False
            if done.error is not None:
                self._error = done.error
            else:
                for position in done.positions:
                    self.rows[position] = done.result
                self._missing -= len(done.positions)
                if self._missing:
                    return False
                self.finished = done.finished
            self._is_over = True
            return True

    def settle(self) -> None:
        """Hand the outcome to the task that awaits it. Only the event loop calls this."""
        error, self._error = self._error, None
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(None)

    def expire(self) -> None:
        """Note that the deadline passed."""
        if not self.future.done():
            self.future.set_exception(DeadlineError())


class Scheduler:
    """The queue, the workers and the tokenizing threads that models on one device share.

    Args:
        slots: Runs side by side.
        max_queued_tokens: The most tokens that may wait in each lane, interactive and bulk. None: 10 seconds of work
            by the measured speed, and never less than 8 texts of 8,192 tokens, or 2,048 texts of 512 in the bulk lane.
        report: Called in a worker's thread after each run.
    """

    def __init__(
        self,
        slots: int,
        *,
        max_queued_tokens: int | None = None,
        report: Callable[[RunReport], None] = lambda _: None,
    ) -> None:
        # It may change at any time: it decides about the next request.
        self.limit = max_queued_tokens
        self._workers = Workers(slots, _deliver, _expire, report)
        # A route that is replaced is forgotten with its paces.
        self._paces: weakref.WeakKeyDictionary[LoadedRoute, dict[str, Pace]] = weakref.WeakKeyDictionary()
        self._tokenizing = ThreadPoolExecutor(_TOKENIZING_THREADS, "stonnx-tokenize")

    async def compute(
        self,
        work: Work,
        texts: Sequence[Text | TokenIds],
        *,
        bulk: bool | None = None,
        deadline: float | None = None,
        truncate: bool = True,
    ) -> Answer:
        """The results of texts. If the awaiting task is cancelled, texts that have not run yet never do.

        Args:
            work: The work to do.
            texts: From :meth:`Work.texts` or :meth:`Work.from_ids`.
            bulk: Whether they can wait for the texts of others. None: if there are more than 8.
            deadline: On the clock of :func:`time.perf_counter`: texts that did not start to run by then never do.
            truncate: Cut texts that are too long, instead of raising TextTooLongError.

        Raises:
            OverloadedError: Too many tokens wait.
            TooManyTokensError: The request has more tokens than may ever wait.
            TextTooLongError: A text is too long, and ``truncate`` is False.
            DeadlineError: The deadline passed.
            RunError: A run failed.
        """
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        lane = Lane.BULK if is_bulk(len(texts), bulk) else Lane.INTERACTIVE
        group = Group(work.group, *work.limits, self.pace(work), work)
        pending = _Pending(len(texts), loop)
        request = Request(lane, deadline, pending)
        answer = Answer(pending.rows)
        if not texts:
            return answer
        is_late, tokenized = False, start
        try:
            # This also works while nothing leaves the queue, for example when a run is frozen.
            async with asyncio.timeout(None if deadline is None else deadline - start):
                await self._fill(request, group, texts, lane, answer, truncate)
                tokenized = time.perf_counter()
                await pending.future
        except TimeoutError:
            # Not raised here: its context holds the task, which would keep all texts until the garbage collector
            # comes.
            is_late = True
        except BaseException:
            self._workers.cancel(request)
            # asyncio would log an error that nobody awaits.
            pending.future.cancel()
            # This frame is in the traceback of the future's error. If it held the future, it would keep all texts
            # until the garbage collector comes.
            del pending, request, answer
            raise
        if is_late:
            self._workers.cancel(request)
            pending.future.cancel()
            raise DeadlineError()
        started = tokenized if request.started is None else max(request.started, start)
        answer.tokenize_seconds = tokenized - start
        answer.queue_seconds = max(0.0, started - tokenized)
        answer.run_seconds = max(0.0, pending.finished - started)
        return answer

    async def _fill(
        self,
        request: Request,
        group: Group,
        texts: Sequence[Text | TokenIds],
        lane: Lane,
        answer: Answer,
        truncate: bool,
    ) -> None:
        """Tokenize the texts of a request, and add them to the queue."""
        work: Work = group.context
        efforts = list(map(work.effort, texts))
        characters, longest = sum(efforts), work.route.tokenizer.max_seq_length or sys.maxsize
        likely = sum(min(longest, 1 + effort // _CHARACTERS_PER_TOKEN) for effort in efforts)
        self._check_room(group.pace, lane, likely, is_estimate=True)
        if characters <= _CHARACTERS_IN_LOOP and len(texts) <= _TEXTS_AT_A_TIME:
            tokenized = work.tokenize(texts)
            self._check_room(group.pace, lane, sum(map(len, tokenized)), is_estimate=False)
            self._add(request, group, tokenized, texts, answer, 0, truncate)
            return
        # A tokenizer rarely makes more tokens than there are characters. If there is room for as many, texts can run
        # while the next ones are tokenized. Otherwise all must be counted first.
        most = sum(min(longest, _SPECIAL_TOKENS + effort) for effort in efforts)
        room = self.max_queued_tokens(lane, group.pace) - self._workers.queued_tokens(lane)
        is_safe = truncate and most <= room
        loop = asyncio.get_running_loop()
        everything: list[TokenIds] = []
        position = 0
        for piece in _pieces(texts, efforts):
            try:
                tokenized = await loop.run_in_executor(self._tokenizing, work.tokenize, piece)
            except (TokenIdError, TokenizerError) as error:
                error.index += position + len(everything)
                raise
            if request.cancelled:
                break
            if is_safe:
                self._add(request, group, tokenized, piece, answer, position, truncate)
                position += len(piece)
            else:
                everything += tokenized
        if everything:
            self._check_room(group.pace, lane, sum(map(len, everything)), is_estimate=False)
            self._add(request, group, everything, texts, answer, 0, truncate)

    def _add(
        self,
        request: Request,
        group: Group,
        tokenized: Sequence[TokenIds],
        texts: Sequence[Text | TokenIds],
        answer: Answer,
        start: int,
        truncate: bool,
    ) -> None:
        cut = [position for position, item in enumerate(tokenized, start) if item.truncated]
        if cut and not truncate:
            tokenizer = group.context.route.tokenizer
            tokens = int(tokenizer.count([texts[cut[0] - start]])[0])
            raise TextTooLongError(cut[0], tokens, tokenizer.max_seq_length)
        answer.tokens += map(len, tokenized)
        answer.truncated += cut
        items = [(group, len(item), item, (group.key, text)) for item, text in zip(tokenized, texts, strict=True)]
        self._workers.add(request, items, start)

    def _check_room(self, pace: Pace, lane: Lane, tokens: int, *, is_estimate: bool) -> None:
        limit, queued = self.max_queued_tokens(lane, pace), self._workers.queued_tokens(lane)
        if tokens > limit:
            # An estimate may be much too high, so only a counted request is refused for good.
            if is_estimate and tokens <= 2 * limit:
                return
            raise TooManyTokensError(tokens, limit)
        if queued + tokens > limit:
            # The time when half of the queue is free: other callers who are told this must find room as well.
            seconds = self._workers.seconds_until(lane, pace, max(0, tokens - limit // 2), 0.5)
            raise OverloadedError(queued, limit, max(_SHORTEST_RETRY_SECONDS, seconds))

    def pace(self, work: Work) -> Pace:
        """The measured speed of some work here."""
        return self._paces.setdefault(work.route, {}).setdefault(work.output, Pace())

    def max_queued_tokens(self, lane: Lane, pace: Pace) -> int:
        """The most tokens that may wait in a lane, for a request of this pace."""
        if self.limit is not None:
            return self.limit
        speed = pace.tokens_per_second
        measured = _QUEUED_TOKENS_AT_FIRST if speed is None else int(QUEUED_SECONDS * speed)
        texts, tokens = _ALWAYS[lane]
        return max(measured, texts * tokens)

    def load(self) -> Load:
        """The waiting and running work at this moment."""
        return self._workers.load()

    def problem(self) -> str | None:
        """The fault of the threads, or None."""
        return self._workers.problem()

    @property
    def failures(self) -> int:
        """The number of runs in a row that failed for all of their texts."""
        return self._workers.failures

    def close(self, timeout: float | None = None) -> None:
        """End the threads after the runs in progress."""
        self._workers.close(timeout)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)


def _deliver(results: list[Done]) -> None:
    """Hand results to the requests that wait for them, and wake the event loops of those that are over."""
    over: dict[asyncio.AbstractEventLoop, list[_Pending]] = {}
    for done in results:
        pending: _Pending = done.request.context
        if pending.take(done):
            over.setdefault(pending.loop, []).append(pending)
    for loop, some in over.items():
        _in_loop(loop, partial(_settle, some))


def _settle(some: list[_Pending]) -> None:
    for pending in some:
        pending.settle()


def _expire(requests: Sequence[Request]) -> None:
    for request in requests:
        _in_loop(request.context.loop, request.context.expire)


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        # The loop is closed, so nobody waits.
        if not loop.is_closed():
            raise


def _pieces(texts: Sequence[Text | TokenIds], efforts: Sequence[int]) -> list[list[Text | TokenIds]]:
    """Consecutive texts in pieces that are tokenized at a time."""
    pieces: list[list[Text | TokenIds]] = [[]]
    characters = 0
    for text, effort in zip(texts, efforts, strict=True):
        if pieces[-1] and (len(pieces[-1]) >= _TEXTS_AT_A_TIME or characters + effort > _CHARACTERS_AT_A_TIME):
            pieces.append([])
            characters = 0
        pieces[-1].append(text)
        characters += effort
    return pieces
