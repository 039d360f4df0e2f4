"""Several processes for one call: start workers, hand out chunks of texts, order the results, notice dead workers.

Each worker has a pipe of its own. A shared queue, as sentence-transformers uses, is guarded by locks that a killed
worker takes with it. The parent and the worker both notice the end of a pipe at once.

``multiprocessing`` is imported inside the functions that use it: most programs never start a pool.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stonnx._arguments import check_integer, device_name
from stonnx._device.cpus import available_cpus
from stonnx._device.device_options import DeviceOptions
from stonnx._errors import InvalidArgumentError, PoolError, TextTooLongError, TokenIdError, TokenizerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
from stonnx._model.pool_worker import Loadable, work

# The result of start_multi_process_pool. "input" and "output" are both a _Workers; sentence-transformers has queues
# there.
Pool = dict[Literal["input", "output", "processes"], Any]

# The most texts in a chunk, and the fewest chunks for each worker: sentence-transformers' own values.
_LARGEST_CHUNK = 5000

_CHUNKS_PER_WORKER = 10

# As many CPU processes as sentence-transformers starts, if there are that many CPUs.
_POOL_PROCESSES = 4

# Time to die of a signal or to leave an exit code. Either takes milliseconds unless the machine is very busy.
_GRACE_SECONDS = 5.0


def start_pool(kind: type[Loadable], states: Sequence[tuple[str, dict[str, Any]]], threads: Sequence[int]) -> Pool:
    """Start worker processes and wait until each has loaded its model.

    Args:
        kind: Class of the model.
        states: For each worker its device, for messages, and the state that it loads the model from.
        threads: For each worker the number of threads that its tokenizer may use.

    Raises:
        PoolError: A worker died before it was ready.
        Exception: The error that loading raised in a worker.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    workers = _Workers()
    try:
        for (device, state), count in zip(states, threads, strict=True):
            ours, theirs = context.Pipe()
            workers.connections.append(ours)
            process = context.Process(
                target=work, args=(theirs, kind, state, count), name=f"stonnx on {device}", daemon=True
            )
            try:
                process.start()
            finally:
                theirs.close()
            workers.processes.append(process)
        loading = set(workers.connections)
        while loading:
            for connection, (_, error) in workers.replies(loading):
                if error is not None:
                    raise error
                loading.remove(connection)
        workers.ready = True
    except BaseException:
        workers.stop()
        raise
    return {"input": workers, "output": workers, "processes": workers.processes}


def stop_pool(pool: Mapping[Any, Any]) -> None:
    """Stop the workers of a pool. A pool that is stopped already stays stopped.

    Raises:
        InvalidArgumentError: It is not a pool.
    """
    _workers_of(pool).stop()


def run_in_pool(
    pool: Mapping[Any, Any],
    call: Any,
    texts: Sequence[Any],
    *,
    chunk_size: int | None,
    advance: Callable[[int], None],
) -> list[Any]:
    """Have the workers' models answer a call for all chunks of some texts.

    Args:
        pool: A result of :func:`start_pool`.
        call: The first argument of ``_answer``. It must be picklable, and is pickled once for all chunks.
        texts: At least one. Chunks of them are the second argument.
        chunk_size: Texts in a chunk. None: a tenth of a worker's share, at most 5,000.
        advance: Called with the number of texts of each finished chunk.

    Returns:
        The result for each chunk, in the order of the texts.

    Raises:
        PoolError: A worker died, which stops the others, or the pool was stopped.
        Exception: The error of ``_answer`` in a worker, with the worker's traceback as a note. The pool stays usable.
    """
    workers = _workers_of(pool)
    pickled = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
    with workers.lock:
        workers.check()
        size = chunk_size or default_chunk_size(len(texts), len(workers.processes))
        starts = range(0, len(texts), size)
        results: dict[int, Any] = {}
        errors: dict[int, BaseException] = {}
        busy: dict[Connection, int] = {}
        idle, waiting = list(workers.connections), iter(starts)
        try:
            while True:
                # One chunk at a time for each worker: with more, both ends of a full pipe could wait for each other.
                while idle and not errors and (start := next(waiting, None)) is not None:
                    busy[connection := idle.pop()] = start
                    job = (pickled, texts[start : start + size])
                    workers.send(connection, pickle.dumps(job, pickle.HIGHEST_PROTOCOL))
                if not busy:
                    break
                for connection, (result, error) in workers.replies(busy):
                    idle.append(connection)
                    start = busy.pop(connection)
                    if error is None:
                        results[start] = result
                        advance(min(size, len(texts) - start))
                    else:
                        if isinstance(error, TextTooLongError):
                            error.shift(start)
                        elif isinstance(error, TokenIdError | TokenizerError):
                            error.index += start
                        errors[start] = error
        except BaseException:
            # Ctrl-C, or a dead worker: the others may be in the middle of something, and nobody waits for it.
            workers.stop()
            raise
    if errors:
        raise errors[min(errors)]
    return [results.pop(start) for start in starts]


@contextmanager
def borrowed(pool: Pool | None, start: Callable[[], Pool]) -> Iterator[Pool]:
    """The pool itself or, for None, a new one that is stopped at the end."""
    if pool is not None:
        yield pool
        return
    temporary = start()
    try:
        yield temporary
    finally:
        stop_pool(temporary)


def check_chunk_size(chunk_size: int | None) -> int | None:
    """The chunk size. Raise InvalidArgumentError unless it is a positive integer or None."""
    return check_integer("chunk_size", chunk_size, optional=True)


