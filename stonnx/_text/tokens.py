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
    # How many tokens of each text are its own, [batch], if further ones fill it up.
    own: npt.NDArray[np.int64] | None = None

    def filling(self, length: int) -> npt.NDArray[np.bool_]:
        """Where tokens fill up the texts to a length: bool [batch, sequence]."""
        assert self.own is not None
        places = np.arange(self.input_ids.shape[1])
        return (places >= self.own[:, None]) & (places < length)

    def __getitem__(self, texts: npt.NDArray[np.intp]) -> TokenBatch:
        """Some of the texts, in any order, any of them several times."""
        types, own = self.token_type_ids, self.own
        return TokenBatch(
            self.input_ids[texts],
            self.attention_mask[texts],
            None if types is None else types[texts],
            None if own is None else own[texts],
        )


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
        own: How many of them are the text's own, if further ones fill it up. None: all.
    """

    ids: npt.NDArray[np.int32]
    type_ids: npt.NDArray[np.int32] | None = None
    truncated: bool = False
    own: int | None = None

    @property
    def n_sequences(self) -> int:
        """Texts in it: 2 for a pair."""
        return 1 if self.type_ids is None else 2

    def __len__(self) -> int:
        return len(self.ids)
