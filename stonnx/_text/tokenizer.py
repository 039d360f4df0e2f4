"""Texts or text pairs to token ids. The only file that knows the ``tokenizers`` package."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from stonnx._arguments import as_integer
from stonnx._background import in_background
from stonnx._bundle.manifest import TokenizerSpec
from stonnx._errors import InvalidArgumentError, TokenIdError, TokenizerError
from stonnx._limits import Limits
from stonnx._text.batching import consecutive
from stonnx._text.chat import Chat, Endings, Rendered
from stonnx._text.growth import check_growth
from stonnx._text.long_texts import can_be_shortened, is_same, longest_whole, shorten
from stonnx._text.panics import readable, tokenized
from stonnx._text.tokens import Text, Token, TokenBatch, TokenIds

# Whether the tokenizers package has started the threads that tokenize a batch.
_threads_used = False


class Tokenizer:
    """A ``tokenizer.json`` with the model's own truncation, whatever the file itself says about it.

    Args:
        read: Returns the contents of the file, the same each time.
        spec: The model's own limits.
        path: Its name, for messages.
        characters: The most characters to tokenize at a time, unless a single text has more.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        spec: TokenizerSpec,
        path: Path,
        characters: int = Limits.tokenized_characters,
    ) -> None:
        content = read()
        self._spec, self._path = spec, path
        self._read = read
        self._characters = characters
        self.chat = None if spec.chat is None else Chat(spec.chat)
        self._endings = Endings(self._whole_ids)
        with readable(path):
            backend = tokenizers.Tokenizer.from_buffer(content)
            check_growth(backend)
            self._configure(backend, spec.max_seq_length)
            self._can_be_shortened = spec.truncation_side == "right" and can_be_shortened(backend)
        # Together, because another thread may replace both at any moment.
        self._current = backend, spec.max_seq_length
        self._untruncated: tokenizers.Tokenizer | None = None

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The ``tokenizers.Tokenizer`` that does the work."""
        return self._current[0]

    @property
    def max_seq_length(self) -> int | None:
        """Texts are cut to this many tokens, special tokens included; None: never."""
        return self._current[1]

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        limit = self._spec.max_positions
        if value is None:
            value = self._spec.max_seq_length if limit is None else limit
            if value is None:
                return
        special = self._special_tokens(self.backend, is_pair=False)
        length = as_integer(value)
        if length is None or length <= special or (limit and length > limit):
            bounds = f"more than the {special} special tokens" + (f" and at most {limit} positions" if limit else "")
            raise InvalidArgumentError(f"max_seq_length must be an integer, {bounds}; got {value!r}.")
        # Another thread may be using the tokenizer, and changing it then fails. So this swaps in a fresh one.
        content = self._read()
        with readable(self._path):
            fresh = tokenizers.Tokenizer.from_buffer(content)
            self._configure(fresh, length)
        self._current = fresh, length

    def _configure(self, backend: tokenizers.Tokenizer, max_length: int | None) -> None:
        backend.no_padding()
        if max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(max_length, strategy="longest_first", direction=self._spec.truncation_side)

    def prompted(self, texts: Sequence[Text], prompt: str, task: str | None = None) -> list[Text]:
        """Texts with a prompt: before each, in a pair before its first text, or in its place in the chat template.

        ``task`` is ``query`` or ``document`` if they are called that, which the template may read.
        """
        if self.chat is not None:
            return [self.chat.of(task).render(text, prompt) for text in texts]
        return [prompt + text if isinstance(text, str) else (prompt + text[0], text[1]) for text in texts]

    def encode(
        self, texts: Sequence[Text], stopped: threading.Event | None = None
    ) -> list[tokenizers.Encoding | TokenIds]:
        """Token ids of each text, truncated, not padded. The texts are valid Unicode.

        A chat model has its template around each text, and gives :class:`TokenIds`.

        Raises:
            CancelledError: ``stopped`` was set meanwhile.
            TokenIdError: A text has a token that the network has no row for.
            TokenizerError: The package cannot read a text.
        """
        encodings: list[tokenizers.Encoding | TokenIds]
        encodings = [*(self._encode_chat if self.chat else self._encode_truncated)(texts, stopped)]
        rows = self._spec.token_rows
        if rows is not None:
            for index, encoding in enumerate(encodings):
                highest = max(encoding.ids, default=0)
                if highest >= rows:
                    raise TokenIdError(index, str(self.backend.id_to_token(highest)), highest, rows)
        return encodings

    def _encode_chat(self, texts: Sequence[Text], stopped: threading.Event | None) -> list[TokenIds]:
        """Texts in the form of the chat template. One that is cut still ends as the template does."""
        assert self.chat is not None
        rendered = self._in_form(texts)
        result = []
        limit = self.max_seq_length
        for text, encoding in zip(rendered, self._encode_truncated(rendered, stopped), strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            if self.chat.restores_ending and limit is not None and len(ids) >= limit:
                self._endings.restore(ids, text.samples)
            result.append(TokenIds(ids, truncated=self.is_truncated(encoding)))
        return result

    def _in_form(self, texts: Sequence[Text]) -> list[Rendered]:
        assert self.chat is not None
        return [self.chat.render(text) for text in texts]

    def _whole_ids(self, text: str) -> list[int]:
        """The ids of a whole text. The part that is cut off is in pieces, the first of them beside the cut."""
        encoding = self.backend.encode(text, add_special_tokens=self._spec.add_special_tokens)
        pieces = [encoding.ids, *(piece.ids for piece in encoding.overflowing)]
        in_order = pieces if self._spec.truncation_side == "right" else pieces[::-1]
        return [number for piece in in_order for number in piece]

    def _encode_truncated(self, texts: Sequence[Text], stopped: threading.Event | None) -> list[tokenizers.Encoding]:
        backend, limit = self._current
        if limit is None or not self._can_be_shortened:
            return self._encode(backend, texts, stopped)
        whole = longest_whole(limit)
        shortened = {
            index: short
            for index, text in enumerate(texts)
            if (len(text) if isinstance(text, str) else max(map(len, text))) > whole
            and (short := shorten(text, limit, whole)) is not None
        }
        if not shortened:
            return self._encode(backend, texts, stopped)
        encodings = self._encode(backend, [shortened.get(index, text) for index, text in enumerate(texts)], stopped)
        special = self._special_tokens(backend, is_pair=True)
        doubtful = [index for index in shortened if not is_same(texts[index], encodings[index], (limit - special) // 2)]
        try:
            again = self._encode(backend, [texts[index] for index in doubtful], stopped)
        except TokenizerError as error:
            raise TokenizerError(doubtful[error.index], error.reason) from error
        for index, encoding in zip(doubtful, again, strict=True):
            encodings[index] = encoding
        return encodings

    def _encode(
        self, backend: tokenizers.Tokenizer, texts: Sequence[Text], stopped: threading.Event | None
    ) -> list[tokenizers.Encoding]:
        special = self._spec.add_special_tokens
        if len(texts) == 1 and characters_of(texts[0]) <= self._characters:
            # Without the threads of a batch, which would cost more than the text.
            first, second = texts[0] if isinstance(texts[0], tuple) else (texts[0], None)
            return tokenized(lambda _: [backend.encode(first, second, add_special_tokens=special)], texts)
        return [
            encoding for piece in _encoded(backend, texts, special, self._characters, stopped) for encoding in piece
        ]

    def _special_tokens(self, backend: tokenizers.Tokenizer, is_pair: bool) -> int:
        return int(backend.num_special_tokens_to_add(is_pair)) if self._spec.add_special_tokens else 0

    def is_truncated(self, encoding: tokenizers.Encoding | TokenIds) -> bool:
        """Whether the text of an encoding was longer than :attr:`max_seq_length`."""
        if isinstance(encoding, TokenIds):
            return encoding.truncated
        limit = self.max_seq_length
        # Asking for the part that was cut off is expensive.
        return limit is not None and len(encoding) >= limit and bool(encoding.overflowing)

    def count(self, texts: Sequence[Text]) -> npt.NDArray[np.int64]:
        """Number of tokens of each whole text, special tokens included, without truncation: [texts]."""
        backend = self.backend
        if self.chat is not None:
            texts = self._in_form(texts)
        parts = [part for text in texts for part in (text if isinstance(text, tuple) else (text,))]
        try:
            # The part that was cut off is in `overflowing`, in pieces that do not overlap.
            lengths = [
                len(encoding) + sum(map(len, encoding.overflowing))
                for piece in _encoded(backend, parts, False, self._characters)
                for encoding in piece
            ]
        except TokenizerError as error:
            owners = [index for index, text in enumerate(texts) for _ in (text if isinstance(text, tuple) else (text,))]
            raise TokenizerError(owners[error.index], error.reason) from error
        of_parts = iter(lengths)
        special = {is_pair: self._special_tokens(backend, is_pair) for is_pair in (False, True)}
        counts = [
            sum(islice(of_parts, 2 if isinstance(text, tuple) else 1)) + special[isinstance(text, tuple)]
            for text in texts
        ]
        return np.array(counts, dtype=np.int64)

    def from_ids(self, ids: Sequence[int]) -> TokenIds:
        """A text from ids that a caller made with this tokenizer. Adds the special tokens if they are missing.

        Raises:
            InvalidArgumentError: One is not an id of this tokenizer, or there are more than the model reads.
        """
        backend, limit = self._current
        size = backend.get_vocab_size()
        wrong = next((number for number in ids if not 0 <= number < size), None)
        if wrong is not None:
            raise InvalidArgumentError(f"{wrong} is not a token id of this model, which has {size:,} tokens.")
        sample = backend.encode("a", add_special_tokens=self._spec.add_special_tokens)
        inside = [place for place, special in enumerate(sample.special_tokens_mask) if not special]
        before, after = sample.ids[: inside[0]], sample.ids[inside[-1] + 1 :]
        whole = list(ids)
        if whole[: len(before)] != before:
            whole = before + whole
        if whole[len(whole) - len(after) :] != after:
            whole += after
        if limit is not None and len(whole) > limit:
            raise InvalidArgumentError(f"There are {len(whole):,} token ids, and the model reads {limit:,}.")
        return TokenIds(np.array(whole, dtype=np.int32))

    def whole(self, texts: Sequence[Text], add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of texts without truncation, with their places in the texts, in characters."""
        if self._untruncated is None:
            # Loaded on first use: a vocabulary can take 50 MB.
            backend = tokenizers.Tokenizer.from_buffer(self._read())
            backend.no_padding()
            backend.no_truncation()
            self._untruncated = backend
        untruncated = self._untruncated
        encodings = tokenized(lambda some: untruncated.encode_batch(some, add_special_tokens=add_special_tokens), texts)
        return [_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def effort(self, text: Text) -> int:
        """The number of characters of a text that are tokenized."""
        characters = characters_of(text)
        limit = self.max_seq_length
        return min(characters, longest_whole(limit)) if limit is not None and self._can_be_shortened else characters

    def ids(self, texts: Sequence[Text]) -> list[TokenIds]:
        """As :meth:`encode`, but with the ids only and not the rest of an encoding."""
        return [
            encoding
            if isinstance(encoding, TokenIds)
            else TokenIds(
                np.array(encoding.ids, dtype=np.int32),
                np.array(encoding.type_ids, dtype=np.int32) if encoding.n_sequences > 1 else None,
                self.is_truncated(encoding),
            )
            for encoding in self.encode(texts)
        ]

    def pad(self, encodings: Sequence[tokenizers.Encoding | TokenIds]) -> TokenBatch:
        """Put encodings into arrays, padded on the right to the longest of them."""
        ids = [encoding.ids for encoding in encodings]
        if len(ids) == 1 and len(ids[0]) and encodings[0].n_sequences == 1:
            input_ids = np.array(ids, dtype=np.int64)
            return TokenBatch(input_ids, np.ones(input_ids.shape, dtype=np.int64), None)
        lengths = np.array([len(row) for row in ids])
        # If the model does not add special tokens, a text may have none at all; its row is padding only.
        width = int(lengths.max(initial=1))
        pairs = any(encoding.n_sequences > 1 for encoding in encodings)
        if (lengths == width).all():
            input_ids = np.array(ids, dtype=np.int64).reshape(len(ids), width)
            attention_mask = np.ones_like(input_ids)
        else:
            attention_mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
            input_ids = np.full((len(ids), width), self._spec.pad_token_id, dtype=np.int64)
            are_arrays = isinstance(ids[0], np.ndarray)
            flat = np.concatenate(ids) if are_arrays else [token for row in ids for token in row]
            input_ids[attention_mask.astype(bool)] = flat
        token_type_ids = None
        if pairs:
            token_type_ids = np.full_like(input_ids, self._spec.pad_token_type_id)
            token_type_ids[attention_mask.astype(bool)] = np.concatenate([_types(encoding) for encoding in encodings])
        return TokenBatch(input_ids, attention_mask, token_type_ids)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt alone, without a special token at its end. Not for chat models: they put it elsewhere."""
        ids = self.encode([prompt])[0].ids
        return len(ids) - (len(ids) > 0 and ids[-1] in self._spec.special_token_ids)


def _tokens(text: Text, encoding: tokenizers.Encoding) -> list[Token]:
    parts = (text,) if isinstance(text, str) else text
    tokens = []
    rows = zip(
        encoding.ids,
        encoding.tokens,
        encoding.special_tokens_mask,
        encoding.offsets,
        encoding.sequence_ids,
        strict=True,
    )
    for number, name, special, (start, stop), part in rows:
        if special or part is None:
            tokens.append(Token(number, name, bool(special), None, None))
        else:
            tokens.append(Token(number, parts[part][start:stop], False, start, stop))
    return tokens


def _types(encoding: tokenizers.Encoding | TokenIds) -> Sequence[int] | npt.NDArray[np.int32]:
    types: Sequence[int] | npt.NDArray[np.int32] | None = encoding.type_ids
    return np.zeros(len(encoding), dtype=np.int32) if types is None else types


def characters_of(text: Text) -> int:
    """Characters of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def _encoded(
    backend: tokenizers.Tokenizer,
    texts: Sequence[Text],
    add_special_tokens: bool,
    characters: int,
    stopped: threading.Event | None = None,
) -> Iterator[list[tokenizers.Encoding]]:
    """The encodings of texts, some at a time, so that Ctrl-C and ``stopped`` do not have to wait for all of them.

    Raises:
        CancelledError: ``stopped`` was set.
        TokenizerError: The package cannot read a text.
    """
    global _threads_used
    start = 0
    for piece in consecutive(texts, characters_of, characters):
        if stopped is not None and stopped.is_set():
            raise CancelledError
        _threads_used = True

        def encode(piece: list[Text] = piece, start: int = start) -> list[tokenizers.Encoding]:
            return tokenized(
                lambda some: backend.encode_batch_fast(some, add_special_tokens=add_special_tokens), piece, start
            )

        # A single text over a piece cannot be interrupted. Ctrl-C reaches the main thread only.
        is_long = len(piece) == 1 and characters_of(piece[0]) > characters
        if is_long and threading.current_thread() is threading.main_thread():
            yield in_background(encode, "stonnx-tokenize").result()
        else:
            yield encode()
        start += len(piece)


def _after_fork_in_child() -> None:
    """Turn the package's threads off in a forked process, which lacks them and would wait for them forever."""
    # The package does this by itself unless the variable is set. It reads the variable in every call.
    if _threads_used:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
