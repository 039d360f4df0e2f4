"""The waiting texts, the requests that wait for them, and the order within one lane."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

# Length classes for each doubling of the length: texts of one class differ by less than a twentieth.
_CLASSES_PER_DOUBLING = 16


class Lane(Enum):
    """The kind of waiter of a request: a person, or a job."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class State(Enum):
    """The state of an entry."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DROPPED = "dropped"


@dataclass(eq=False)
class Pace:
    """How fast texts of a group run, as measured: tokens a second with all slots in use; None before the first run."""

    tokens_per_second: float | None = None

    def seconds_for(self, tokens: float) -> float:
        """Seconds that so many tokens take; 0 before the first measurement."""
        return tokens / self.tokens_per_second if self.tokens_per_second else 0.0

    def measure(self, tokens_per_second: float, weight: float) -> None:
        """Follow a measurement."""
        known = self.tokens_per_second
        self.tokens_per_second = tokens_per_second if known is None else known + weight * (tokens_per_second - known)


@dataclass(frozen=True)
class Group:
    """Texts that can run together, and how many.

    Attributes:
        key: Equal for equal groups.
        tokens: The most tokens of a run, padding included, unless it is a single text.
        texts: The most texts of a run.
        pace: Their speed; groups of one graph and output share it.
        context: The object that runs them; the queue does not look at it.
    """

    key: Hashable
    tokens: int = field(compare=False)
    texts: int = field(compare=False)
    pace: Pace = field(default_factory=Pace, compare=False)
    context: Any = field(default=None, compare=False)


@dataclass(eq=False, slots=True)
class Entry:
    """One text to run, for every request that waits for it."""

    group: Group
    tokens: int
    payload: Any
    key: Hashable | None
    lane: Lane
    state: State = State.WAITING
    # For each request that waits, the positions that the text has in it.
    waiters: dict[Request, list[int]] = field(default_factory=dict)

    @property
    def length_class(self) -> int:
        """Texts of one class can be padded to each other."""
        return int(_CLASSES_PER_DOUBLING * math.log2(max(1, self.tokens)))


class Request:
    """Some texts that one caller waits for."""

    __slots__ = (
        "buckets",
        "cancelled",
        "context",
        "deadline",
        "entries",
        "is_queued",
        "lane",
        "number",
        "started",
        "turn",
    )

    def __init__(self, lane: Lane, deadline: float | None = None, context: Any = None) -> None:
        self.lane = lane
        self.deadline = deadline
        # The caller's own.
        self.context = context
        # Entries that are not finished, in their order; those that run or are gone are skipped.
        self.entries: dict[Entry, None] = {}
        self.buckets: set[tuple[Hashable, int]] = set()
        # Tokens that it has been given, counted from those of the others when it came.
        self.turn = 0.0
        self.number = 0
        self.is_queued = False
        self.cancelled = False
        # When its first text ran.
        self.started: float | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """Texts that run together now.

    Attributes:
        group: Their group.
        entries: The texts.
        alone: Whether nothing else runs or waits, so that the run may have all threads.
        started: The time of its start.
        expected_seconds: Its expected time by the speed so far; 0 before the first measurement.
    """

    group: Group
    entries: Sequence[Entry]
    alone: bool
    started: float
    expected_seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of the texts."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def padded_tokens(self) -> int:
        """The same with padding."""
        return len(self.entries) * max(entry.tokens for entry in self.entries)


class LaneQueue:
    """The requests of one lane that have waiting entries."""

    def __init__(self) -> None:
        # (turn when it was pushed, number, request). A request's turn only grows, so an outdated item is pushed again
        # when it comes to the top.
        self.heap: list[tuple[float, int, Request]] = []
        self.buckets: dict[Hashable, dict[int, OrderedDict[Request, deque[Entry]]]] = {}
        self.turn = 0.0
        self.texts = 0
        self.tokens_of: dict[Pace, int] = {}

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(self.tokens_of.values())

    @property
    def seconds(self) -> float:
        """Seconds that they take by themselves."""
        return sum(pace.seconds_for(tokens) for pace, tokens in self.tokens_of.items())

    def count(self, entry: Entry, texts: int) -> None:
        """Count an entry that comes (1) or goes (-1)."""
        pace = entry.group.pace
        tokens = self.tokens_of.get(pace, 0) + texts * entry.tokens
        self.texts += texts
        if tokens:
            self.tokens_of[pace] = tokens
        else:
            self.tokens_of.pop(pace, None)

    def file(self, request: Request, entry: Entry) -> None:
        """Let a request find an entry by its group and length."""
        place = (entry.group.key, entry.length_class)
        classes = self.buckets.setdefault(place[0], {})
        classes.setdefault(place[1], OrderedDict()).setdefault(request, deque()).append(entry)
        request.buckets.add(place)

    def unfile(self, request: Request) -> None:
        """Forget the entries of a request."""
        for group, length_class in request.buckets:
            self._discard(group, length_class, request)
        request.buckets.clear()

    def next_in(self, group: Hashable, length_class: int) -> tuple[Request, Entry] | None:
        """An entry of a class, from the request that has its turn there."""
        requests = self.buckets.get(group, {}).get(length_class)
        while requests:
            request, entries = next(iter(requests.items()))
            while entries and entries[0].state is not State.WAITING:
                entries.popleft()
            if entries:
                return request, entries[0]
            request.buckets.discard((group, length_class))
            self._discard(group, length_class, request)
        return None

    def pop(self) -> None:
        """Remove the request at the top, which has no waiting text."""
        heapq.heappop(self.heap)[2].is_queued = False

    def rotate(self, group: Hashable, length_class: int, request: Request) -> None:
        """Note that a request had its turn in a class."""
        self.buckets[group][length_class].move_to_end(request)

    def _discard(self, group: Hashable, length_class: int, request: Request) -> None:
        classes = self.buckets[group]
        del classes[length_class][request]
        if not classes[length_class]:
            del classes[length_class]
        if not classes:
            del self.buckets[group]
