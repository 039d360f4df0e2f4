"""From an HTTP request to a response: key, limits, body, errors, cancellation, metrics and log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stonnx._errors import InvalidArgumentError
from stonnx.serve.backlog import Backlog
from stonnx.serve.bodies import Bodies
from stonnx.serve.context import Call, Reply
from stonnx.serve.decoding import Decoder
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError, as_request_error, retry_headers
from stonnx.serve.health import RETRY_SECONDS, Health
from stonnx.serve.kserve import HEADER_LENGTH
from stonnx.serve.metrics import OTHER, Metrics
from stonnx.serve.models import Models
from stonnx.serve.settings import Settings
from stonnx.serve.tracing import Tracing

logger = logging.getLogger("stonnx.serve")
access_logger = logging.getLogger("stonnx.serve.access")

# Threads for large bodies and responses, which would hold up the event loop.
_THREADS = 2
# A thread decodes bodies from this size on.
_BYTES_IN_LOOP = 256 * 1024
# Larger bodies are admitted by their tokens alone: a few of them can take as long as a thousand small ones.
_SMALL_BODY = 16 * 1024
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# A status for the log only, as in nginx: the client left before the response.
CLIENT_LEFT = 499
# Fields that hold texts, for errors that name one.
_TEXT_FIELDS = ("input", "inputs", "texts", "documents")


class Api:
    """Answers requests for endpoints.

    Args:
        settings: The settings of the server.
        models: The models that it serves.
        health: The state of the server.
        metrics: The counters to update.
        tracing: The receiver of spans.
    """

    def __init__(self, settings: Settings, models: Models, health: Health, metrics: Metrics, tracing: Tracing) -> None:
        self.settings, self.models, self.health, self.metrics, self.tracing = settings, models, health, metrics, tracing
        self.executor = ThreadPoolExecutor(_THREADS, "stonnx-serve")
        self.keys = read_keys(settings)
        self.backlog = Backlog()
        self.bodies = Bodies(None if settings.max_bodies_mb is None else int(settings.max_bodies_mb * 1e6))
        # Requests that were in progress when the server ended.
        self.cut_off = 0

    def handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The function that answers requests for an endpoint."""
        decoder = None if endpoint.body is None else Decoder(endpoint.body)

        async def handle(request: Request) -> Response:
            return await self._handle(endpoint, decoder, request)

        return handle

    async def _handle(self, endpoint: Endpoint, decoder: Decoder | None, request: Request) -> Response:
        started = time.perf_counter()
        call = self._call(endpoint.dialect, request, started)
        code = 500
        is_small = decoder is not None and _length(call.asked) <= _SMALL_BODY
        wait = self.backlog.wait(started) if is_small else None
        if wait is not None:
            # As cheap as it can be: the server is busier than it can be.
            response = self.refuse(_too_many(self.backlog.in_progress, wait), call)
            self.metrics.request(endpoint.path, None, response.status_code, started)
            return response
        if is_small:
            self.backlog.begin(started)
        self.metrics.in_progress.inc()
        span = self.tracing.start(endpoint.method, endpoint.path, call.asked)
        try:
            response = await self._answer(endpoint, decoder, request, call)
            code = response.status_code
            return response
        except (ClientDisconnect, _ClientLeftError):
            code = CLIENT_LEFT
            self.metrics.disconnected.inc()
            return Response(status_code=CLIENT_LEFT)
        except asyncio.CancelledError:
            # The time of the requests in progress is over. This is the last that the client hears of this process.
            self.cut_off += 1
            error = RequestError(
                Kind.UNAVAILABLE, "The server ended before this was done.", headers=retry_headers(RETRY_SECONDS)
            )
            response = self.refuse(error, call)
            code = response.status_code
            return response
        finally:
            self.bodies.free(call.held)
            if is_small:
                self.backlog.end(time.perf_counter())
            self.metrics.in_progress.dec()
            self.metrics.request(endpoint.path, call, code, started)
            self.tracing.end(span, call, code)
            # Probes come every few seconds, so the log mentions only those with a bad answer.
            if self.settings.access_log and not (endpoint.is_public and code < 400):
                self._log(endpoint.method, request, call, code, started, self.tracing.trace_id(span, call.asked))

    async def rehearse(self, endpoint: Endpoint, request: Request) -> None:
        """Answer a request that no client sent, so that later ones find everything loaded."""
        call = self._call(endpoint.dialect, request, time.perf_counter())
        call.is_rehearsal = True
        decoder = Decoder(endpoint.body)
        body = await self._body(decoder, request, call)
        await self._respond(await endpoint(call, body), call)

    def refuse_unrouted(self, request: Request, error: RequestError, dialect: Dialect) -> Response:
        """The response for a request that no endpoint is for. It has an id and a line in the log like others."""
        started = time.perf_counter()
        call = self._call(dialect, request, started)
        response = self.refuse(error, call)
        self.metrics.requests.labels(OTHER, OTHER, str(response.status_code)).inc()
        if self.settings.access_log:
            trace_id = self.tracing.trace_id(None, call.asked)
            self._log(request.method, request, call, response.status_code, started, trace_id)
        return response

    def _call(self, dialect: Dialect, request: Request, started: float) -> Call:
        # Read once: each look into the headers of a request goes through all of them.
        asked = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        given = asked.get("x-request-id", "")
        # Not a secret, so it need not come from the system's source of randomness, which is a system call away.
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        return Call(
            request,
            self.settings,
            self.models,
            self.executor,
            asked=asked,
            request_id=request_id,
            dialect=dialect,
            started=started,
        )

    async def _answer(self, endpoint: Endpoint, decoder: Decoder | None, request: Request, call: Call) -> Response:
        try:
            if not endpoint.is_public:
                self.check_key(call.asked)
            self._limit_time(call)
            if endpoint.needs_models and not self.health.loaded:
                raise RequestError(
                    Kind.UNAVAILABLE, "The models are being loaded.", headers=retry_headers(RETRY_SECONDS)
                )
            if decoder is None:
                return await self._respond(await endpoint(call, None), call)
            body = await self._body(decoder, request, call)
            reply = await self._until_gone(endpoint(call, body), request)
            return await self._respond(reply, call)
        except RequestError as error:
            return self.refuse(error, call)
        except (ClientDisconnect, _ClientLeftError, asyncio.CancelledError):
            raise
        except Exception as error:
            known = as_request_error(error, next((name for name in _TEXT_FIELDS if hasattr(call.body, name)), None))
            if known is not None:
                return self.refuse(known, call)
            logger.exception("Request %s failed", call.request_id)
            message = f"The server failed. Its log has the reason under the request id {call.request_id}."
            return self.refuse(RequestError(Kind.INTERNAL, message), call)

    def refuse(self, error: RequestError, call: Call) -> Response:
        """The response that reports an error."""
        status = call.dialect.status(error.kind)
        if status in (413, 429, 503, 504):
            self.metrics.rejected.labels(error.kind.name.lower()).inc()
        content = orjson.dumps(call.dialect.body(error, status))
        return Response(content, status, call.headers() | error.headers, "application/json")

    async def _respond(self, reply: Reply, call: Call) -> Response:
        content = reply.content
        if not isinstance(content, bytes):
            content = await call.off_loop(
                lambda: orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), reply.numbers
            )
        return Response(content, reply.status, call.headers() | reply.headers, reply.media_type)

    # The checks of a request.

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse a request without a key, if there are keys.

        Raises:
            RequestError: The request does not have a key, or a wrong one.
        """
        if not self.keys:
            return
        header = headers.get("authorization", "")
        scheme, _, rest = header.partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else header
        candidates = [key.encode() for key in (given, headers.get("x-api-key", "")) if key]
        # Compares with all keys, even after a match: the time must not tell which key was nearly right.
        found = [hmac.compare_digest(candidate, key) for candidate in candidates for key in self.keys]
        if not any(found):
            what = "is wrong" if candidates else "is missing"
            raise RequestError(
                Kind.UNAUTHORIZED,
                f"The API key {what}. Send it as the header Authorization: Bearer KEY, or x-api-key: KEY.",
                headers={"www-authenticate": 'Bearer realm="stonnx"'},
            )

    def _limit_time(self, call: Call) -> None:
        text = call.asked.get("x-request-timeout-ms")
        if text is None:
            return
        if not text.isascii() or not text.isdigit() or not int(text[:10]) > 0:
            raise RequestError(Kind.INVALID, f"x-request-timeout-ms must be a positive number, got {text[:50]!r}.")
        call.client_seconds = int(text[:10]) / 1000

    async def _body(self, decoder: Decoder, request: Request, call: Call) -> Any:
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                data = await self._read(request, call)
        except TimeoutError as error:
            raise RequestError(
                Kind.SLOW,
                f"The body did not arrive within {self.settings.body_timeout:g} s (--body-timeout).",
                headers={"connection": "close"},
            ) from error
        header_length = call.asked.get(HEADER_LENGTH)
        if header_length is not None and header_length.isdigit():
            data, call.binary = data[: int(header_length)], data[int(header_length) :]

        if len(data) < _BYTES_IN_LOOP:
            body = decoder(data)
        else:
            body = await asyncio.get_running_loop().run_in_executor(self.executor, decoder, data)
        call.body = body
        return body

    async def _read(self, request: Request, call: Call) -> bytes:
        """The body, unless it is larger than allowed. Memory never holds more than the allowed size."""
        limit = int(self.settings.max_body_mb * 1e6)
        encoding = call.asked.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise RequestError(
                Kind.INVALID,
                f"This server does not read bodies with content-encoding {encoding[:50]!r}. Send it plain.",
            )
        length = _length(call.asked)
        if limit < length < sys.maxsize:
            raise self._too_large(length, limit)
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise self._too_large(size, limit)
            if not self.bodies.take(call.held, len(piece)):
                raise RequestError(
                    Kind.OVERLOADED,
                    f"The bodies of the requests in progress have {self.bodies.bytes:,} bytes, and at most "
                    f"{self.bodies.limit:,} fit (--max-bodies-mb). Try again in {RETRY_SECONDS:g} s.",
                    headers=retry_headers(RETRY_SECONDS) | {"connection": "close"},
                )
            call.held += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self, size: int, limit: int) -> RequestError:
        message = f"The body has {size:,} bytes or more, and at most {limit:,} are allowed (--max-body-mb)."
        return RequestError(Kind.TOO_LARGE, message, headers={"connection": "close"})

    async def _until_gone(self, work: Any, request: Request) -> Reply:
        """The result of some work. The work is cancelled when the client closes the connection."""
        watcher = asyncio.ensure_future(_cancel_when_gone(request, asyncio.current_task()))
        try:
            reply: Reply = await work
            return reply
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not watcher.done():  # somebody else cancelled it
                raise
            task.uncancel()
            raise _ClientLeftError from None
        finally:
            watcher.cancel()

    def _log(self, method: str, request: Request, call: Call, code: int, started: float, trace_id: str | None) -> None:
        entry: dict[str, Any] = {
            "method": method,
            "path": request.url.path,
            "status": code,
            "ms": round(1000 * (time.perf_counter() - started), 2),
            "client": request.client.host if request.client else None,
            "request_id": call.request_id,
        }
        if call.served is not None:
            entry["model"] = call.served.name
        if call.answers:
            entry |= {
                "texts": call.texts,
                "tokens": call.tokens,
                "queue_ms": round(1000 * call.queue_seconds, 2),
                "run_ms": round(1000 * call.run_seconds, 2),
            }
        if trace_id is not None:
            entry["trace_id"] = trace_id
        access_logger.info("request", extra={"fields": entry})

    def close(self) -> None:
        """End the threads."""
        self.executor.shutdown(wait=False, cancel_futures=True)


async def _cancel_when_gone(request: Request, task: asyncio.Task[Any] | None) -> None:
    """Cancel a task when the client of its request, whose body has been read, closes the connection."""
    await request.receive()
    if task is not None:
        task.cancel()


class _ClientLeftError(Exception):
    """The client closed the connection before its response."""


def _length(headers: Mapping[str, str]) -> int:
    """The size that a body says it has; more than any limit if it does not say."""
    text = headers.get("content-length", "")
    return int(text) if text.isdigit() and len(text) < 20 else sys.maxsize


def _too_many(in_progress: int, wait: float) -> RequestError:
    message = f"{in_progress:,} requests are in progress, more than can be answered soon. Try again in {wait:.1f} s."
    return RequestError(Kind.OVERLOADED, message, None, retry_headers(wait))


def read_keys(settings: Settings) -> list[bytes]:
    """The keys from the options and from the file.

    Raises:
        InvalidArgumentError: The file cannot be read, or does not have a key.
    """
    keys = [key.encode() for key in settings.api_key if key]
    if settings.api_key_file is not None:
        try:
            lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"api_key_file {settings.api_key_file} cannot be read: {error}") from error
        from_file = [line.strip().encode() for line in lines if line.strip() and not line.startswith("#")]
        if not from_file:
            raise InvalidArgumentError(f"api_key_file {settings.api_key_file} has no key: one a line.")
        keys += from_file
    return keys


def statuses(endpoint: Endpoint, kinds: Iterable[Kind]) -> list[int]:
    """The statuses of errors of an endpoint."""
    return sorted({endpoint.dialect.status(kind) for kind in kinds})
