"""Texts, and what a tokenizer makes of them, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# An input of a model: a text, or a pair of texts.
Text = str | tuple[str, str]


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids of some texts, each array int64 of shape [batch, sequence]."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    # Which of the two texts of a pair a token comes from; None if no text of the batch is a pair.
    token_type_ids: npt.NDArray[np.int64] | None


class Token(NamedTuple):
    """A token of a text; ``start`` and ``stop`` are None for tokens that are not in it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, eq=False, slots=True)
class TokenIds:
    """The token ids of one text or pair, small enough to keep many of them.

    :meth:`Tokenizer.pad` accepts it in place of an encoding.

    Attributes:
        ids: int32 [tokens].
        type_ids: Which of the two texts a token comes from, int32 [tokens]; None for a single text.
        truncated: Whether the text was longer than the model reads.
    """

    ids: npt.NDArray[np.int32]
    type_ids: npt.NDArray[np.int32] | None = None
    truncated: bool = False

    @property
    def n_sequences(self) -> int:
        """Texts in it: 2 for a pair."""
        return 1 if self.type_ids is None else 2

    def __len__(self) -> int:
        return len(self.ids)
