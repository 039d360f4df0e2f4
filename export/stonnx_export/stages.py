"""The stages of an export, and its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Prints the current stage, how far it is if that is known, and how long it took."""

    def __init__(self, show: bool) -> None:
        self._show = show

    @contextmanager
    def __call__(self, text: str) -> Iterator[Advance]:
        """Run one stage. The block gets a function that it calls to say how far it is."""
        start = time.perf_counter()
        again = ""

        def advance(done: int, total: int) -> None:
            nonlocal again
            # In a log file, each update would be a line of its own.
            if sys.stderr.isatty():
                again = f"\r{text} ..."
                self._print(f"{again} {done} of {total}")

        self._print(f"{text} ...")
        try:
            yield advance
        except BaseException:
            self._print(" failed\n")
            raise
        # Pad the time to the width of the progress that it overwrites.
        self._print(f"{again} {f'{time.perf_counter() - start:.1f} s':<{12 if again else 0}}\n")

    def _print(self, text: str) -> None:
        if self._show:
            print(text, end="", file=sys.stderr, flush=True)


# A function that is told how many layers of how many are done.
Advance = Callable[[int, int], None]


def untold(done: int, total: int) -> None:
    """Progress that nobody is told of."""
