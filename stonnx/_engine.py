"""Texts in, graph outputs out: tokenization, batch planning and the session of one bundle, put together.

The three model classes are thin layers over :class:`Engine`. Nothing here knows what the outputs mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx import _probe
from stonnx._batching import TOKENS_PER_BATCH_UNIT, plan_batches, windows
from stonnx._bundle import Manifest, Route, read_manifest, verify_files
from stonnx._errors import InvalidArgumentError
from stonnx._session import Session
from stonnx._tokenize import Text, TokenBatch, Tokenizer

# Texts tokenized at a time. The first window is small, so that the first batch runs soon; the others are large enough
# to find texts of equal length, and small enough to bound memory.
_FIRST_WINDOW = 128
_WINDOW = 1024


@dataclass(frozen=True)
class BatchResult:
    """What the graph gave for some of the texts: ``indices`` says which, [batch]; outputs are [batch, ...]."""

    indices: npt.NDArray[np.intp]
    tokens: TokenBatch
    outputs: list[npt.NDArray[Any]]


class Engine:
    """A bundle, loaded: one tokenizer and one session for each of its routes."""

    def __init__(self, directory: Path, *, device: str | None = None, threads: int | None = None) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        verify_files(directory, self.manifest)
        self._routes = {
            name: LoadedRoute(directory, route, device, threads) for name, route in self.manifest.routes.items()
        }
        _probe.check(directory, self.manifest, self._routes)

    def route(self, task: str | None = None) -> LoadedRoute:
        """The route for a task (``query``, ``document``), or the default one. With a single route, tasks mean nothing.

        Raises:
            InvalidArgumentError: There are routes, but none for the task.
        """
        if task and task not in self._routes and len(self._routes) > 1:
            raise InvalidArgumentError(f"There is no route for the task {task!r}. Allowed: {', '.join(self._routes)}.")
        default = self.manifest.default_route
        return self._routes.get(task or default) or self._routes[default]

    @property
    def named_routes(self) -> Mapping[str, LoadedRoute]:
        """All routes by name."""
        return self._routes

    @property
    def routes(self) -> tuple[LoadedRoute, ...]:
        """All routes."""
        return tuple(self._routes.values())


class LoadedRoute:
    """The tokenizer and the session of one route."""

    def __init__(self, directory: Path, route: Route, device: str | None, threads: int | None) -> None:
        self.spec = route
        self.tokenizer = Tokenizer(directory / route.tokenizer.file, route.tokenizer)
        self.session = Session(
            directory / route.graph, device=device, threads=threads, saturation_safe=route.saturation_safe
        )

    def stream(
        self, texts: Sequence[Text], outputs: Sequence[str], *, batch_size: int, prompt_length: int = 0
    ) -> Iterator[BatchResult]:
        """Run texts through the graph, in whatever order is fastest. Each text is in exactly one result."""
        if len(texts) <= _FIRST_WINDOW:
            pieces: Iterator[npt.NDArray[np.intp]] = iter([np.arange(len(texts))] if texts else [])
        else:
            pieces = windows([_characters(text) for text in texts], _FIRST_WINDOW, _WINDOW)
        for indices, encodings in self._tokenized(texts, pieces):
            lengths = [len(encoding) for encoding in encodings]
            for batch in plan_batches(lengths, batch_size * TOKENS_PER_BATCH_UNIT):
                tokens = self.tokenizer.pad([encodings[position] for position in batch])
                yield BatchResult(indices[batch], tokens, self._run(tokens, outputs, prompt_length))

    def _tokenized(
        self, texts: Sequence[Text], pieces: Iterator[npt.NDArray[np.intp]]
    ) -> Iterator[tuple[npt.NDArray[np.intp], list[Any]]]:
        """Tokenize one piece ahead of the one that is running: both release the interpreter lock."""

        def encode(indices: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], list[Any]]:
            return indices, self.tokenizer.encode([texts[index] for index in indices])

        piece = next(pieces, None)
        if piece is None:
            return
        following = next(pieces, None)
        if following is None:
            yield encode(piece)
            return
        with ThreadPoolExecutor(1, "stonnx-tokenize") as worker:
            ready = encode(piece)
            while following is not None:
                future = worker.submit(encode, following)
                yield ready
                ready = future.result()
                following = next(pieces, None)
            yield ready

    def _run(self, tokens: TokenBatch, outputs: Sequence[str], prompt_length: int) -> list[npt.NDArray[Any]]:
        feeds = {
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.token_type_ids,
            "prompt_length": np.array(prompt_length, dtype=np.int64) if prompt_length else None,
        }
        return self.session.run(outputs, feeds)


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
