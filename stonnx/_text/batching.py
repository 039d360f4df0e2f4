"""Token counts to batches: the choice of texts that run together."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

# Padded tokens that one unit of `batch_size` stands for, so that its default of 32 means 512 tokens a run. The
# activations of so many stay in the caches of two cores, and 1,024 are slower by 5 to 15%. A GPU is idle with so few.
_TOKENS_PER_UNIT = 16
_TOKENS_PER_UNIT_OF_GPU = 256
# The part of these that stays in the caches of one core. 320 instead of 512 tokens give 1.02 to 1.16 times the
# throughput of int8, and 0.99 to 1.07 times that of fp32. Texts of all lengths gain most, because of less padding.
_SHARE_OF_ONE_THREAD = 5 / 8

# The most bytes that a run may return for its texts: a vector of SPLADE is 120 kB, a run has many short texts, and
# each thread has a run. With half of this, texts of three tokens take a tenth longer on the CPU. A GPU needs more
# texts to be busy, and has one run at a time.
_OUTPUT_BYTES = 8 << 20
_OUTPUT_BYTES_OF_GPU = 256 << 20

# Fewer tokens than this in a run cost more for the run itself than another core gains.
_FEWEST_TOKENS = 128

# The cost of a run beside its tokens, in tokens of a small model with native kernels: 9 in onnxruntime, and the rest to
# pad texts and to change threads.
_TOKENS_OF_A_RUN = 30

# The shares of the budget that are tried to keep all workers busy to the end, and the most batches of a worker at which
# that is done: after more, the end is a small part of the call.
_SHARES = (10 / 8, 9 / 8, 7 / 8, 6 / 8, 5 / 8)
_FEW_BATCHES = 16

_T = TypeVar("_T", bound=Hashable)
_Item = TypeVar("_Item")


def tokens_per_batch_unit(device: str) -> int:
    """Padded tokens that one unit of ``batch_size`` stands for on a device.

    Example:
        >>> tokens_per_batch_unit("cpu"), tokens_per_batch_unit("cuda:1")
        (16, 256)
    """
    return _TOKENS_PER_UNIT_OF_GPU if _is_gpu(device) else _TOKENS_PER_UNIT


def tokens_on_one_thread(tokens: int) -> int:
    """The most tokens of a run on one thread, if one on several threads has at most ``tokens``.

    Example:
        >>> tokens_on_one_thread(512)
        320
    """
    return max(1, int(tokens * _SHARE_OF_ONE_THREAD))


def texts_per_batch(bytes_per_text: int, device: str) -> int:
    """The most texts of a run, so that the size of its result stays within bounds: at least one.

    Args:
        bytes_per_text: The bytes of the result for each text, whatever its length.
        device: The device of the run.

    Example:
        >>> texts_per_batch(4 * 384, "cpu"), texts_per_batch(4 * 30522, "cpu"), texts_per_batch(4 * 30522, "cuda")
        (5461, 68, 2198)
    """
    return max(1, (_OUTPUT_BYTES_OF_GPU if _is_gpu(device) else _OUTPUT_BYTES) // max(1, bytes_per_text))


def _is_gpu(device: str) -> bool:
    return device.startswith(("cuda", "tensorrt"))


def plan_batches(
    lengths: Sequence[int] | npt.NDArray[np.integer],
    max_tokens: int,
    max_texts: int | None = None,
    workers: int = 1,
    limit: int | None = None,
) -> list[npt.NDArray[np.intp]]:
    """Group texts of similar length so that no batch, padding included, holds more than ``max_tokens`` tokens.

    A text over the budget gets a batch of its own. If several workers share few batches, these are smaller, or up to a
    quarter larger, if all workers are done sooner then: of three equal batches, the third keeps one of two waiting.

    Args:
        lengths: Tokens of each text, [texts].
        max_tokens: The budget for ``texts x longest`` of a batch.
        max_texts: The most texts of a batch. None: any number.
        workers: How many batches run at a time, each worker taking the next one as soon as it is done.
        limit: The budget that no batch may exceed in any case. None: there is none.

    Returns:
        The indices of each batch, longest texts first; every index occurs once.

    Example:
        >>> [batch.tolist() for batch in plan_batches([3, 9, 3, 4], max_tokens=10)]
        [[1], [3, 0], [2]]
        >>> [len(batch) for batch in plan_batches([70] * 12, max_tokens=280, workers=2)]
        [3, 3, 3, 3]
        >>> [len(batch) for batch in plan_batches([70] * 10, max_tokens=280, workers=2)]
        [5, 5]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    longest_first = [int(lengths[index]) for index in order]
    plan = _sizes(longest_first, max_tokens, max_texts)
    if workers > 1 and len(plan) <= _FEW_BATCHES * workers:
        fewest, most = min(_FEWEST_TOKENS, max_tokens), limit or sys.maxsize
        budgets = [min(max(fewest, int(max_tokens * share)), most) for share in _SHARES]
        plans = [plan, *(_sizes(longest_first, budget, max_texts) for budget in budgets)]
        plan = min(plans, key=lambda sizes: _duration(sizes, longest_first, workers))
    return np.split(order, np.cumsum(plan)[:-1]) if plan else []


