"""A request in progress: its question, its counters, and the parts of its response other than the body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from stonnx._batcher.scheduler import Answer, is_bulk
from stonnx.serve.errors import Dialect
from stonnx.serve.settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from stonnx.serve.models import Models
    from stonnx.serve.served import Served

# The event loop formats up to this many numbers. More would take so long that other requests would wait.
_NUMBERS_IN_LOOP = 32_768
# The most positions of cut texts that a response names.
_POSITIONS_NAMED = 32

_T = TypeVar("_T")


@dataclass
class Call:
    """One request.

    Attributes:
        request: The HTTP request, with its body read.
        settings: The settings of the server.
        models: The models of the server.
        executor: Threads for work that would hold up the event loop.
        client_seconds: The seconds that the client gives the request; None: it does not say.
        is_rehearsal: Whether no client waits, so that it may take as long as it does.
        held: Bytes of its body, which count for the bound on all bodies.
        asked: The headers of the request, names in lower case.
        request_id: The client's, or a new one.
        dialect: The form of errors.
        body: The decoded body.
        binary: The bytes after the JSON of the body, in KServe's binary extension.
        bulk: Whether it may wait for others. None: if it has many texts.
        served: The model that it uses.
        texts: The number of its texts.
        answers: The queue's answers for the texts.
    """

    request: Request
    settings: Settings
    models: Models
    executor: Executor
    asked: Mapping[str, str]
    request_id: str
    dialect: Dialect
    body: Any = None
    binary: bytes = b""
    client_seconds: float | None = None
    held: int = 0
    is_rehearsal: bool = False
    bulk: bool | None = None
    served: Served | None = None
    texts: int = 0
    answers: list[Answer] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def use(self, served: Served) -> None:
        """The request is for this model."""
        self.served = served

    def count(self, answer: Answer) -> None:
        """Keep an answer of the queue."""
        self.answers.append(answer)

    def deadline(self, texts: int) -> float | None:
        """When the request is dropped, if it is for so many texts, on the clock of :func:`time.perf_counter`.

        Bulk work lets others go first, so it may take longer.
        """
        if self.is_rehearsal:
            return None
        settings = self.settings
        seconds = settings.bulk_timeout if is_bulk(texts, self.bulk) else settings.request_timeout
        if self.client_seconds is not None:
            seconds = min(seconds, self.client_seconds)
        return self.started + seconds

    @property
    def tokens(self) -> int:
        """Tokens that were computed, special tokens included."""
        return sum(sum(answer.tokens) for answer in self.answers)

    @property
    def truncated(self) -> list[int]:
        """Positions of texts that were cut."""
        return [position for answer in self.answers for position in answer.truncated]

    @property
    def tokenize_seconds(self) -> float:
        """Seconds until the texts were tokenized."""
        return sum(answer.tokenize_seconds for answer in self.answers)

    @property
    def queue_seconds(self) -> float:
        """Seconds from then until the first text ran."""
        return sum(answer.queue_seconds for answer in self.answers)

    @property
    def run_seconds(self) -> float:
        """Seconds from then until the last one had run."""
        return sum(answer.run_seconds for answer in self.answers)

    async def off_loop(self, work: Callable[[], _T], numbers: int) -> _T:
        """``work()``, in a thread if it handles so many numbers that it would stop the event loop."""
        if numbers <= _NUMBERS_IN_LOOP:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)

    def headers(self) -> dict[str, str]:
        """The headers of every response: the names of TEI, and those that browsers draw."""
        headers = {"x-request-id": self.request_id}
        if not self.answers:
            return headers
        milliseconds = {
            "total": 1000 * (time.perf_counter() - self.started),
            "tokenization": 1000 * self.tokenize_seconds,
            "queue": 1000 * self.queue_seconds,
            "inference": 1000 * self.run_seconds,
        }
        headers |= {f"x-{name}-time": str(round(value)) for name, value in milliseconds.items()}
        headers["server-timing"] = ", ".join(f"{name};dur={value:.1f}" for name, value in milliseconds.items())
        headers["x-compute-type"] = "gpu+optimized" if self.served and self.served.model.device != "cpu" else "cpu"
        headers["x-compute-time"] = str(round(milliseconds["total"]))
        headers["x-compute-tokens"] = str(self.tokens)
        cut = self.truncated
        if cut:
            more = len(cut) - _POSITIONS_NAMED
            named = ",".join(map(str, cut[:_POSITIONS_NAMED]))
            headers["x-truncated"] = named + (f",+{more}" if more > 0 else "")
        return headers


@dataclass(frozen=True)
class Reply:
    """A response: its body as bytes, or as a value to write as JSON."""

    content: Any
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    # The numbers in it. They decide whether a thread writes it.
    numbers: int = 0
