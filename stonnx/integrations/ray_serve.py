"""Ray Serve: ``stonnx serve`` as an autoscaled deployment. It needs the extras ``ray`` and ``serve``.

Example:
    >>> from ray import serve
    >>> from stonnx.integrations.ray_serve import deployment
    >>> serve.run(deployment("all-MiniLM-L6-v2-int8", num_cpus=4, max_replicas=8))  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette

from stonnx._errors import InvalidArgumentError, RunError
from stonnx.integrations.ray import with_threads
from stonnx.serve.app import Server
from stonnx.serve.settings import Settings, option_fields, read_settings

__all__ = ["deployment"]

# Ray Serve listens, not the server.
_OF_THE_PROXY = ("host", "port", "drain_delay", "drain_timeout")
# The server has a queue of its own, which is bounded by tokens and answers 429 when it is full.
_MOST_ONGOING_REQUESTS = 256


def deployment(
    bundles: str | Sequence[str],
    *,
    name: str = "stonnx",
    num_cpus: float = 1,
    num_gpus: float = 0,
    min_replicas: int = 1,
    max_replicas: int = 4,
    target_ongoing_requests: float = 8,
    deployment_options: Mapping[str, Any] | None = None,
    config: Path | None = None,
    **settings: Any,
) -> serve.Application:
    """The application of ``stonnx serve`` for ``serve.run``, with all of its dialects.

    A replica is ready when its models are loaded and warm. Its health is that of ``/health/ready``: Ray Serve replaces
    a replica whose bundle no longer gives the numbers of its probe, or whose threads do not work.

    Args:
        bundles: ``BUNDLE`` or ``NAME=BUNDLE``, one or several, as on the command line. Every node must have them under
            the same path; a directory that exists here is passed on as an absolute path.
        name: The name of the deployment.
        num_cpus: The CPUs of a replica, and the threads of its models.
        num_gpus: The GPUs of a replica.
        min_replicas, max_replicas: The bounds of autoscaling.
        target_ongoing_requests: Ray Serve adds replicas when each has more requests in progress than this.
        deployment_options: Further arguments of ``serve.deployment``, as ``{"max_queued_requests": 1000}``. They win.
        config: A TOML file of settings, as for ``stonnx serve --config``.
        **settings: The other options of ``stonnx serve``, with underscores: ``alias=("A=NAME",)``.

    Returns:
        The application. Its replicas report ``queued_tokens`` to autoscaling policies of your own.

    Raises:
        InvalidArgumentError: A setting is not known or not possible.
    """
    known = [entry.name for entry in option_fields() if entry.name not in _OF_THE_PROXY]
    for setting in settings:
        if setting in _OF_THE_PROXY:
            raise InvalidArgumentError(
                f"{setting} is a matter of Ray Serve here: serve.start(http_options={{'host': ..., 'port': ...}}), or "
                "deployment_options={'graceful_shutdown_timeout_s': ...}."
            )
        if setting not in known:
            raise InvalidArgumentError(f"{setting} is not a setting. Allowed: {', '.join(known)}.")
    named = [bundles] if isinstance(bundles, str) else list(bundles)
    chosen = read_settings(settings, named, config, {})
    models = tuple(
        replace(entry, bundle=str(Path(entry.bundle).resolve())) if Path(entry.bundle).is_dir() else entry
        for entry in chosen.models
    )
    options: dict[str, Any] = {
        "name": name,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": _MOST_ONGOING_REQUESTS,
        "autoscaling_config": {
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
        },
        **(deployment_options or {}),
    }
    if "num_replicas" in options:
        options.pop("autoscaling_config")
    replica = serve.ingress(_builder(replace(chosen, models=models)))(_Replica)
    return serve.deployment(**options)(replica).bind()


def _builder(settings: Settings) -> Callable[[], Starlette]:
    """A function that Ray Serve calls in each replica, to make its application."""

    def build() -> Starlette:
        options = with_threads({"threads": settings.threads})
        server = Server(replace(settings, **options))
        server.app.state.server = server
        return server.app

    return build


class _Replica:
    """The part of a replica that is not its application: its health and its load."""

    app: Starlette

    def __init__(self) -> None:
        logging.getLogger("stonnx.serve").setLevel(logging.INFO)

    @property
    def _server(self) -> Server:
        server: Server = self.app.state.server
        return server

    async def check_health(self) -> None:
        """Raise an error if the replica should be replaced. The first call waits until the models are loaded."""
        server = self._server
        while not server.health.loaded and server.failure is None:
            await asyncio.sleep(_POLL_SECONDS)
        if server.failure is not None:
            raise server.failure
        problem = await server.health.check()
        if problem is not None:
            raise RunError(problem)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load, for autoscaling policies."""
        return {"queued_tokens": float(self._server.models.queued_tokens())}


# How often a replica looks whether its models are loaded.
_POLL_SECONDS = 0.05
