"""A call's question to the engine, as a value: it means the same here and in a process of a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stonnx._engine.call import BatchResult, Reduce, TooLong
from stonnx._engine.engine import Engine
from stonnx._engine.route import LoadedRoute
from stonnx._engine.stats import Counters
from stonnx._text.tokens import Text

_Result = TypeVar("_Result")
# The most tokens of a text in one call; "whole": as many as the network reads. None: the limit of the model.
Limit = int | Literal["whole"] | None


class Collector(Protocol[_Result]):
    """Makes a result from the batches of a request. It is pickled with the request."""

    def collect(self, request: Request[_Result], route: LoadedRoute, batches: Iterator[BatchResult]) -> _Result:
        """The result for the texts of a request. The batches come in any order."""
        ...

    def join(self, parts: list[_Result]) -> _Result:
        """The result for all texts, from the results for consecutive parts of them. This may empty the list."""
        ...


@dataclass(frozen=True)
class Request(Generic[_Result]):
    """The question of one call. It and everything in it can be pickled.

    Attributes:
        texts: Valid Unicode, with the prompt before each.
        outputs: Names of the graph's outputs.
        collect: The collector that makes the result.
        prompt: The prompt before each text. The pooling of some models leaves it out.
        task: ``query`` or ``document``: the route of a model that has several, and the limits of such texts.
        reduce: The function that reduces the outputs of a run, in the thread that ran it. None: keep the outputs.
        batch_size: Tokens of a run, padding included, in units that depend on the device.
        too_long: How to treat a text over the limit.
        limit: The limit of this call.
    """

    texts: Sequence[Text]
    outputs: Sequence[str]
    collect: Collector[_Result]
    prompt: str | None = None
    task: str | None = None
    reduce: Reduce | None = None
    batch_size: int = 32
    too_long: TooLong = "truncate"
    limit: Limit = None


@dataclass(frozen=True)
class ImageRequest:
    """The images of a call. It and everything in it can be pickled.

    Attributes:
        images: Each with its index among the inputs of the call, for messages; None: it is the only one.
        batch_size: As in :class:`Request`: an image counts as its patches.
    """

    images: Sequence[tuple[int | None, Any]]
    batch_size: int = 32


def run_images(
    engine: Engine, request: ImageRequest, advance: Callable[[int], Any] = lambda count: None
) -> npt.NDArray[np.float32]:
    """The vectors of the images of a request, at least one: float32 [images, dim].

    Raises:
        InvalidInputError, RunError: As for :meth:`ImageRoute.vectors`.
    """
    places, images = zip(*request.images, strict=True)
    return engine.images.vectors(images, places, request.batch_size, advance)


def run_request(
    engine: Engine, request: Request[_Result], advance: Callable[[int], Any] = lambda count: None
) -> tuple[_Result, Counters]:
    """Run the texts of a request.

    Args:
        engine: The bundle.
        request: The request to run. It has at least one text.
        advance: Called with the number of texts of each batch that has run.

    Returns:
        The result and the counters.

    Raises:
        RunError, TextTooLongError: As for :meth:`LoadedRoute.stream`.
        InvalidArgumentError: The model does not have a route for the task.
    """
    counters = Counters(len(request.texts))
    route = engine.route_of_call(request.task)
    stream = route.stream(
        request.texts,
        request.outputs,
        batch_size=request.batch_size,
        task=request.task,
        prompt_length=route.excluded_tokens(request.prompt),
        too_long=request.too_long,
        limit=request.limit,
        counters=counters,
        reduce=request.reduce,
    )

    def batches() -> Iterator[BatchResult]:
        for batch in stream:
            yield batch
            advance(len(batch.indices))

    return request.collect.collect(request, route, batches()), counters
