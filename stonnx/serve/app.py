"""The ASGI application: all endpoints, and the parts that do not depend on the path."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stonnx._errors import InvalidArgumentError
from stonnx._tasks import ResultKind
from stonnx.serve import cohere, kserve, openai, tei
from stonnx.serve import health as health_module
from stonnx.serve.api import Api, read_keys
from stonnx.serve.context import Call, Reply
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.health import Health
from stonnx.serve.metrics import CONTENT_TYPE, Metrics
from stonnx.serve.models import Models
from stonnx.serve.openapi import document
from stonnx.serve.page import packed_page, page
from stonnx.serve.settings import Settings, changed
from stonnx.serve.tracing import Tracing
from stonnx.serve.unrouted import dialect_of, no_method, no_path
from stonnx.serve.warmup import warm_routes

logger = logging.getLogger("stonnx.serve")

_ROOT_MEDIA = ("text/html", "application/json")
# Response headers that pages of other origins may read.
_EXPOSED = ("x-request-id", "x-truncated", "retry-after", "retry-after-ms", "server-timing", "x-compute-tokens")

_DIALECTS = (*openai.ENDPOINTS, *tei.ENDPOINTS, *cohere.ENDPOINTS, *kserve.ENDPOINTS)


class Server:
    """Everything that one server has: settings, models, health, metrics, and its application.

    Args:
        settings: The settings of the server.
        tracing: The receiver of spans. None: as the settings say.
    """

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(tei=settings.tei_metrics)
        self.models = Models(settings, self.metrics.report, _paths(_DIALECTS))
        self.metrics.watch(self.models)
        self.health = Health(self.models, lambda result: self.metrics.probes.labels(result).inc())
        self.tracing = tracing or Tracing(settings.otlp_endpoint)
        self.api = Api(settings, self.models, self.health, self.metrics, self.tracing)
        self.endpoints = (*_DIALECTS, *self._own())
        self.app = self._application()
        # Set when loading the models failed.
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None

    def _own(self) -> list[Endpoint]:
        dialect = health_module.DIALECT
        is_open = not self.settings.protect_metrics

        def get(path: str, call: Any, summary: str, *media: str, is_public: bool = True) -> Endpoint:
            kinds = media or ("application/json",)
            return Endpoint("GET", path, call, dialect, summary, None, Any, is_public, needs_models=False, media=kinds)

        return [
            *health_module.endpoints(self.health),
            get("/metrics", self._metrics, "Metrics for Prometheus", "text/plain", is_public=is_open),
            get("/openapi.json", self._openapi, "This interface, for tools"),
            get("/", self._root, "The page for browsers; for others whether requests should come", *_ROOT_MEDIA),
        ]

    async def _metrics(self, call: Call) -> Reply:
        return Reply(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, call: Call) -> Reply:
        return Reply(document(self.endpoints))

    async def _root(self, call: Call) -> Reply:
        asked = call.asked
        if "text/html" in asked.get("accept", ""):
            content, headers = packed_page() if "gzip" in asked.get("accept-encoding", "") else page()
            return Reply(content, media_type="text/html; charset=utf-8", headers=headers)
        return await self.health.ready(call)

    def _application(self) -> Starlette:
        routes = [
            Route(endpoint.path, self.api.handler(endpoint), methods=[endpoint.method]) for endpoint in self.endpoints
        ]
        middleware = []
        if self.settings.cors_origin:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(self.settings.cors_origin),
                    allow_methods=["GET", "POST"],
                    allow_headers=["*"],
                    expose_headers=list(_EXPOSED),
                )
            )
        return Starlette(
            routes=_by_path(routes),
            middleware=middleware,
            exception_handlers={HTTPException: self._http_error},
            lifespan=self._lifespan,
        )

    async def _http_error(self, request: Request, error: Exception) -> Response:
        """The response for a path or a method that does not exist, in the dialect of the path."""
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            listed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("allow", "")
            # From a set, whose order changes from run to run.
            allowed = ", ".join(sorted(listed.split(", ")))
            refused = no_method(request.method, path, allowed, self.endpoints)
        else:
            refused = no_path(path, self.endpoints, self.models.paths)
        return self.api.refuse_unrouted(request, refused, dialect_of(path))

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._load())
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            for task in (loading, watching):
                task.cancel()
            await asyncio.gather(loading, watching, return_exceptions=True)
            await asyncio.to_thread(self.close)

    async def _load(self) -> None:
        """Load the models while the server already answers that it lives."""
        try:
            await asyncio.to_thread(self.models.load)
            await warm_routes(self)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.health.loaded = True
        self.on_ready()

    async def _watch(self) -> None:
        """Repeat the probes, and look for replaced bundles."""
        tasks = []
        if self.settings.probe_seconds:
            tasks.append(self.health.watch(self.settings.probe_seconds))
        if self.settings.watch:
            tasks.append(self._watch_bundles())
        await asyncio.gather(*tasks)

    async def _watch_bundles(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self.health.loaded:
                await self.reload()

    async def change(self, settings: Settings) -> None:
        """Apply settings that were read again, and load replaced bundles again.

        Raises:
            InvalidArgumentError: The settings contradict themselves. Then nothing changes.
        """
        settings, kept = changed(self.settings, settings)
        for name in kept:
            logger.warning("%s was not changed: that needs a restart", name)
        changes = await asyncio.to_thread(self.models.change, settings)
        self.settings = self.api.settings = settings
        try:
            self.api.keys = read_keys(settings)
        except InvalidArgumentError as error:
            logger.error("The keys were not read again: %s", error)
        await warm_routes(self, changes)
        await self.reload(len(changes))

    async def reload(self, changes: int = 0) -> None:
        """Load replaced bundles again, after so many other changes of models."""
        replaced = await asyncio.to_thread(self.models.reload)
        self.metrics.reloads.inc(len(replaced) + changes)
        if replaced or changes:
            # The objects that were frozen when the server became ready hold the old model too.
            gc.unfreeze()
            gc.collect()

    def close(self) -> None:
        """End all threads."""
        self.models.close()
        self.api.close()
        self.tracing.close()


# How often the server looks at bundles with `watch`.
_WATCH_SECONDS = 2.0


def _paths(endpoints: Iterable[Endpoint]) -> dict[ResultKind, list[str]]:
    """Paths by the form of their result."""
    paths: dict[ResultKind, list[str]] = {}
    for endpoint in endpoints:
        for kind in endpoint.gives:
            paths.setdefault(kind, []).append(endpoint.path)
    return paths


def _by_path(routes: list[Route]) -> list[Any]:
    """One route for each path with all of its methods, so that the error for a wrong method names the right ones."""
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    return [same[0] if len(same) == 1 else _several(path, same) for path, same in by_path.items()]


def _several(path: str, routes: list[Route]) -> Route:
    by_method: dict[str, Callable[[Request], Awaitable[Response]]] = {
        method: route.endpoint for route in routes for method in route.methods or ()
    }

    async def handle(request: Request) -> Response:
        return await by_method[request.method](request)

    return Route(path, handle, methods=list(by_method))


def create_app(settings: Settings) -> Starlette:
    """The application, for a server of your own, as granian or a framework that mounts it."""
    return Server(settings).app
