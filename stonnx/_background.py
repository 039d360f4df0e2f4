"""Work in a thread of its own, so that Ctrl-C ends the waiting for it: a call into C or Rust is deaf to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def in_background(work: Callable[[], _Result], name: str) -> Future[_Result]:
    """Start ``work()`` in a new thread.

    The thread is a daemon, unlike those of a ThreadPoolExecutor: who stops waiting leaves it behind, and it does not
    hold up the end of the process.

    Args:
        work: What to do. An exception that it raises is that of the future.
        name: Of the thread.

    Example:
        >>> in_background(lambda: 1 + 1, "adding").result()
        2
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # as a ThreadPoolExecutor does: it belongs to who waits
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
