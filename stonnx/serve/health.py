"""Whether the server lives and is ready: its threads work and its numbers are right."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stonnx._errors import StonnxError
from stonnx.serve.context import Call, Reply
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Dialect, RequestError, retry_headers
from stonnx.serve.models import Models

logger = logging.getLogger("stonnx.serve")

# After this many failed runs in a row, the server is not ready.
_FAILURES = 3
# Clients that come while the models load or the server ends should retry after this many seconds.
RETRY_SECONDS = 2.0


def _error(error: RequestError, status: int) -> dict[str, Any]:
    return {"error": error.message}


DIALECT = Dialect("operations", _error)


@dataclass
class Health:
    """The state of the server's health.

    Attributes:
        models: The models to watch.
        count_probe: Called with ``passed`` or ``failed`` after each probe.
        loaded: Whether the models are loaded and warm.
        draining: Whether the server is about to end.
    """

    models: Models
    count_probe: Callable[[str], None]
    loaded: bool = False
    draining: bool = False
    _problems: dict[str, str] = field(default_factory=dict)
    # The number of failed runs at the last passed probe, by device.
    _forgiven: dict[str, int] = field(default_factory=dict)
    _probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _probed: float = 0.0

    def dead(self) -> str | None:
        """Why the process should be restarted; None: it should not."""
        for device, scheduler in self.models.schedulers.items():
            problem = scheduler.problem()
            if problem is not None:
                return f"The worker threads of {device} do not work: {problem}."
        return None

    def not_ready(self) -> str | None:
        """Why no requests should come; None: they should."""
        if self.draining:
            return "The server is about to end."
        if not self.loaded:
            return "The models are being loaded."
        problem = self.dead()
        if problem is not None:
            return problem
        for served in self.models:
            if served.name in self._problems:
                return self._problems[served.name]
        for device in self._failing():
            return f"{_FAILURES} runs on {device} failed one after the other."
        return None

    def _failing(self) -> list[str]:
        failing = []
        for device, scheduler in self.models.schedulers.items():
            failures = scheduler.failures
            if failures < self._forgiven.get(device, 0):
                self._forgiven[device] = 0
            if failures - self._forgiven.get(device, 0) >= _FAILURES:
                failing.append(device)
        return failing

    async def check(self) -> str | None:
        """As :meth:`not_ready`, after a probe if runs have failed. Only a passed probe makes the server ready again."""
        if self.loaded and not self.draining and self._failing() and self.dead() is None:
            await self.probe()
        return self.not_ready()

    async def probe(self) -> None:
        """Run the probe of every bundle, as loading does."""
        async with self._probing:
            failing = self._failing()
            for served in self.models:
                try:
                    await asyncio.to_thread(served.model.run_probe)
                except StonnxError as error:
                    if served.name not in self._problems:
                        logger.error("The probe of the model %s failed: %s", served.name, error)
                    self._problems[served.name] = f"The probe of the model {served.name} failed: {error}"
                    self.count_probe("failed")
                else:
                    self._problems.pop(served.name, None)
                    self.count_probe("passed")
            if not any(served.name in self._problems for served in self.models):
                for device in failing:
                    self._forgiven[device] = self.models.schedulers[device].failures
            self._probed = time.time()

    async def watch(self, seconds: float) -> None:
        """Repeat the probes for ever."""
        while True:
            await asyncio.sleep(seconds)
            if self.loaded and not self.draining:
                await self.probe()

    async def live(self, call: Call) -> Reply:
        """Whether the process works: 503 asks for a restart."""
        return _reply(self.dead(), "alive")

    async def ready(self, call: Call) -> Reply:
        """Whether requests should come."""
        return _reply(await self.check(), "ready")

    async def kserve_live(self, call: Call) -> Reply:
        """The same for KServe."""
        problem = self.dead()
        return Reply({"live": problem is None}, status=200 if problem is None else 503)

    async def kserve_ready(self, call: Call) -> Reply:
        """The same for KServe."""
        problem = await self.check()
        return Reply({"ready": problem is None}, status=200 if problem is None else 503)


def _reply(problem: str | None, status: str) -> Reply:
    if problem is None:
        return Reply({"status": status})
    return Reply({"status": f"not {status}", "error": problem}, status=503, headers=retry_headers(RETRY_SECONDS))


def endpoints(health: Health) -> list[Endpoint]:
    """The routes of health. They do not need a key."""

    def get(path: str, call: Any, summary: str) -> Endpoint:
        return Endpoint("GET", path, call, DIALECT, summary, None, dict[str, Any], is_public=True, needs_models=False)

    return [
        get("/health/live", health.live, "Whether the process works: 503 asks for a restart"),
        get("/health/ready", health.ready, "Whether requests should come"),
        get("/health", health.ready, "Whether requests should come, as in TEI"),
        get("/ping", health.ready, "Whether requests should come"),
        get("/v2/health/live", health.kserve_live, "Whether the process works, as in KServe"),
        get("/v2/health/ready", health.kserve_ready, "Whether requests should come, as in KServe"),
    ]