def _sizes(longest_first: Sequence[int], max_tokens: int, max_texts: int | None) -> list[int]:
    """The number of texts in each batch."""
    sizes: list[int] = []
    start = 0
    while start < len(longest_first):
        fitting = max_tokens // max(1, longest_first[start])
        sizes.append(min(max(1, min(fitting, max_texts or fitting)), len(longest_first) - start))
        start += sizes[-1]
    return sizes


def _duration(sizes: Sequence[int], longest_first: Sequence[int], workers: int) -> int:
    """When the last batch is done, in tokens."""
    busy_until = [0] * workers
    start = 0
    for size in sizes:
        heapq.heapreplace(busy_until, busy_until[0] + size * longest_first[start] + _TOKENS_OF_A_RUN)
        start += size
    return max(busy_until)


def share_of_budget(tokens: int, max_tokens: int, workers: int) -> int:
    """The budget of a batch at which the texts of a small call make enough batches for all workers.

    Example:
        >>> share_of_budget(600, 512, workers=2), share_of_budget(100, 512, workers=2), share_of_budget(9000, 512, 2)
        (300, 128, 512)
    """
    return min(max_tokens, max(_FEWEST_TOKENS, -(-tokens // workers)))


def windows(
    lengths: Sequence[int] | npt.NDArray[np.integer], first: int, size: int, max_length: int
) -> Iterator[npt.NDArray[np.intp]]:
    """Split texts, longest first, into pieces to tokenize at a time.

    The first piece is small, because no run can start until it is tokenized.

    Args:
        lengths: Characters of each text, [texts].
        first: Texts in the first piece, at most.
        size: Texts in every other piece, at most.
        max_length: Characters in a piece, at most, unless it is a single text: they bound the memory.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start, count = 0, first
    while start < len(order):
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + max_length, side="right")) - start
        stop = start + max(1, min(count, fitting))
        yield order[start:stop]
        start, count = stop, size


class Duplicates(Generic[_T]):
    """Texts that occur several times, so that each is run once.

    Attributes:
        distinct: The different texts, in the order in which they first occur.

    Example:
        >>> duplicates = Duplicates(["a", "b", "a"])
        >>> duplicates.distinct
        ['a', 'b']
        >>> [part.tolist() for part in duplicates.spread(np.array([1, 0]))]
        [[1, 0, 2], [0, 1, 1]]
    """

    def __init__(self, texts: Sequence[_T]) -> None:
        numbers: dict[_T, int] = {}
        number_of = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.intp, len(texts))
        self.distinct: list[_T] = list(numbers)
        self._counts = np.bincount(number_of, minlength=len(numbers))
        self._positions = np.argsort(number_of, kind="stable")
        self._starts = np.cumsum(self._counts) - self._counts

    def spread(self, numbers: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The places of some of the distinct texts, and for each place the position of its text in ``numbers``.

        Args:
            numbers: Positions in :attr:`distinct`.
        """
        counts = self._counts[numbers]
        rows = np.repeat(np.arange(len(numbers)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._positions[self._starts[numbers][rows] + offsets], rows


def consecutive(items: Iterable[_Item], size: Callable[[_Item], int], limit: int) -> Iterator[list[_Item]]:
    """Lists of consecutive items whose sizes together do not exceed a limit, unless it is a single item."""
    some: list[_Item] = []
    used = 0
    for item in items:
        more = size(item)
        if some and used + more > limit:
            yield some
            some, used = [], 0
        some.append(item)
        used += more
    if some:
        yield some
