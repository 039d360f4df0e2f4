"""One call of a route: texts to batches, runs and results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stonnx._background import in_background
from stonnx._device.session import RunControl
from stonnx._engine.runner import Outputs, Runner
from stonnx._engine.stats import Counters
from stonnx._errors import TextTooLongError, TokenIdError, TokenizerError
from stonnx._limits import Limits
from stonnx._text.batching import Duplicates, plan_batches, share_of_budget, windows
from stonnx._text.tokenizer import Tokenizer
from stonnx._text.tokens import Text, TokenBatch

# The ways to treat a text of more tokens than the model reads.
TooLong = Literal["truncate", "warn", "error"]

# If nobody reads the tokens, a graph that has the choice computes the last layer for the first one alone.
_FIRST_TOKEN = np.ones(1, dtype=np.int64)

_IS_QUERY = np.array(1, dtype=np.int64)

# The most copies of results to make at a time for texts that occur several times.
_COPIES = 64

# A rough figure, to see whether a call is a large one before it is tokenized.
_CHARACTERS_PER_TOKEN = 4

# The kept part of a run's outputs: for each the same number of rows, [batch, ...], which an index array can select.
Reduce = Callable[[list[npt.NDArray[Any]]], list[Any]]


@dataclass(frozen=True)
class BatchResult:
    """The results of the graph for some of the texts: ``indices`` says which, [batch]; outputs are [batch, ...].

    The outputs are arrays, or the results of ``reduce``.
    """

    indices: npt.NDArray[np.intp]
    tokens: TokenBatch
    outputs: list[Any]


@dataclass(frozen=True)
class Budget:
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


class Call:
    """One call of :meth:`LoadedRoute.stream`, whose arguments these are."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        runner: Runner,
        outputs: Sequence[str],
        budget: Budget,
        prompt_length: int,
        query_rows: int | None,
        too_long: TooLong,
        counters: Counters,
        reduce: Reduce | None,
        limits: Limits,
    ) -> None:
        self._tokenizer = tokenizer
        self._runner = runner
        self._outputs = outputs
        self._budget = budget
        self._reduce = reduce
        self._limits = limits
        self._prompt_length = prompt_length
        self._query_rows = query_rows
        self._too_long = too_long
        self._counters = counters
        # None if all texts are different.
        self._duplicates: Duplicates[Text] | None = None

    def results(self, texts: Sequence[Text]) -> Iterator[BatchResult]:
        """Run each different text once, longest first, texts of similar length together."""
        if len(texts) > 1:
            duplicates = Duplicates(texts)
            if len(duplicates.distinct) < len(texts):
                self._duplicates, texts = duplicates, duplicates.distinct
        self._counters.unique_texts = len(texts)
        efforts = list(map(self._tokenizer.effort, texts)) if len(texts) > 1 else []
        if len(texts) > self._limits.first_window or sum(efforts) > self._limits.window_characters:
            workers = self._runner.workers(sum(efforts) // _CHARACTERS_PER_TOKEN)
            with closing(self._planned_ahead(texts, efforts, workers)) as batches:
                yield from self._run_all(batches, workers, alone=workers == 1)
            return
        everything = self._tokenize(texts, np.arange(len(texts)))
        tokens = sum(map(len, everything.encodings))
        workers = self._runner.workers(tokens) if len(texts) > 1 else 1
        plan = self._plan(everything, share_of_budget(tokens, self._tokens_of_run(workers), workers), workers)
        alone = workers == 1 or len(plan) == 1
        if len(plan) == 1 and self._runner.can_run_here(tokens):
            # Single texts come here: they do not need a thread.
            yield from self._finish(self._run(plan[0], None, alone))
        else:
            yield from self._run_all(iter(plan), workers, alone=alone)

    def _run_all(self, batches: Iterator[_Batch], workers: int, *, alone: bool) -> Iterator[BatchResult]:
        def work(batch: _Batch, control: RunControl) -> _Run:
            return self._run(batch, control, alone)

        for run in self._runner.map(work, batches, workers):
            yield from self._finish(run)

    def _tokens_of_run(self, workers: int) -> int:
        """The most tokens of a run, if so many go side by side."""
        return self._budget.thread_tokens if self._runner.is_on_one_thread(workers) else self._budget.tokens

    def _planned_ahead(self, texts: Sequence[Text], efforts: Sequence[int], workers: int) -> Generator[_Batch]:
        """The batches of many texts. While the batches of one window run, the next window is tokenized.

        Both release the lock of the interpreter.
        """
        stopped, limits = threading.Event(), self._limits
        tokens = self._tokens_of_run(workers)

        def tokenize(numbers: npt.NDArray[np.intp]) -> Future[_Batch]:
            some = [texts[number] for number in numbers]
            return in_background(lambda: self._tokenize(some, numbers, stopped), "stonnx-tokenize")

        pieces = windows(efforts, limits.first_window, limits.window, limits.window_characters)
        following = tokenize(next(pieces))
        try:
            for numbers in pieces:
                ready = following.result()
                following = tokenize(numbers)
                yield from self._plan(ready, tokens)
            yield from self._plan(following.result(), tokens, workers)
        finally:
            stopped.set()
            wait([following], limits.patience_seconds)

    def _tokenize(
        self, texts: Sequence[Text], numbers: npt.NDArray[np.intp], stopped: threading.Event | None = None
    ) -> _Batch:
        start = time.perf_counter()
        try:
            encodings = self._tokenizer.encode(texts, stopped)
        except (TokenIdError, TokenizerError) as error:
            error.index = self._first_place(numbers, error.index)
            raise
        truncated = np.fromiter(map(self._tokenizer.is_truncated, encodings), np.bool_, len(encodings))
        self._counters.tokenize_seconds += time.perf_counter() - start
        if self._too_long == "error" and truncated.any():
            # Different texts are numbered in the order in which they first occur: the lowest number is the first text.
            found = np.flatnonzero(truncated)
            first = found[numbers[found].argmin()]
            index = self._first_place(numbers, first)
            limit = self._tokenizer.max_seq_length
            assert limit is not None  # it was truncated
            raise TextTooLongError(index, int(self._tokenizer.count([texts[first]])[0]), limit)
        return _Batch(numbers, encodings, truncated)

    def _first_place(self, numbers: npt.NDArray[np.intp], position: int) -> int:
        """The place in the call's list at which the text at a position of ``numbers`` first occurs."""
        found = numbers[[position]]
        return int(found[0] if self._duplicates is None else self._duplicates.spread(found)[0][0])

    def _plan(self, piece: _Batch, max_tokens: int, last_for: int = 1) -> list[_Batch]:
        """The batches of some texts. ``last_for``: how many workers have no others after these."""
        if len(piece.numbers) == 1:
            return [piece]
        lengths = list(map(len, piece.encodings))
        return [
            _Batch(piece.numbers[part], [piece.encodings[position] for position in part], piece.truncated[part])
            for part in plan_batches(lengths, max_tokens, self._budget.texts, last_for, limit=self._budget.tokens)
        ]

    def _run(self, batch: _Batch, control: RunControl | None, alone: bool) -> _Run:
        tokens, outputs = run_tokens(
            self._tokenizer,
            self._runner,
            batch.encodings,
            self._outputs,
            prompt_length=self._prompt_length,
            query_rows=self._query_rows,
            budget=self._budget.tokens,
            alone=alone,
            control=control,
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
        # In pieces: outputs can be as wide as a vocabulary, and a text can occur a million times.
        for start in range(0, len(rows), _COPIES):
            some = rows[start : start + _COPIES]
            yield BatchResult(indices[start : start + _COPIES], tokens[some], [output[some] for output in run.outputs])


def run_tokens(
    tokenizer: Tokenizer,
    runner: Runner,
    texts: Sequence[Any],
    outputs: Sequence[str],
    *,
    prompt_length: int,
    query_rows: int | None = None,
    budget: int,
    alone: bool,
    control: RunControl | None = None,
) -> tuple[TokenBatch, Outputs]:
    """Run tokenized texts together, in this thread.

    Args:
        tokenizer: The tokenizer that made the token ids.
        runner: The graph.
        texts: Encodings or :class:`TokenIds`.
        outputs: Names of the graph's outputs.
        prompt_length: Tokens at the beginning of each text that the pooling leaves out.
        query_rows: The number of rows that each query has at least. None: the texts are not queries.
        budget: The most tokens of a usual run.
        alone: Its call has no other runs at the same time.
        control: The object that can stop it.
    """
    tokens = tokenizer.pad(texts)
    feeds = {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "token_type_ids": tokens.token_type_ids,
        "prompt_length": np.array(prompt_length, dtype=np.int64) if prompt_length else None,
        "query_rows": None if query_rows is None else np.array(query_rows, dtype=np.int64),
        "is_query": None if query_rows is None else _IS_QUERY,
        "token_limit": None if "token_embeddings" in outputs else _FIRST_TOKEN,
    }
    size = tokens.input_ids.size
    # A single text over the budget can need a hundred times the memory of all others. Without this, nothing would free
    # that memory.
    free_memory = size > budget
    return tokens, runner.run(outputs, feeds, size, alone=alone, control=control, free_memory=free_memory)
