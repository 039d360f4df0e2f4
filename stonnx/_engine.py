"""Texts in, graph outputs out: tokenization, batch planning and the sessions of one bundle, put together.

The three model classes are thin layers over :class:`Engine`. Nothing here knows what the outputs mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stonnx import _probe
from stonnx._batching import Duplicates, plan_batches, share_of_budget, tokens_per_batch_unit, windows
from stonnx._bundle import Manifest, Route, read_manifest
from stonnx._errors import InvalidArgumentError, TextTooLongError
from stonnx._runner import Runner
from stonnx._session import DeviceOptions, GraphFacts, RunControl, Session
from stonnx._stats import Counters
from stonnx._tokenize import Text, TokenBatch, Tokenizer
from stonnx._verified import verify

# What happens to a text of more tokens than the model reads.
TooLong = Literal["truncate", "warn", "error"]

# Texts tokenized at a time. The first window is small, so that the first batch runs soon; the others are large enough
# to find texts of equal length, and small enough to bound memory.
_FIRST_WINDOW = 128
_WINDOW = 1024
_WINDOW_CHARACTERS = 1 << 20
# Copies of results that are made at a time for texts that occur several times.
_COPIES = 64
# The longest texts of a warm-up, and the batch size of a usual call.
_WARMUP_TOKENS = 512
_USUAL_BATCH_SIZE = 32
# Roughly, to see whether a call is a large one before it is tokenized.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class BatchResult:
    """What the graph gave for some of the texts: ``indices`` says which, [batch]; outputs are [batch, ...]."""

    indices: npt.NDArray[np.intp]
    tokens: TokenBatch
    outputs: list[npt.NDArray[Any]]


class Engine:
    """A bundle, loaded: one tokenizer and one graph for each of its routes.

    Args:
        directory: The bundle.
        device: Where it runs. None: on the best device that works.
        threads: Threads on the CPU. None: as many as the process may use CPUs.
        max_batch_tokens: No run has more tokens, padding included, whatever the batch size, unless it is a single text.
        device_options: How to use a GPU.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        device_options: DeviceOptions | None = None,
        form: Literal["full-range", "saturation-safe"] | None = None,
    ) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        verify(directory, self.manifest)

        def load(route: Route) -> Callable[[int | None], Session]:
            # A number of threads is asked for on the CPU only.
            return lambda count: Session(
                directory / route.graph,
                device="cpu" if count else device,
                threads=count or threads,
                saturation_safe=route.saturation_safe,
                form=form,
                facts=GraphFacts.of(self.manifest, route),
                options=device_options,
            )

        self._routes = {
            name: LoadedRoute(directory, route, load(route), max_batch_tokens)
            for name, route in self.manifest.routes.items()
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
    """The tokenizer and the graph of one route."""

    def __init__(
        self,
        directory: Path,
        route: Route,
        load: Callable[[int | None], Session],
        max_batch_tokens: int | None,
    ) -> None:
        self.spec = route
        self.tokenizer = Tokenizer(directory / route.tokenizer.file, route.tokenizer)
        self._max_batch_tokens = max_batch_tokens
        # Weights over 2 GB are in files beside the graph, named after it.
        files = [path for path in directory.iterdir() if path.name.startswith(route.graph)]
        self._runner = Runner(load, sum(path.stat().st_size for path in files))

    @property
    def session(self) -> Session:
        """The session that knows the graph's inputs, its device and its threads."""
        return self._runner.session

    def stream(
        self,
        texts: Sequence[Text],
        outputs: Sequence[str],
        *,
        batch_size: int,
        prompt_length: int = 0,
        too_long: TooLong = "truncate",
        counters: Counters | None = None,
    ) -> Iterator[BatchResult]:
        """Run texts through the graph, in whatever order is fastest. Each text is in exactly one result.

        Args:
            texts: Valid Unicode.
            outputs: Names of the graph's outputs.
            batch_size: Tokens of a run, padding included, in units of :func:`tokens_per_batch_unit`.
            prompt_length: Tokens at the beginning of each text that the pooling leaves out.
            too_long: ``error`` raises for a text over the limit; the others cut it.
            counters: Count in here.

        Raises:
            TextTooLongError: A text is over the limit. Of several, the one with the lowest index among those found.
        """
        if not texts:
            return iter(())
        call = _Call(self.tokenizer, self._runner, outputs, prompt_length, too_long, counters or Counters(len(texts)))
        max_tokens = batch_size * tokens_per_batch_unit(self.session.device)
        return call.results(texts, min(max_tokens, self._max_batch_tokens or max_tokens))

    def warmup(self) -> None:
        """Load what large calls use, and run the smallest batch and the largest usual one."""
        unit = tokens_per_batch_unit(self.session.device)
        limit = min(self.tokenizer.max_seq_length or _WARMUP_TOKENS, _WARMUP_TOKENS)
        shapes = [(1, 1), (1, limit), (_USUAL_BATCH_SIZE * unit // limit, limit)]
        outputs = [spec.name for spec in self.spec.outputs][:1]
        for batch, sequence in shapes:
            ids = np.full((max(1, batch), sequence), self.spec.tokenizer.pad_token_id, dtype=np.int64)
            self._runner.warmup(outputs, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def trim(self) -> None:
        """Give back memory that is not in use."""
        self._runner.trim()


@dataclass(frozen=True)
class _Batch:
    """Some of the different texts of a call: their numbers, [batch], their encodings, and which were cut, [batch]."""

    numbers: npt.NDArray[np.intp]
    encodings: Sequence[Any]
    truncated: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Run:
    """A batch that has run."""

    batch: _Batch
    tokens: TokenBatch
    outputs: list[npt.NDArray[Any]]
    seconds: float


class _Call:
    """One call of :meth:`LoadedRoute.stream`, whose arguments these are."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        runner: Runner,
        outputs: Sequence[str],
        prompt_length: int,
        too_long: TooLong,
        counters: Counters,
    ) -> None:
        self._tokenizer = tokenizer
        self._runner = runner
        self._outputs = outputs
        self._prompt_length = np.array(prompt_length, dtype=np.int64) if prompt_length else None
        self._too_long = too_long
        self._counters = counters
        # None where all texts are different.
        self._duplicates: Duplicates[Text] | None = None

    def results(self, texts: Sequence[Text], max_tokens: int) -> Iterator[BatchResult]:
        """Run each different text once, longest first, texts of similar length together."""
        if len(texts) > 1:
            duplicates = Duplicates(texts)
            if len(duplicates.distinct) < len(texts):
                self._duplicates, texts = duplicates, duplicates.distinct
        self._counters.unique_texts = len(texts)
        batches: Iterable[_Batch]
        if len(texts) > _FIRST_WINDOW:
            workers = self._runner.workers(sum(map(self._tokenizer.effort, texts)) // _CHARACTERS_PER_TOKEN)
            batches, alone = self._planned_ahead(texts, max_tokens), workers == 1
        else:
            everything = self._tokenize(texts, np.arange(len(texts)))
            tokens = sum(map(len, everything.encodings))
            workers = self._runner.workers(tokens) if len(texts) > 1 else 1
            batches = self._plan(everything, share_of_budget(tokens, max_tokens, workers))
            alone = workers == 1 or len(batches) == 1
            if len(batches) == 1 and self._runner.can_run_here(tokens):
                # One text at a time comes here: no thread has to be started for it.
                yield from self._finish(self._run(batches[0], None, alone, max_tokens))
                return

        def work(batch: _Batch, control: RunControl) -> _Run:
            return self._run(batch, control, alone, max_tokens)

        for run in self._runner.map(work, batches, workers):
            yield from self._finish(run)

    def _planned_ahead(self, texts: Sequence[Text], max_tokens: int) -> Iterator[_Batch]:
        """The batches of many texts. While those of one window run, the next is tokenized: both release the lock of
        the interpreter."""
        pieces = windows(list(map(self._tokenizer.effort, texts)), _FIRST_WINDOW, _WINDOW, _WINDOW_CHARACTERS)

        def tokenize(numbers: npt.NDArray[np.intp]) -> _Batch:
            return self._tokenize([texts[number] for number in numbers], numbers)

        with ThreadPoolExecutor(1, "stonnx-tokenize") as worker:
            ready = worker.submit(tokenize, next(pieces))
            for numbers in pieces:
                following = worker.submit(tokenize, numbers)
                yield from self._plan(ready.result(), max_tokens)
                ready = following
            yield from self._plan(ready.result(), max_tokens)

    def _tokenize(self, texts: Sequence[Text], numbers: npt.NDArray[np.intp]) -> _Batch:
        start = time.perf_counter()
        encodings = self._tokenizer.encode(texts)
        truncated = np.fromiter(map(self._tokenizer.is_truncated, encodings), np.bool_, len(encodings))
        self._counters.tokenize_seconds += time.perf_counter() - start
        if self._too_long == "error" and truncated.any():
            # Different texts are numbered in the order in which they first occur: the lowest number is the first text.
            found = np.flatnonzero(truncated)
            first = found[numbers[found].argmin()]
            index = int(numbers[first] if self._duplicates is None else self._duplicates.spread(numbers[[first]])[0][0])
            limit = self._tokenizer.max_seq_length
            assert limit is not None  # it was truncated
            raise TextTooLongError(index, int(self._tokenizer.count([texts[first]])[0]), limit)
        return _Batch(numbers, encodings, truncated)

    def _plan(self, piece: _Batch, max_tokens: int) -> list[_Batch]:
        if len(piece.numbers) == 1:
            return [piece]
        return [
            _Batch(piece.numbers[part], [piece.encodings[position] for position in part], piece.truncated[part])
            for part in plan_batches([len(encoding) for encoding in piece.encodings], max_tokens)
        ]

    def _run(self, batch: _Batch, control: RunControl | None, alone: bool, max_tokens: int) -> _Run:
        tokens = self._tokenizer.pad(batch.encodings)
        feeds = {
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.token_type_ids,
            "prompt_length": self._prompt_length,
        }
        start = time.perf_counter()
        # A single text over the budget can need a hundred times the memory of all others, which would never be freed.
        free_memory = tokens.input_ids.size > max_tokens
        outputs = self._runner.run(
            self._outputs, feeds, tokens.input_ids.size, alone=alone, control=control, free_memory=free_memory
        )
        return _Run(batch, tokens, outputs, time.perf_counter() - start)

    def _finish(self, run: _Run) -> Iterator[BatchResult]:
        """Count a batch, and give its rows to all texts that are the same."""
        counters, tokens, batch = self._counters, run.tokens, run.batch
        lengths = [len(encoding) for encoding in batch.encodings]
        counters.batches += 1
        counters.run_seconds += run.seconds
        counters.tokens += sum(lengths)
        counters.padded_tokens += tokens.input_ids.size
        if self._duplicates is None:
            counters.parts.append((batch.numbers, lengths, batch.truncated))
            yield BatchResult(batch.numbers, tokens, run.outputs)
            return
        indices, rows = self._duplicates.spread(batch.numbers)
        counters.parts.append((indices, np.array(lengths)[rows], batch.truncated[rows]))
        # In pieces: outputs can be as wide as a vocabulary, and a text can be there a million times.
        for start in range(0, len(rows), _COPIES):
            some = rows[start : start + _COPIES]
            types = None if tokens.token_type_ids is None else tokens.token_type_ids[some]
            yield BatchResult(
                indices[start : start + _COPIES],
                TokenBatch(tokens.input_ids[some], tokens.attention_mask[some], types),
                [output[some] for output in run.outputs],
            )
