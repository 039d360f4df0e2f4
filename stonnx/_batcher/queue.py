"""The choice of the texts that run next: a queue over many requests, without threads, clock or event loop.

A run takes texts of one *group* (same graph, same outputs) of similar length, up to a budget of padded tokens. The
order:

- Requests take turns by the tokens that they have been given (start-time fair queueing): a request of 2,048 texts gets
  as much as any other, not more.
- Requests of few texts are *interactive* and go before *bulk* ones; but while both wait, one run of every
  ``BULK_EVERY`` is led by a bulk request. So a single text waits for the runs in progress and at most one more, and
  bulk work never starves.
- The text that leads a run is the oldest of its request. Texts of the same length class fill the run, then texts of
  neighbouring classes while the padding stays small.

Before each run, the queue drops the texts of cancelled and expired requests. Equal texts share one entry.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

from stonnx._batcher.waiting import Entry, Group, Lane, LaneQueue, Pace, Request, Run, State
from stonnx._text.batching import share_of_budget

# While interactive requests wait, a bulk request leads one of this many runs.
BULK_EVERY = 4
# The number of classes on each side of the leading text's own from which texts may fill a run.
_NEIGHBOURS = 48
# The most padded tokens of a run for each real one, when texts of other classes fill it.
_PADDING = 1.2
# A run costs as much as these tokens before its first one. Padding below this is cheaper than a run of its own.
_FREE_PADDING = 16
# How fast the measured speed follows: the last ten runs or so count.
_SMOOTHING = 0.1


class Queue:
    """The texts that wait, and the runs in progress.

    Args:
        slots: Runs that may go on side by side.

    Example:
        >>> queue, group = Queue(slots=1), Group("minilm", tokens=32, texts=8)
        >>> for text in ("a", "b"):
        ...     queue.add(Request(Lane.INTERACTIVE), [(group, 10, text, text)], now=0.0)
        >>> run = queue.take(now=0.0)
        >>> [entry.payload for entry in run.entries]
        ['a', 'b']
        >>> done = queue.finish(run, now=0.1)
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.runs: set[Run] = set()
        # The number of runs in a row that failed.
        self.failures = 0
        self.cancelled_texts = 0
        self.expired: list[Request] = []
        self._lanes = {lane: LaneQueue() for lane in Lane}
        self._by_key: dict[Hashable, Entry] = {}
        self._numbers = itertools.count()
        self._since_bulk = 0
        # The pace of the last run.
        self.pace = Pace()

    # The waiting texts.

    def tokens(self, lane: Lane | None = None) -> int:
        """Tokens that wait in a lane, or in all of them."""
        return sum(queue.tokens for each, queue in self._lanes.items() if lane in (None, each))

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return sum(queue.texts for queue in self._lanes.values())

    @property
    def running_tokens(self) -> int:
        """Tokens of the runs in progress."""
        return sum(run.tokens for run in self.runs)

    def seconds_until(self, lane: Lane, pace: Pace, tokens: int, share: float) -> float:
        """Seconds until at most a share of a lane still waits, and there is room for so many more tokens.

        Args:
            lane: The lane.
            pace: The pace of the new tokens.
            tokens: The number of new tokens.
            share: The share of the tokens that wait in the lane now.
        """
        seconds = (1 - share) * self._lanes[lane].seconds + pace.seconds_for(tokens)
        if all(queue.texts == 0 for each, queue in self._lanes.items() if each is not lane):
            return seconds
        # The other lane takes its turns meanwhile.
        return seconds / (1 - 1 / BULK_EVERY if lane is Lane.INTERACTIVE else 1 / BULK_EVERY)

    # Requests.

    def add(
        self, request: Request, texts: Sequence[tuple[Group, int, Any, Hashable | None]], now: float, start: int = 0
    ) -> None:
        """Add texts to a request, as (group, tokens, payload, key).

        Args:
            request: The request that the texts belong to. It may get more later.
            texts: Texts of equal keys other than None have equal results, and run once.
            now: The time.
            start: The position of the first one in the request.
        """
        lane = self._lanes[request.lane]
        if request.cancelled:
            return
        for position, (group, tokens, payload, key) in enumerate(texts, start):
            entry = self._by_key.get(key) if key is not None else None
            if entry is None:
                entry = Entry(group, tokens, payload, key, request.lane)
                lane.count(entry, 1)
                if key is not None:
                    self._by_key[key] = entry
            positions = entry.waiters.setdefault(request, [])
            if not positions:
                request.entries[entry] = None
                if entry.state is State.WAITING:
                    lane.file(request, entry)
                elif request.started is None:
                    request.started = now
            positions.append(position)
        if request.buckets and not request.is_queued:
            request.is_queued = True
            request.number = next(self._numbers)
            request.turn = max(request.turn, lane.turn)
            heapq.heappush(lane.heap, (request.turn, request.number, request))

    def cancel(self, request: Request) -> None:
        """Drop the texts of a request that nobody waits for any more, unless other requests wait for them too."""
        if request.cancelled:
            return
        request.cancelled = True
        self._lanes[request.lane].unfile(request)
        for entry in request.entries:
            positions = entry.waiters.pop(request)
            if entry.state is State.WAITING:
                self.cancelled_texts += len(positions)
                if not entry.waiters:
                    self._leave(entry, State.DROPPED)
                    self._forget(entry)
        request.entries.clear()

    # Runs.

    def take(self, now: float) -> Run | None:
        """The next run; None if nothing waits, or all slots are in use. Requests that expired are in ``expired``."""
        if len(self.runs) >= self.slots or any(run.alone for run in self.runs):
            return None
        leader = self._leader(now)
        if leader is None:
            return None
        # Few texts are divided among the free slots. A run of fewer tokens than that costs more than a slot gains.
        waiting, free = self.tokens(), self.slots - len(self.runs)
        budget = share_of_budget(waiting, leader[1].group.tokens, free)
        entries = self._fill(leader, budget, now)
        alone = not self.runs and not self.texts
        # The pace is that of all slots together.
        expected = entries[0].group.pace.seconds_for(sum(entry.tokens for entry in entries)) * (
            1 if alone else self.slots
        )
        run = Run(entries[0].group, entries, alone, now, expected)
        self.runs.add(run)
        return run

    def finish(self, run: Run, now: float, *, failed: bool = False) -> list[tuple[Entry, dict[Request, list[int]]]]:
        """End a run. Returns the requests that wait for each of its texts."""
        self.runs.discard(run)
        if failed:
            self.failures += 1
        else:
            self.failures = 0
            seconds = now - run.started
            if seconds > 0:
                measured = run.tokens / seconds * (1 if run.alone else self.slots)
                # In small runs the fixed cost of a run dominates, so they say little about a long queue.
                run.group.pace.measure(measured, _SMOOTHING * min(1.0, run.padded_tokens / run.group.tokens))
                self.pace = run.group.pace
        finished = []
        for entry in run.entries:
            entry.state = State.FINISHED
            entry.payload = None
            self._forget(entry)
            for request in entry.waiters:
                request.entries.pop(entry, None)
            finished.append((entry, entry.waiters))
        return finished

    # The composition of a run.

    def _leader(self, now: float) -> tuple[Request, Entry] | None:
        """The request that has its turn, and its oldest text."""
        interactive, bulk = self._lanes[Lane.INTERACTIVE], self._lanes[Lane.BULK]
        order = [interactive, bulk] if self._since_bulk < BULK_EVERY - 1 else [bulk, interactive]
        for lane in order:
            while lane.heap:
                turn, number, request = lane.heap[0]
                if not self._is_due(request, now):
                    lane.pop()
                    continue
                if turn < request.turn:
                    heapq.heapreplace(lane.heap, (request.turn, number, request))
                    continue
                entry = next((entry for entry in request.entries if entry.state is State.WAITING), None)
                if entry is None:
                    lane.pop()
                    continue
                lane.turn = max(lane.turn, request.turn)
                self._since_bulk = self._since_bulk + 1 if lane is interactive else 0
                return request, entry
        self._since_bulk = 0
        return None

    def _is_due(self, request: Request, now: float) -> bool:
        """Whether somebody still waits for a request. This cancels a request whose deadline has passed."""
        if not request.cancelled and request.deadline is not None and request.deadline <= now:
            self.cancel(request)
            self.expired.append(request)
        return not request.cancelled

    def _fill(self, leader: tuple[Request, Entry], budget: int, now: float) -> list[Entry]:
        """The leading text, and others that go well with it."""
        entries: list[Entry] = []
        self._give(*leader, entries, now)
        group, own = leader[1].group, leader[1].length_class
        longest, total = leader[1].tokens, leader[1].tokens
        directions = {1, -1}
        # A run that a bulk request leads is its share of the time, so other bulk texts go first there.
        lanes = sorted(self._lanes.values(), key=lambda lane: lane is not self._lanes[leader[0].lane])
        classes = {each for lane in lanes for each in lane.buckets.get(group.key, ()) if abs(each - own) <= _NEIGHBOURS}
        # The nearest classes first; of two that are equally near, the shorter texts.
        for length_class in sorted(classes, key=lambda each: (abs(each - own), each)):
            direction = (length_class > own) - (length_class < own)
            if direction and direction not in directions:
                continue
            for lane in lanes:
                while found := lane.next_in(group.key, length_class):
                    request, entry = found
                    if not self._is_due(request, now):
                        continue
                    count, wide = len(entries) + 1, max(longest, entry.tokens)
                    if count > group.texts or count * wide > budget:
                        # A longer text does not fit; a shorter one may.
                        directions.discard(direction or 1)
                        if count > group.texts or count * longest > budget:
                            return entries
                        break
                    waste = count * wide - total - entry.tokens
                    if direction and waste > max(_FREE_PADDING, (_PADDING - 1) * (total + entry.tokens)):
                        directions.discard(direction)
                        break
                    lane.rotate(group.key, length_class, request)
                    self._give(request, entry, entries, now)
                    longest, total = wide, total + entry.tokens
        return entries

    def _give(self, request: Request, entry: Entry, entries: list[Entry], now: float) -> None:
        """Put a text into a run, and charge its tokens to the requests that wait for it."""
        self._leave(entry, State.RUNNING)
        entries.append(entry)
        for waiter in entry.waiters:
            waiter.turn += entry.tokens
            if waiter.started is None:
                waiter.started = now

    def _leave(self, entry: Entry, state: State) -> None:
        """Take an entry out of the waiting ones."""
        entry.state = state
        self._lanes[entry.lane].count(entry, -1)

    def _forget(self, entry: Entry) -> None:
        if entry.key is not None and self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]
