"""Measures values of a network, over texts, random tokens or images."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tokenizers

from stonnx._device.wheels import import_onnxruntime
from stonnx._errors import InvalidArgumentError
from stonnx._text.chat import Chat, same_beginning
from stonnx_export.graph.read import IMAGE_INPUT
from stonnx_export.graph.save import save
from stonnx_export.originals.original import OriginalTokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

# The input of a network ("sample" below): token ids of a text, or the numbers [3, height, width] of an image.
Sample = Sequence[int] | npt.NDArray[np.float32]

# Sequences of uniformly random token ids give ranges as good as those of real sentences (measured on all-MiniLM-L6-v2),
# in any language. They do not show which channels are large together: see texts.py.
_SEQUENCES, _TOKENS = 64, 64
# Punctuation is mixed in, because trained networks put their largest values on it, and on the first token. Every text
# has some of it.
_PUNCTUATION = ". , ? ! : ; - ' \" ( )"
_SHARE_OF_PUNCTUATION = 1 / 8
# Tokens whose moments are computed in one product.
TOKENS_TOGETHER = 1024
# How many texts a caller's file must have, and how many of them are used at most.
_FEWEST_TEXTS, _MOST_TEXTS = 16, 1000
_CALIBRATION = (
    f"Calibrate with a text file of at least {_FEWEST_TEXTS} lines, one text in each, "
    "or without --calibrate: that needs no texts."
)


def random_sequences(tokenizer: OriginalTokenizer, limit: int) -> list[list[int]]:
    """Random ids and some punctuation between the special tokens of a text; the sequences are always the same.

    In a chat model, they are between the first and the last tokens of its template.
    """
    backend = tokenizer.backend
    first, last = _special_tokens(backend) if tokenizer.add_special_tokens else ([], [])
    longest = min(_TOKENS, limit)
    if tokenizer.chat is not None:
        first, last = _template_tokens(_unlimited(backend), Chat(tokenizer.chat))
        longest = min(_TOKENS + len(first) + len(last), limit)
    generator = np.random.default_rng(0)
    count = max(1, longest - len(first) - len(last))
    vocabulary = backend.get_vocab_size(with_added_tokens=False)
    ids = generator.integers(0, vocabulary, (_SEQUENCES, count))
    marks = _unlimited(backend).encode(_PUNCTUATION, add_special_tokens=False).ids
    if marks:
        chosen = generator.random(ids.shape) < _SHARE_OF_PUNCTUATION
        ids[chosen] = generator.choice(marks, int(chosen.sum()))
    return [[*first, *row, *last] for row in ids.tolist()]


def text_sequences(tokenizer: OriginalTokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """The ids of texts, cut to the limit."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.no_padding()
    backend.enable_truncation(limit)
    inputs: list[Any] = list(texts)
    if tokenizer.chat is not None:
        chat = Chat(tokenizer.chat)
        inputs = [chat.render(pair if chat.takes_pairs else pair[0]) for pair in itertools.pairwise(texts)]
    encodings = backend.encode_batch(inputs, add_special_tokens=tokenizer.add_special_tokens)
    return [encoding.ids for encoding in encodings if encoding.ids]


