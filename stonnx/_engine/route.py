"""The tokenizer and the graph of one route."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from stonnx._bundle.bundle import Bundle
from stonnx._bundle.consistency import check_graph
from stonnx._bundle.manifest import EXPORT_AGAIN, MANIFEST_NAME, Route
from stonnx._engine.call import BatchResult, Budget, Call, Reduce, TooLong, run_tokens
from stonnx._engine.graph_session import GraphSession
from stonnx._engine.runner import Runner
from stonnx._engine.stats import Counters
from stonnx._errors import BundleFormatError, InvalidArgumentError
from stonnx._limits import Limits
from stonnx._text.batching import (
    texts_per_batch,
    tokens_on_one_thread,
    tokens_per_batch_unit,
)
from stonnx._text.query_tokenizer import QueryTokenizer
from stonnx._text.tokenizer import Tokenizer
from stonnx._text.tokens import Text, TokenIds

# The longest texts of a warm-up, and the batch size of a usual call.
_WARMUP_TOKENS = 512

_USUAL_BATCH_SIZE = 32
# The most limits of single calls whose tokenizers are kept.
_MOST_LIMITS = 4


class LoadedRoute:
    """The tokenizer and the graph of one route."""

    def __init__(
        self,
        bundle: Bundle,
        route: Route,
        load: Callable[[int | None], GraphSession],
        max_batch_tokens: int | None,
        limits: Limits,
    ) -> None:
        self.spec = route
        self._is_table = [module.type for module in bundle.manifest.modules[:1]] == ["StaticEmbedding"]
        file = route.tokenizer.file
        self._tokenizer_file = (lambda: bundle.read(file)), bundle.directory / file
        self.tokenizer = self._new_tokenizer(None, limits)
        # Those of queries and documents that have a limit or an expansion of their own, made on first use.
        self._tokenizers: dict[str, Tokenizer] = {}
        # Those of calls that have a limit of their own.
        self._limited: dict[int | str, Tokenizer] = {}
        self._max_batch_tokens, self._limits = max_batch_tokens, limits
        # The count of numbers that an output has for each text. The tokens bound outputs with a row for each token.
        self._numbers = {
            spec.name: math.prod(int(size) for size in spec.shape[1:])
            for spec in route.outputs
            if all(isinstance(size, int) for size in spec.shape[1:])
        }
        shapes = {spec.name: spec.shape for spec in route.outputs}
        self._runner = Runner(load, bundle.graph_bytes(route.graph), limits, shapes)
        check_graph(route, self.session.required, self.session.output_shapes, bundle.directory / route.graph)
        expansion = route.tokenizer.expansion
        used = {"pad_token_id": route.tokenizer.pad_token_id, "expansion.token_id": expansion and expansion.token_id}
        for name, token in used.items():
            if token and self.tokenizer.backend.id_to_token(token) is None:
                raise BundleFormatError(
                    f"{bundle.directory / MANIFEST_NAME}: {name} is {token}, and {file} has no such token. "
                    f"{EXPORT_AGAIN}"
                )

    @property
    def session(self) -> GraphSession:
        """The session that knows the graph's inputs, its device and its threads."""
        return self._runner.session

    @property
    def limit(self) -> int | None:
        """The limit of texts in tokens. ``math.inf`` for a table of vectors without one, as in the original."""
        length = self.tokenizer.max_seq_length
        return cast(int, math.inf) if length is None and self._is_table else length

    def tokenizer_of(self, task: str | None, limit: int | Literal["whole"] | None = None) -> Tokenizer:
        """The tokenizer for texts that are called queries or documents, or of a call with a limit of its own."""
        if limit is not None:
            return self._tokenizer_with(limit)
        spec = self.spec.tokenizer
        own = {"query": spec.query_length, "document": spec.document_length}.get(task or "")
        if own is None and not (task == "query" and spec.expansion is not None):
            return self.tokenizer
        assert task is not None
        if task not in self._tokenizers:
            self._tokenizers[task] = self._new_tokenizer(task, self._limits)
        found = self._tokenizers[task]
        if own is None and found.max_seq_length != self.tokenizer.max_seq_length:
            found.max_seq_length = self.tokenizer.max_seq_length
        return found

    def _tokenizer_with(self, limit: int | Literal["whole"]) -> Tokenizer:
        """The tokenizer that cuts texts at the limit of a call."""
        found = self._limited.get(limit)
        if found is None:
            found = self._new_tokenizer(None, self._limits)
            try:
                found.max_seq_length = None if limit == "whole" else limit
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"processing_kwargs has max_length={limit}. {error}") from None
            # A caller may have a limit of its own for each call.
            self._limited = {**self._limited, limit: found} if len(self._limited) < _MOST_LIMITS else {limit: found}
        return found

    def _new_tokenizer(self, task: str | None, limits: Limits) -> Tokenizer:
        read, path = self._tokenizer_file
        spec = self.spec.tokenizer
        own = {"query": spec.query_length, "document": spec.document_length}.get(task or "")
        spec = replace(spec, max_seq_length=spec.max_seq_length if own is None else own)
        if task == "query" and spec.expansion is not None:
            return QueryTokenizer(spec.expansion, read, spec, path, limits.tokenized_characters)
        return Tokenizer(read, spec, path, limits.tokenized_characters)

    def query_rows(self, task: str | None) -> int | None:
        """The number of rows that every query has at least; None for texts that are not called queries."""
        expansion = self.spec.tokenizer.expansion
        return (0 if expansion is None else expansion.length) if task == "query" else None

    def stream(
        self,
        texts: Sequence[Text],
        outputs: Sequence[str],
        *,
        batch_size: int,
        task: str | None = None,
        prompt_length: int = 0,
        too_long: TooLong = "truncate",
        limit: int | Literal["whole"] | None = None,
        counters: Counters | None = None,
        reduce: Reduce | None = None,
    ) -> Iterator[BatchResult]:
        """Run texts through the graph, in the fastest order. Each text is in exactly one result.

        Args:
            texts: Valid Unicode.
            outputs: Names of the graph's outputs.
            batch_size: Tokens of a run, padding included, in units of :func:`tokens_per_batch_unit`.
            task: ``query`` or ``document``, if the texts are called that.
            prompt_length: Tokens at the beginning of each text that the pooling leaves out.
            too_long: ``error`` raises for a text over the limit; the others cut it.
            limit: The most tokens of a text in this call; ``whole``: as many as the network reads. None: as always.
            counters: The counters to update.
            reduce: The function that reduces the outputs of a run, in the thread that ran it. None: keep the outputs.

        Raises:
            RunError: A run failed.
            InvalidArgumentError: The network does not read so many tokens, or they are the special ones only.
            TextTooLongError: A text is over the limit. Of several, the one with the lowest index among those found.
        """
        if not texts:
            return iter(())
        counters = counters or Counters(len(texts))
        budget = self._budget(outputs, batch_size)
        tokenizer, rows = self.tokenizer_of(task, limit), self.query_rows(task)
        call = Call(
            tokenizer, self._runner, outputs, budget, prompt_length, rows, too_long, counters, reduce, self._limits
        )
        return call.results(texts)

    def run(
        self,
        texts: Sequence[TokenIds],
        outputs: Sequence[str],
        *,
        prompt_length: int = 0,
        alone: bool = False,
        task: str | None = None,
    ) -> list[npt.NDArray[Any]]:
        """Run texts together, now, in this thread: for programs that plan the runs of many calls, as stonnx.Batcher.

        Args:
            texts: From ``tokenizer_of(task).ids``.
            outputs: Names of the graph's outputs.
            prompt_length: Tokens at the beginning of each text that the pooling leaves out.
            alone: Whether nothing else runs at the same time, so that the run may have all threads.
            task: ``query`` or ``document``, if the texts are called that.

        Returns:
            For each output an array [texts, ...].

        Raises:
            RunError: The run failed.
        """
        _, result = run_tokens(
            self.tokenizer_of(task),
            self._runner,
            texts,
            outputs,
            prompt_length=prompt_length,
            query_rows=self.query_rows(task),
            budget=self._budget(outputs, _USUAL_BATCH_SIZE).tokens,
            alone=alone,
        )
        return result.arrays

    def run_limits(self, outputs: Sequence[str]) -> tuple[int, int]:
        """The most tokens of a run with others beside it, padding included, and the most texts."""
        budget = self._budget(outputs, _USUAL_BATCH_SIZE)
        is_on_one_thread = self._runner.is_on_one_thread(self.parallel_runs)
        return (budget.thread_tokens if is_on_one_thread else budget.tokens), budget.texts

    @property
    def parallel_runs(self) -> int:
        """The number of runs side by side if there are enough texts."""
        return self._runner.parallel_runs

    def _budget(self, outputs: Sequence[str], batch_size: int) -> Budget:
        """The budget of a run for these outputs."""
        device = self.session.device
        tokens = batch_size * tokens_per_batch_unit(device)
        numbers = sum(self._numbers.get(name, 0) for name in outputs)
        limit = self._max_batch_tokens or tokens
        return Budget(
            min(tokens, limit), min(tokens_on_one_thread(tokens), limit), texts_per_batch(4 * numbers, device)
        )

    def excluded_tokens(self, prompt: str | None) -> int:
        """The number of a prompt's tokens that the pooling leaves out: 0 unless the model has include_prompt=False."""
        if not prompt or self.tokenizer.chat is not None or "prompt_length" not in self.session.inputs:
            return 0
        return self.tokenizer.prompt_length(prompt)

    def warmup(self) -> None:
        """Load the session of large calls, and run the smallest batch and the largest usual one."""
        limit = min(self.tokenizer.max_seq_length or _WARMUP_TOKENS, _WARMUP_TOKENS)
        outputs = [spec.name for spec in self.spec.outputs][:1]
        budget = self._budget(outputs, _USUAL_BATCH_SIZE)
        largest = max(1, min(budget.tokens // limit, budget.texts))
        for batch, sequence in dict.fromkeys([(1, 1), (1, limit), (largest, limit)]):
            ids = np.full((batch, sequence), self.spec.tokenizer.pad_token_id, dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            self._runner.warmup(outputs, feeds, free_memory=ids.size > budget.tokens)

    def trim(self) -> None:
        """Give back unused memory."""
        self._runner.trim()
