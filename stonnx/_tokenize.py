"""Texts or text pairs to token ids. The only file that knows the ``tokenizers`` package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from stonnx._bundle import TokenizerSpec
from stonnx._errors import BundleFormatError, InvalidArgumentError

# What a model reads: a text, or a pair of texts.
Text = str | tuple[str, str]


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids of some texts, each array int64 of shape [batch, sequence]."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    # Which of the two texts of a pair a token comes from; None where no text of the batch is a pair.
    token_type_ids: npt.NDArray[np.int64] | None


class Tokenizer:
    """A ``tokenizer.json`` under the model's own truncation, whatever the file itself says about it."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise BundleFormatError(f"{path} is no tokenizer that the tokenizers package can read: {error}") from error
        self._spec = spec
        self._path = path
        self._max_seq_length = spec.max_seq_length
        self._configure(self._backend, spec.max_seq_length)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The ``tokenizers.Tokenizer`` behind it."""
        return self._backend

    @property
    def max_seq_length(self) -> int | None:
        """Texts are cut to this many tokens, special tokens included; None: never."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        limit = self._spec.max_positions
        if value is None:
            value = self._spec.max_seq_length if limit is None else limit
            if value is None:
                return
        special = self._backend.num_special_tokens_to_add(False)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | np.integer)
            or value <= special
            or (limit and value > limit)
        ):
            bounds = f"more than the {special} special tokens" + (f" and at most {limit} positions" if limit else "")
            raise InvalidArgumentError(f"max_seq_length must be an integer, {bounds}; got {value!r}.")
        value = int(value)
        # A tokenizer may be in use by another thread, and changing one that is in use fails: swap in a fresh one.
        fresh = tokenizers.Tokenizer.from_file(str(self._path))
        self._configure(fresh, value)
        self._backend, self._max_seq_length = fresh, value

    def _configure(self, backend: tokenizers.Tokenizer, max_length: int | None) -> None:
        backend.no_padding()
        if max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(max_length, strategy="longest_first", direction=self._spec.truncation_side)

    def encode(self, texts: Sequence[Text]) -> list[tokenizers.Encoding]:
        """Token ids of each text, truncated, not padded. The texts are valid Unicode."""
        backend = self._backend
        if len(texts) == 1:
            first, second = texts[0] if isinstance(texts[0], tuple) else (texts[0], None)
            return [backend.encode(first, second, add_special_tokens=self._spec.add_special_tokens)]
        encodings: list[tokenizers.Encoding] = backend.encode_batch_fast(
            list(texts), add_special_tokens=self._spec.add_special_tokens
        )
        return encodings

    def pad(self, encodings: Sequence[tokenizers.Encoding]) -> TokenBatch:
        """Put encodings into arrays, padded on the right to the longest of them."""
        ids = [encoding.ids for encoding in encodings]
        lengths = np.array([len(row) for row in ids])
        # A text may have no token at all where the model adds no special tokens; its row is padding only.
        width = int(lengths.max(initial=1))
        pairs = any(encoding.n_sequences > 1 for encoding in encodings)
        if (lengths == width).all():
            input_ids = np.array(ids, dtype=np.int64).reshape(len(ids), width)
            attention_mask = np.ones_like(input_ids)
        else:
            attention_mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
            input_ids = np.full((len(ids), width), self._spec.pad_token_id, dtype=np.int64)
            input_ids[attention_mask.astype(bool)] = [token for row in ids for token in row]
        token_type_ids = None
        if pairs:
            token_type_ids = np.full_like(input_ids, self._spec.pad_token_type_id)
            token_type_ids[attention_mask.astype(bool)] = np.concatenate([encoding.type_ids for encoding in encodings])
        return TokenBatch(input_ids, attention_mask, token_type_ids)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt alone, without a special token at its end."""
        ids = self.encode([prompt])[0].ids
        return len(ids) - (len(ids) > 0 and ids[-1] in self._spec.special_token_ids)
