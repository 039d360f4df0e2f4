"""The counters of a call, to find out where the time goes and which texts were cut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class CallStats:
    """The counters of a call. Tokens are those that the model read: truncated, with special tokens, without padding.

    Attributes:
        texts: Texts or pairs of the call.
        unique_texts: Different ones among them; each is run once.
        tokens: Tokens of the different texts.
        padded_tokens: The same with padding.
        batches: Runs of the graph.
        tokens_per_text: Tokens of each text of the call, int64 [texts].
        truncated: Which texts were longer than the limit and lost their end, ascending, int64 [number of them].
        tokenize_seconds: Seconds of tokenization, most of them while the graph ran.
        queue_seconds: Seconds that batches waited for threads that the batches of other calls had, and for the second
            session. Batches side by side add up here and in ``run_seconds``, which can exceed ``seconds``.
        run_seconds: Seconds in runs of the graph.
        seconds: Seconds from the beginning of the call to its last batch.
    """

    texts: int
    unique_texts: int
    tokens: int
    padded_tokens: int
    batches: int
    tokens_per_text: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.int64]
    tokenize_seconds: float
    queue_seconds: float
    run_seconds: float
    seconds: float

    @property
    def padding_ratio(self) -> float:
        """The share of padding in the tokens that went through the graph."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def __str__(self) -> str:
        return (
            f"{self.texts} texts ({self.unique_texts} different, {len(self.truncated)} truncated), "
            f"{self.tokens} tokens ({self.padding_ratio:.0%} padding), {self.batches} batches, {self.seconds:.3f} s "
            f"(tokenizing {self.tokenize_seconds:.3f} s, waiting {self.queue_seconds:.3f} s, "
            f"runs {self.run_seconds:.3f} s)"
        )


@dataclass
class Counters:
    """The numbers that :class:`CallStats` are made of, counted while a call runs."""

    texts: int
    unique_texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    # Each entry is for some of the texts: their numbers, their tokens, and whether they were cut.
    parts: list[tuple[npt.NDArray[np.intp], npt.ArrayLike, npt.NDArray[np.bool_]]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def finish(self) -> None:
        """Note the end of the call."""
        self.seconds = time.perf_counter() - self.started

    def add_parts(self, others: Sequence[Counters]) -> None:
        """Add the counters of other processes, for consecutive parts of the texts."""
        start = 0
        for other in others:
            self.unique_texts += other.unique_texts
            self.tokens += other.tokens
            self.padded_tokens += other.padded_tokens
            self.batches += other.batches
            self.tokenize_seconds += other.tokenize_seconds
            self.queue_seconds += other.queue_seconds
            self.run_seconds += other.run_seconds
            self.parts += [(indices + start, lengths, cut) for indices, lengths, cut in other.parts]
            start += other.texts

    def stats(self) -> CallStats:
        """All counters, in the order of the texts."""
        tokens_per_text = np.zeros(self.texts, dtype=np.int64)
        truncated = np.zeros(self.texts, dtype=np.bool_)
        for indices, lengths, cut in self.parts:
            tokens_per_text[indices], truncated[indices] = lengths, cut
        return CallStats(
            texts=self.texts,
            unique_texts=self.unique_texts,
            tokens=self.tokens,
            padded_tokens=self.padded_tokens,
            batches=self.batches,
            tokens_per_text=tokens_per_text,
            truncated=np.flatnonzero(truncated),
            tokenize_seconds=self.tokenize_seconds,
            queue_seconds=self.queue_seconds,
            run_seconds=self.run_seconds,
            seconds=self.seconds,
        )
