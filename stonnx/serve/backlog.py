"""Whether one more small request would be answered in time, by how many are in progress and how fast they end.

The queue admits by tokens, and sees only what has been read and tokenized. Where connections come faster than the event
loop reads them, the wait is before that: it shows in how many requests are in progress, and how many of them end.
Without threads or a clock.
"""

from __future__ import annotations

from collections import deque

# Requests in progress from which on the wait is estimated.
_ALWAYS = 256
# The longest wait that another request is accepted for, as in the queue.
_SECONDS = 10.0
# How long so many have to be in progress before one is refused, and how far back ends of requests count.
_AT_LEAST_SECONDS, _WINDOW_SECONDS = 2.0, 5.0
# The longest time after which somebody is told to come again: by then, it is another situation.
_LONGEST_RETRY_SECONDS = 30.0


class Backlog:
    """The small requests of a server that are in progress.

    Example:
        >>> backlog = Backlog()
        >>> backlog.begin(now=0.0)
        >>> backlog.wait(now=0.0) is None
        True
        >>> backlog.end(now=0.1)
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self._busy_since: float | None = None
        self._ends: deque[float] = deque()

    def begin(self, now: float) -> None:
        """A request was accepted."""
        self.in_progress += 1
        if self.in_progress >= _ALWAYS and self._busy_since is None:
            self._busy_since = now

    def end(self, now: float) -> None:
        """A request that was accepted has its response, or its client has left."""
        self.in_progress -= 1
        if self.in_progress < _ALWAYS:
            self._busy_since = None
            self._ends.clear()
        else:
            self._ends.append(now)

    def wait(self, now: float) -> float | None:
        """Seconds after which to come again; None if another request would be answered in time."""
        if self._busy_since is None or now - self._busy_since < _AT_LEAST_SECONDS:
            return None
        start = max(self._busy_since, now - _WINDOW_SECONDS)
        while self._ends and self._ends[0] < start:
            self._ends.popleft()
        if not self._ends:
            return _LONGEST_RETRY_SECONDS
        expected = self.in_progress * (now - start) / len(self._ends)
        if expected <= _SECONDS:
            return None
        return min(_LONGEST_RETRY_SECONDS, expected - _SECONDS / 2)
