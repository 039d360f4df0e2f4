"""The process: a socket, uvicorn, and the handling of signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from stonnx._device.cpus import available_cpus
from stonnx._device.memory import available_memory, resident_memory
from stonnx._errors import DeviceError, StonnxError
from stonnx.serve.app import Server
from stonnx.serve.connection import Protocol
from stonnx.serve.log import LogFormatter
from stonnx.serve.settings import Settings

logger = logging.getLogger("stonnx.serve")

# Connections that wait to be accepted: many clients may come at once.
_BACKLOG = 2048
# The share of its memory from which on a process is warned that it may not be enough.
_TIGHT = 0.8
_LOCAL = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Serve until a signal ends it.

    Args:
        settings: The settings of the server.
        read_again: Reads them once more from where they came, after SIGHUP.

    Returns:
        The exit status: 0 after SIGTERM or Ctrl-C, also if requests were cut off at the end of ``drain_timeout``.

    Raises:
        StonnxError: A setting is wrong, or the address cannot be used.
    """
    _log_to_stderr(settings)
    # The tokenizers package sees the CPUs of the machine, not those of a container.
    os.environ.setdefault("RAYON_NUM_THREADS", str(available_cpus()))
    server = Server(settings)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if settings.host not in _LOCAL and not server.api.keys:
        logger.warning("Everybody who reaches %s can use this server: no --api-key is set", address)
    logger.info("Listening on %s; loading %s", address, ", ".join(server.models.names))
    config = uvicorn.Config(
        server.app,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    process = _Process(config, server, read_again)
    server.on_failure = process.give_up

    def ready() -> None:
        # The loaded objects stay. If the collector looked through them again and again, it would hold up requests.
        gc.collect()
        gc.freeze()
        logger.info("Ready on %s, with %d CPUs to use%s", address, available_cpus(), _memory(available_memory()))
        if problem := memory_problem(resident_memory(), available_memory()):
            logger.warning(problem)

    server.on_ready = ready
    process.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure if isinstance(server.failure, StonnxError | OSError) else DeviceError(str(server.failure))
    if server.api.cut_off:
        logger.warning(
            "Ended. %d requests did not end within drain_timeout (%g s) and were cut off",
            server.api.cut_off,
            server.settings.drain_timeout,
        )
    else:
        logger.info("Ended after all requests in progress")
    return 0


class _Process(uvicorn.Server):
    """A uvicorn that ends after the requests in progress, within a bound, and with status 0."""

    def __init__(self, config: uvicorn.Config, server: Server, read_again: Callable[[], Settings]) -> None:
        super().__init__(config)
        self._server, self._read_again = server, read_again
        self._reloading = asyncio.Lock()
        # The loop holds tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[int], None]] = {signal.SIGINT: self._end, signal.SIGTERM: self._end}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self._reload
        for number, handler in handlers.items():
            try:
                loop.add_signal_handler(number, handler, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda number, _: loop.call_soon_threadsafe(handlers[number], number))
        yield

    def _end(self, number: int) -> None:
        if self._server.health.draining:
            logger.warning("Ended at once by a second signal")
            sys.stderr.flush()
            os._exit(128 + number)
        self._server.health.draining = True
        settings = self._server.settings
        self.config.timeout_graceful_shutdown = max(1, round(settings.drain_timeout))
        delay = 0.0 if number == signal.SIGINT else settings.drain_delay
        logger.info(
            "Ending: the server is not ready any more, takes new requests for %g s, and then gives those in progress "
            "%g s more",
            delay,
            settings.drain_timeout,
        )
        asyncio.get_running_loop().call_later(delay, self._stop_accepting)

    def _stop_accepting(self) -> None:
        self.should_exit = True

    def _reload(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._change())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self) -> None:
        """Read the settings again, and load what changed. One after the other, if signals come quickly."""
        async with self._reloading:
            if not self._server.health.loaded:
                logger.warning("Not read again: the models are still being loaded. Send SIGHUP when they are")
                return
            try:
                await self._server.change(self._read_again())
            except StonnxError as error:
                logger.error("The settings were not read again: %s", error)
                await self._server.reload()
            logger.info("Read again: settings, keys and models")

    def give_up(self) -> None:
        """The models cannot be loaded: end the server."""
        self.should_exit = True


def memory_problem(resident: int | None, limit: int | None) -> str | None:
    """A warning if the loaded models leave little memory for requests: a container ends a process that needs more."""
    if resident is None or limit is None or resident < _TIGHT * limit:
        return None
    return (
        f"The models take {resident / 1e6:,.0f} MB of the {limit / 1e6:,.0f} MB that this process may use. That leaves "
        "little for requests. Raise the limit, serve fewer models, or give them fewer threads (--threads 1)"
    )


def _memory(limit: int | None) -> str:
    return "" if limit is None else f" and {limit / 1e6:,.0f} MB of memory"


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        advice = "--host is an address of this machine, or 0.0.0.0 for all."
        if error.errno == errno.EADDRINUSE:
            advice = "Another program listens there. Choose another --port; 0 takes a free one."
        elif isinstance(error, PermissionError):
            advice = "Low ports belong to root. Choose a --port from 1024 on."
        raise DeviceError(
            f"The server cannot listen on {settings.host} port {settings.port}: {error.strerror}. {advice}"
        ) from error
    # Accepted connections inherit this. asyncio does it only for listeners that it makes itself. Without it, the second
    # packet of a response waits until the client has acknowledged the first, which takes it 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(as_json=settings.log_format == "json"))
    for name in ("stonnx", "uvicorn"):
        parent = logging.getLogger(name)
        parent.handlers = [handler]
        parent.propagate = False
        parent.setLevel(logging.WARNING)
    logging.getLogger("stonnx.serve").setLevel(logging.INFO)
    # What uvicorn says of requests that were cut off is said in other words at the end.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "graceful shutdown exceeded" not in str(record.msg))
