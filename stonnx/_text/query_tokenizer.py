"""Queries of late interaction: texts that are filled up with expansion tokens, whose vectors count too."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers

from stonnx._bundle.manifest import Expansion
from stonnx._text.tokenizer import Tokenizer
from stonnx._text.tokens import Text, TokenBatch, TokenIds


class QueryTokenizer(Tokenizer):
    """A :class:`Tokenizer` whose texts have at least as many tokens as an expansion says.

    Args:
        expansion: The tokens that fill up shorter texts.
        *arguments, **options: As for :class:`Tokenizer`.
    """

    def __init__(self, expansion: Expansion, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._expansion = expansion
        self._token = self.backend.id_to_token(expansion.token_id)

    def encode(
        self, texts: Sequence[Text], stopped: threading.Event | None = None
    ) -> list[tokenizers.Encoding | TokenIds]:
        """As :meth:`Tokenizer.encode`, with the expansion. The encodings' ``attention_mask`` is 0 for its tokens."""
        return [self._filled(encoding) for encoding in super().encode(texts, stopped)]

    def _filled(self, encoding: tokenizers.Encoding | TokenIds) -> tokenizers.Encoding | TokenIds:
        length, token = self._expansion.length, self._expansion.token_id
        if isinstance(encoding, TokenIds):
            missing = max(0, length - len(encoding))
            ids = np.concatenate([encoding.ids, np.full(missing, token, dtype=np.int32)])
            return replace(encoding, ids=ids, own=len(encoding))
        encoding.pad(length, pad_id=token, pad_token=self._token or "")
        return encoding

    def ids(self, texts: Sequence[Text]) -> list[TokenIds]:
        """As :meth:`Tokenizer.ids`, with the expansion."""
        encodings = self.encode(texts)
        return [
            TokenIds(
                np.array(encoding.ids, dtype=np.int32),
                np.array(encoding.type_ids, dtype=np.int32) if encoding.n_sequences > 1 else None,
                self.is_truncated(encoding),
                _own_tokens(encoding),
            )
            for encoding in encodings
        ]

    def from_ids(self, ids: Sequence[int]) -> TokenIds:
        """As :meth:`Tokenizer.from_ids`, with the expansion."""
        text = self._filled(super().from_ids(ids))
        assert isinstance(text, TokenIds)
        return text

    def pad(self, encodings: Sequence[tokenizers.Encoding | TokenIds]) -> TokenBatch:
        """Put encodings into arrays. The mask has the expansion tokens if other tokens attend to them."""
        batch = super().pad(encodings)
        own = np.array([_own_tokens(encoding) for encoding in encodings], dtype=np.int64)
        mask = batch.attention_mask
        if not self._expansion.attend:
            mask = (np.arange(batch.input_ids.shape[1]) < own[:, None]).astype(np.int64)
        return TokenBatch(batch.input_ids, mask, batch.token_type_ids, own)


def _own_tokens(encoding: tokenizers.Encoding | TokenIds) -> int:
    """The number of a text's own tokens."""
    if isinstance(encoding, TokenIds):
        return len(encoding) if encoding.own is None else encoding.own
    return sum(encoding.attention_mask)