def read_texts(file: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file to calibrate with, at most the first 1,000 that are not empty.

    Raises:
        InvalidArgumentError: The file is not UTF-8, or has fewer than 16 lines: a few sentences do not show the ranges
            of a layer.
    """
    try:
        with open(file, encoding="utf-8") as lines:
            texts = [text for line in itertools.islice(lines, 10 * _MOST_TEXTS) if (text := line.strip())][:_MOST_TEXTS]
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{file} is not a text in UTF-8 ({error}). {_CALIBRATION}") from error
    except OSError as error:
        raise InvalidArgumentError(f"{file} cannot be read: {error.strerror}. {_CALIBRATION}") from error
    if any("\0" in text for text in texts):
        raise InvalidArgumentError(f"{file} has NUL characters, so it is not a text. {_CALIBRATION}")
    if len(texts) < _FEWEST_TEXTS:
        raise InvalidArgumentError(f"{file} has {len(texts)} lines that are not empty. {_CALIBRATION}")
    return texts


def _special_tokens(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before a text and after it."""
    encoding = _unlimited(backend).encode("a")
    special = encoding.special_tokens_mask
    front = next((index for index, flag in enumerate(special) if not flag), len(special))
    back = next((index for index, flag in enumerate(reversed(special)) if not flag), 0)
    return encoding.ids[:front], encoding.ids[len(special) - back :]


def _template_tokens(backend: tokenizers.Tokenizer, chat: Chat) -> tuple[list[int], list[int]]:
    """The tokens with which every text of a chat model begins and ends."""
    samples = chat.render(("", "") if chat.takes_pairs else "").samples
    one, other = (backend.encode(sample, add_special_tokens=False).ids for sample in samples)
    front = same_beginning(one, other)
    back = same_beginning(one[:front:-1], other[:front:-1])
    return one[:front], one[len(one) - back :]


def _unlimited(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that neither cuts nor pads."""
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def tokens(
    model: ir.Model, values: Collection[ir.Value], samples: Iterable[Sample]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Values [B, S, K], or [B, K], measured in each sample, [S, K] or [K], by the name of the value."""
    names = [str(value.name) for value in values]
    extra = [value for value in values if not value.is_graph_output()]
    model.graph.outputs.extend(extra)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            save(model, path)
            session = import_onnxruntime().InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
    finally:
        for _ in extra:
            model.graph.outputs.pop()
    for sample in samples:
        found = session.run(names, feeds(session, sample))
        yield {name: array[0] for name, array in zip(names, found, strict=True)}


@dataclass(frozen=True)
class Measured:
    """Of a value [B, S, K] over many tokens: what its channels hold, and which of them go together."""

    # The largest magnitude of each channel, [K].
    peak: npt.NDArray[np.float32]
    # The mean of ``x_i x_j`` over all tokens, [K, K]; None if it was not asked for.
    moments: npt.NDArray[np.float32] | None
    # How many tokens there were.
    count: int

    def merged(self, other: Measured) -> Measured:
        """Of the tokens of both."""
        count, moments = self.count + other.count, None
        if self.moments is not None and other.moments is not None:
            moments = (self.moments * self.count + other.moments * other.count) / np.float32(count)
        return Measured(np.maximum(self.peak, other.peak), moments, count)


def measure(
    model: ir.Model,
    values: Collection[ir.Value],
    samples: Sequence[Sample],
    with_moments: Collection[ir.Value] = (),
) -> Mapping[str, Measured]:
    """Measure float values [B, S, K] over all tokens, by the name of the value."""
    names = {str(value.name) for value in with_moments}
    found: dict[str, Measured] = {}
    for rows in _together(tokens(model, values, samples)):
        for name, array in rows.items():
            moments = np.dot(array.T, array) / np.float32(len(array)) if name in names else None
            new = Measured(np.abs(array).max(axis=0), moments, len(array))
            found[name] = found[name].merged(new) if name in found else new
    return found


def _together(
    parts: Iterable[dict[str, npt.NDArray[np.float32]]],
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """The tokens of many sequences in one array: one large product takes a tenth of the time of many small ones."""
    waiting: list[dict[str, npt.NDArray[np.float32]]] = []
    for part in parts:
        waiting.append(part)
        if sum(len(next(iter(each.values()))) for each in waiting) >= TOKENS_TOGETHER:
            yield {name: np.concatenate([each[name] for each in waiting]) for name in part}
            waiting = []
    if waiting:
        yield {name: np.concatenate([each[name] for each in waiting]) for name in waiting[0]}


def feeds(session: InferenceSession, sample: Sample) -> dict[str, npt.NDArray[Any]]:
    """The inputs of a graph for one text or image."""
    if isinstance(sample, np.ndarray):
        return {IMAGE_INPUT: sample[None]}
    ids = np.array([sample], dtype=np.int64)
    known = {node.name for node in session.get_inputs()}
    every = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: array for name, array in every.items() if name in known}


def options() -> SessionOptions:
    """Settings of a session for measuring: it runs the graph as it is, and logs nothing."""
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return settings
