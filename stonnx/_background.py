"""Work in a thread of its own, so that Ctrl-C can end the wait for it: a call into C or Rust ignores Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def in_background(work: Callable[[], _Result], name: str) -> Future[_Result]:
    """Start ``work()`` in a new thread.

    Unlike the threads of a ThreadPoolExecutor, this one is a daemon. A caller may stop waiting and abandon it; it does
    not hold up the end of the process.

    Args:
        work: The function to call. The future gets any exception that it raises.
        name: The name of the thread.

    Example:
        >>> in_background(lambda: 1 + 1, "adding").result()
        2
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # as a ThreadPoolExecutor does: it belongs to the waiting caller
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
