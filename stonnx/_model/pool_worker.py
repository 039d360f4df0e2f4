"""The work of a pool's process."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from stonnx._errors import PoolError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Loadable(Protocol):
    """The parts of a model class that a worker needs: loading from a path and options, and answering calls."""

    def __setstate__(self, state: dict[str, Any], /) -> None: ...

    def _answer(self, call: Any, texts: Any, /) -> Any: ...


def work(connection: Connection, kind: type[Loadable], state: dict[str, Any], threads: int) -> None:
    """The life of a worker: load the model, report that, then answer jobs until the pipe is closed."""
    # Ctrl-C in a terminal reaches every process of the group: what happens then is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="stonnx-exit-with-parent", daemon=True).start()
    # The tokenizers package reads it when it first works in parallel, and would use every CPU in every worker.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    try:
        model = kind.__new__(kind)
        model.__setstate__(state)
        reply = pickle.dumps((None, None))
    except BaseException as error:
        _reply(connection, _failure(error))
        return
    while _reply(connection, reply):
        try:
            job = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            call, texts = pickle.loads(job)
            result = model._answer(pickle.loads(call), texts)
            reply = pickle.dumps((result, None), pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            reply = _failure(error)


def _reply(connection: Connection, message: bytes) -> bool:
    try:
        connection.send_bytes(message)
    except OSError:  # the parent is gone
        return False
    return True


def _failure(error: BaseException) -> bytes:
    """The reply for an error, with the traceback as a note: tracebacks themselves cannot be sent."""
    told = "".join(traceback.format_exception(error))
    note = f"It was raised in a worker process:\n\n{told.rstrip()}"
    error.add_note(note)
    try:
        message = pickle.dumps((None, error))
        # An error that is not an Exception, such as SystemExit, is meant for the process that raised it.
        if isinstance(error, Exception) and type(pickle.loads(message)[1]) is type(error):
            return message
    except Exception:  # whatever the exception class does when it is copied
        pass
    substitute = PoolError(f"{type(error).__name__}: {error}")
    substitute.add_note(note)
    return pickle.dumps((None, substitute))


def _exit_with_parent() -> None:
    """End this process when the parent ends, however that ends and whatever runs here."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent, own = parent_process(), os.getppid()
    assert parent is not None
    # The sentinel stays open as long as any process that the parent forked lives, so the parent's id is checked too.
    while not wait([parent.sentinel], timeout=1.0) and os.getppid() == own:
        pass
    os._exit(1)
