"""Token counts to batches: which texts run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

# Padded tokens that one unit of `batch_size` stands for, so that its default of 32 means 1,024 tokens a run: large
# enough to keep every core busy, small enough for the activations to stay in the cache.
TOKENS_PER_BATCH_UNIT = 32


def plan_batches(lengths: Sequence[int] | npt.NDArray[np.integer], max_tokens: int) -> list[npt.NDArray[np.intp]]:
    """Group texts of similar length so that no batch, padding included, holds more than ``max_tokens`` tokens.

    A text that is longer than the budget gets a batch of its own.

    Args:
        lengths: Tokens of each text, [texts].
        max_tokens: The budget for ``texts x longest`` of a batch.

    Returns:
        The indices of each batch, longest texts first; every index occurs once.

    Example:
        >>> [batch.tolist() for batch in plan_batches([3, 9, 3, 4], max_tokens=10)]
        [[1], [3, 0], [2]]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        count = max(1, max_tokens // longest)
        batches.append(order[start : start + count])
        start += count
    return batches


def windows(lengths: Sequence[int] | npt.NDArray[np.integer], first: int, size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Split texts, longest first, into pieces that are tokenized at a time.

    The first piece is small: nothing can run until it is tokenized.

    Args:
        lengths: Characters of each text, [texts].
        first: Texts in the first piece.
        size: Texts in every other piece.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start, count = 0, first
    while start < len(order):
        yield order[start : start + count]
        start, count = start + count, size
