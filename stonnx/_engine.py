"""Texts in, graph outputs out: tokenization, batch planning and the sessions of one bundle, put together.

The three model classes are thin layers over :class:`Engine`. Nothing here knows what the outputs mean.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stonnx import _probe
from stonnx._background import in_background
from stonnx._batching import (
    Duplicates,
    plan_batches,
    share_of_budget,
    texts_per_batch,
    tokens_on_one_thread,
    tokens_per_batch_unit,
    windows,
)
from stonnx._bundle import DEFAULT_ROUTE, Manifest, Route, read_manifest
from stonnx._cpus import require_features
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
_WINDOW_CHARACTERS = 1 << 18
# Where nobody reads the tokens, a graph that has the choice computes the last layer for the first one alone.
_FIRST_TOKEN = np.ones(1, dtype=np.int64)
# Copies of results that are made at a time for texts that occur several times.
_COPIES = 64
# The longest texts of a warm-up, and the batch size of a usual call.
_WARMUP_TOKENS = 512
_USUAL_BATCH_SIZE = 32
# Roughly, to see whether a call is a large one before it is tokenized.
_CHARACTERS_PER_TOKEN = 4
# How long a call that ends early waits for the texts that are being tokenized: longer than they take, unless one of
# them is as long as a book.
_PATIENCE_SECONDS = 0.5

# What is kept of the outputs of a run: of each as many rows, [batch, ...], which an index array selects from.
Reduce = Callable[[list[npt.NDArray[Any]]], list[Any]]


@dataclass(frozen=True)
class BatchResult:
    """What the graph gave for some of the texts: ``indices`` says which, [batch]; outputs are [batch, ...].

    The outputs are arrays, or what ``reduce`` made of them.
    """

    indices: npt.NDArray[np.intp]
    tokens: TokenBatch
    outputs: list[Any]


class Engine:
    """A bundle, loaded: one tokenizer and one graph for each of its routes.

    Its memory on the CPU, beside Python and its packages, has a ceiling for any number of texts:

    - the weights, and with several threads once more, up to 512 MB of them (:mod:`stonnx._runner`);
    - for each thread the activations of one run, of at most ``max_batch_tokens`` tokens or what ``batch_size`` stands
      for, and its outputs, at most 8 MB of vectors. onnxruntime takes up to twice as much, and keeps what a larger run
      took until :meth:`LoadedRoute.trim`, except that of a single text over the budget;
    - two windows of texts that are tokenized, of 262,144 characters each, or one text that is longer;
    - the results, and those of two or three runs for each thread that nobody has taken yet. ``reduce`` makes these
      small in the thread that ran them.

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
        if not isinstance(device_options, DeviceOptions | None):
            raise InvalidArgumentError(f"device_options must be stonnx.DeviceOptions or None, got {device_options!r}.")
        if device_options is not None:
            device_options.check(None if device is None else str(device))
        self.manifest: Manifest = read_manifest(directory)
        verify(directory, self.manifest)
        require_features(self.manifest.requires_cpu_features, f"The bundle {directory}")

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
        """The route for a task (``query``, ``document``), or the default one. Without routes, tasks mean nothing.

        Raises:
            InvalidArgumentError: There are routes, but none for the task.
        """
        if task and task not in self._routes and DEFAULT_ROUTE not in self._routes:
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
        # Numbers that an output has for each text. Those with a row for each token are bounded by the tokens.
        self._numbers = {
            spec.name: math.prod(int(size) for size in spec.shape[1:])
            for spec in route.outputs
            if all(isinstance(size, int) for size in spec.shape[1:])
        }
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
        reduce: Reduce | None = None,
    ) -> Iterator[BatchResult]:
        """Run texts through the graph, in whatever order is fastest. Each text is in exactly one result.

        Args:
            texts: Valid Unicode.
            outputs: Names of the graph's outputs.
            batch_size: Tokens of a run, padding included, in units of :func:`tokens_per_batch_unit`.
            prompt_length: Tokens at the beginning of each text that the pooling leaves out.
            too_long: ``error`` raises for a text over the limit; the others cut it.
            counters: Count in here.
            reduce: What to keep of the outputs of a run, made in the thread that ran it. None: the outputs.

        Raises:
            RunError: A run failed.
            TextTooLongError: A text is over the limit. Of several, the one with the lowest index among those found.
        """
        if not texts:
            return iter(())
        counters = counters or Counters(len(texts))
        budget = self._budget(outputs, batch_size)
        call = _Call(self.tokenizer, self._runner, outputs, budget, prompt_length, too_long, counters, reduce)
        return call.results(texts)

    def _budget(self, outputs: Sequence[str], batch_size: int) -> _Budget:
        """What a run may take at most for these outputs."""
        device = self.session.device
        tokens = batch_size * tokens_per_batch_unit(device)
        numbers = sum(self._numbers.get(name, 0) for name in outputs)
        limit = self._max_batch_tokens or tokens
        return _Budget(
            min(tokens, limit), min(tokens_on_one_thread(tokens), limit), texts_per_batch(4 * numbers, device)
        )

    def warmup(self) -> None:
        """Load what large calls use, and run the smallest batch and the largest usual one."""
        limit = min(self.tokenizer.max_seq_length or _WARMUP_TOKENS, _WARMUP_TOKENS)
        outputs = [spec.name for spec in self.spec.outputs][:1]
        budget = self._budget(outputs, _USUAL_BATCH_SIZE)
        largest = max(1, min(budget.tokens // limit, budget.texts))
        for batch, sequence in dict.fromkeys([(1, 1), (1, limit), (largest, limit)]):
            ids = np.full((batch, sequence), self.spec.tokenizer.pad_token_id, dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            self._runner.warmup(outputs, feeds, free_memory=ids.size > budget.tokens)

    def trim(self) -> None:
        """Give back memory that is not in use."""
        self._runner.trim()


@dataclass(frozen=True)
class _Budget:
    """The most tokens of a run, padding included, unless it is a single text, and the most texts.

    ``thread_tokens`` are those of a run that has one thread.
    """

    tokens: int
    thread_tokens: int
    texts: int


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
    outputs: list[Any]
    queue_seconds: float
    run_seconds: float


class _Call:
    """One call of :meth:`LoadedRoute.stream`, whose arguments these are."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        runner: Runner,
        outputs: Sequence[str],
        budget: _Budget,
        prompt_length: int,
        too_long: TooLong,
        counters: Counters,
        reduce: Reduce | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._runner = runner
        self._outputs = outputs
        self._budget = budget
        self._reduce = reduce
        self._prompt_length = np.array(prompt_length, dtype=np.int64) if prompt_length else None
        self._too_long = too_long
        self._counters = counters
        # None where all texts are different.
        self._duplicates: Duplicates[Text] | None = None

    def results(self, texts: Sequence[Text]) -> Iterator[BatchResult]:
        """Run each different text once, longest first, texts of similar length together."""
        if len(texts) > 1:
            duplicates = Duplicates(texts)
            if len(duplicates.distinct) < len(texts):
                self._duplicates, texts = duplicates, duplicates.distinct
        self._counters.unique_texts = len(texts)
        efforts = list(map(self._tokenizer.effort, texts)) if len(texts) > 1 else []
        if len(texts) > _FIRST_WINDOW or sum(efforts) > _WINDOW_CHARACTERS:
            workers = self._runner.workers(sum(efforts) // _CHARACTERS_PER_TOKEN)
            with closing(self._planned_ahead(texts, efforts, self._tokens_of_run(workers))) as batches:
                yield from self._run_all(batches, workers, alone=workers == 1)
            return
        everything = self._tokenize(texts, np.arange(len(texts)))
        tokens = sum(map(len, everything.encodings))
        workers = self._runner.workers(tokens) if len(texts) > 1 else 1
        plan = self._plan(everything, share_of_budget(tokens, self._tokens_of_run(workers), workers))
        alone = workers == 1 or len(plan) == 1
        if len(plan) == 1 and self._runner.can_run_here(tokens):
            # One text at a time comes here: no thread has to be started for it.
            yield from self._finish(self._run(plan[0], None, alone))
        else:
            yield from self._run_all(iter(plan), workers, alone=alone)

    def _run_all(self, batches: Iterator[_Batch], workers: int, *, alone: bool) -> Iterator[BatchResult]:
        def work(batch: _Batch, control: RunControl) -> _Run:
            return self._run(batch, control, alone)

        for run in self._runner.map(work, batches, workers):
            yield from self._finish(run)

    def _tokens_of_run(self, workers: int) -> int:
        """The most tokens of a run, where so many go side by side."""
        return self._budget.thread_tokens if self._runner.is_on_one_thread(workers) else self._budget.tokens

    def _planned_ahead(self, texts: Sequence[Text], efforts: Sequence[int], tokens: int) -> Generator[_Batch]:
        """The batches of many texts. While those of one window run, the next is tokenized: both release the lock of
        the interpreter."""
        stopped = threading.Event()

        def tokenize(numbers: npt.NDArray[np.intp]) -> Future[_Batch]:
            some = [texts[number] for number in numbers]
            return in_background(lambda: self._tokenize(some, numbers, stopped), "stonnx-tokenize")

        pieces = windows(efforts, _FIRST_WINDOW, _WINDOW, _WINDOW_CHARACTERS)
        following = tokenize(next(pieces))
        try:
            for numbers in pieces:
                ready = following.result()
                following = tokenize(numbers)
                yield from self._plan(ready, tokens)
            yield from self._plan(following.result(), tokens)
        finally:
            stopped.set()
            wait([following], _PATIENCE_SECONDS)

    def _tokenize(
        self, texts: Sequence[Text], numbers: npt.NDArray[np.intp], stopped: threading.Event | None = None
    ) -> _Batch:
        start = time.perf_counter()
        encodings = self._tokenizer.encode(texts, stopped)
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
            for part in plan_batches(list(map(len, piece.encodings)), max_tokens, self._budget.texts)
        ]

    def _run(self, batch: _Batch, control: RunControl | None, alone: bool) -> _Run:
        tokens = self._tokenizer.pad(batch.encodings)
        feeds = {
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.token_type_ids,
            "prompt_length": self._prompt_length,
            "token_limit": None if "token_embeddings" in self._outputs else _FIRST_TOKEN,
        }
        # A single text over the budget can need a hundred times the memory of all others, which would never be freed.
        free_memory = tokens.input_ids.size > self._budget.tokens
        outputs = self._runner.run(
            self._outputs, feeds, tokens.input_ids.size, alone=alone, control=control, free_memory=free_memory
        )
        kept = outputs.arrays if self._reduce is None else self._reduce(outputs.arrays)
        return _Run(batch, tokens, kept, outputs.queue_seconds, outputs.run_seconds)

    def _finish(self, run: _Run) -> Iterator[BatchResult]:
        """Count a batch, and give its rows to all texts that are the same."""
        counters, tokens, batch = self._counters, run.tokens, run.batch
        lengths = [len(encoding) for encoding in batch.encodings]
        counters.batches += 1
        counters.queue_seconds += run.queue_seconds
        counters.run_seconds += run.run_seconds
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