def default_chunk_size(texts: int, workers: int) -> int:
    """Texts in a chunk: small enough that all workers finish at about the same time.

    Example:
        >>> default_chunk_size(1000, 4), default_chunk_size(3, 4), default_chunk_size(10**6, 4)
        (25, 1, 5000)
    """
    return max(1, min(math.ceil(texts / workers / _CHUNKS_PER_WORKER), _LARGEST_CHUNK))


def thread_shares(cpus: int, workers: int) -> list[int]:
    """Threads for each worker: together as many as there are CPUs, and at least one each.

    Example:
        >>> thread_shares(8, 4), thread_shares(7, 4), thread_shares(2, 3)
        ([2, 2, 2, 2], [2, 2, 2, 1], [1, 1, 1])
    """
    share, left = divmod(cpus, workers)
    return [max(1, share + (number < left)) for number in range(workers)]


@dataclass(frozen=True)
class Worker:
    """A worker to start: its device, the options of its engine, and the threads of its tokenizer."""

    device: str
    options: dict[str, Any]
    threads: int


def plan_workers(target_devices: Any, own_device: str, options: Mapping[str, Any]) -> list[Worker]:
    """The workers of a pool.

    Args:
        target_devices: A device for each. None: as many processes as there are CPUs, at most 4, or one on a GPU.
        own_device: The device of the model that starts them.
        options: The options of its engine. Options of a device that a worker does not run on are left out.

    Raises:
        InvalidArgumentError: ``target_devices`` is not a list of devices.
    """
    cpus = available_cpus()
    if target_devices is None:
        devices = ["cpu"] * min(_POOL_PROCESSES, cpus) if own_device == "cpu" else [own_device]
    elif isinstance(target_devices, list | tuple) and target_devices:
        devices = [device_name(device) for device in target_devices]
    else:
        raise InvalidArgumentError(
            f"The devices of a pool must be a list with at least one, such as ['cpu', 'cpu']; got {target_devices!r}."
        )
    given: DeviceOptions | None = options["device_options"]
    workers = []
    for device, count in zip(devices, thread_shares(cpus, len(devices)), strict=True):
        device_options = None if given is None else given.meant_for(device)
        changed = {"device": device, "threads": count, "device_options": device_options}
        workers.append(Worker(device, {**options, **changed}, count))
    return workers


class _Workers:
    """The parent's side of a pool: a process and a pipe for each worker. One call at a time; others wait."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.processes: list[SpawnProcess] = []
        self.lock = threading.RLock()
        self.ready = False
        self._stopped: str | None = None
        self._owner = os.getpid()

    def check(self) -> None:
        if self._owner != os.getpid():
            raise PoolError(f"This pool belongs to the process {self._owner}. {_NEW_POOL}")
        if self._stopped:
            raise PoolError(f"{self._stopped} {_NEW_POOL}")

    def send(self, connection: Connection, message: bytes) -> None:
        try:
            connection.send_bytes(message)
        except OSError:
            raise self._death() from None

    def replies(self, among: Mapping[Connection, Any] | set[Connection]) -> list[tuple[Connection, tuple[Any, Any]]]:
        """Messages from some of the connections, (result, error) each. Waits until at least one has arrived."""
        from multiprocessing.connection import wait

        arrived = wait([*among, *(process.sentinel for process in self.processes)])
        connections = [connection for connection in among if connection in arrived]
        if not connections:  # a worker died that has nothing to do at the moment
            raise self._death()
        try:
            return [(connection, pickle.loads(connection.recv_bytes())) for connection in connections]
        except (EOFError, OSError):
            raise self._death() from None

    def stop(self, reason: str = "This pool was stopped.") -> None:
        """End the processes. A call that uses the pool in another thread raises PoolError."""
        if self._stopped or self._owner != os.getpid():
            return
        self._stopped = reason
        for process in self.processes:
            process.terminate()
        with self.lock:
            for process in self.processes:
                process.join(_GRACE_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()
            for connection in self.connections:
                connection.close()

    def _death(self) -> PoolError:
        """Stop the pool because of a dead worker. Returns the error that says which one died, and of what."""
        if self._stopped:
            return PoolError(f"This pool was stopped while a call was using it. {_NEW_POOL}")
        from multiprocessing.connection import wait

        ended = wait([process.sentinel for process in self.processes], timeout=_GRACE_SECONDS)
        dead = [process for process in self.processes if process.sentinel in ended]
        for process in dead:  # its end is seen a moment before its exit code is there
            process.join(_GRACE_SECONDS)
        deaths = [
            f"process {process.pid} ({process.name}) died with exit code {_exit_code(process.exitcode)}"
            for process in dead
        ]
        told = f"A worker is gone: {', '.join(deaths) or 'its pipe is closed'}."
        self.stop(told)
        hint = "Start a new one, with fewer workers if memory was short."
        if not self.ready:
            hint = (
                "It happened before the worker was ready; what it printed says why. Workers import the main script: "
                "everything there that starts a pool must stand under `if __name__ == '__main__':`."
            )
        return PoolError(f"{told} The pool was stopped. {hint}")


_NEW_POOL = "Start a new one with: model.start_multi_process_pool()"


def _workers_of(pool: Mapping[Any, Any]) -> _Workers:
    workers = pool.get("input") if isinstance(pool, Mapping) else None
    if not isinstance(workers, _Workers):
        raise InvalidArgumentError(
            f"pool must be what model.start_multi_process_pool() returns, got {type(pool).__name__} ({pool!r:.60})."
        )
    return workers


def _exit_code(code: int | None) -> str:
    if code is None or code >= 0:
        return str(code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return str(code)
    return f"{code} ({name}{', often because memory ran out' if name == 'SIGKILL' else ''})"
