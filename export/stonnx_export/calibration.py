"""The largest magnitude of each channel of some values, over texts or over random tokens."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import tokenizers

from stonnx._errors import InvalidArgumentError
from stonnx_export.graph import GraphBuilder, save
from stonnx_export.original import OriginalTokenizer

# Sequences of uniformly random token ids give ranges as good as those of real sentences (measured on all-MiniLM-L6-v2),
# in any language and without any data.
_SEQUENCES, _TOKENS = 64, 64
# Texts of one's own to calibrate with.
_FEWEST_TEXTS, _MOST_TEXTS = 16, 1000
_CALIBRATION = (
    f"Calibrate with a text file of at least {_FEWEST_TEXTS} lines, one text in each, "
    "or without --calibrate: that needs no texts."
)


def random_sequences(tokenizer: OriginalTokenizer, limit: int) -> list[list[int]]:
    """Sequences of random ids between the special tokens that every text has; always the same ones."""
    backend = tokenizer.backend
    first, last = _special_tokens(backend) if tokenizer.add_special_tokens else ([], [])
    generator = np.random.default_rng(0)
    count = max(1, min(_TOKENS, limit) - len(first) - len(last))
    vocabulary = backend.get_vocab_size(with_added_tokens=False)
    return [[*first, *generator.integers(0, vocabulary, count).tolist(), *last] for _ in range(_SEQUENCES)]


def text_sequences(tokenizer: OriginalTokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """The ids of texts, cut to the limit."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.no_padding()
    backend.enable_truncation(limit)
    encodings = backend.encode_batch(list(texts), add_special_tokens=tokenizer.add_special_tokens)
    return [encoding.ids for encoding in encodings if encoding.ids]


def read_texts(file: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file to calibrate with, at most the first 1,000 that are not empty.

    Raises:
        InvalidArgumentError: It is no text in UTF-8, or has fewer than 16 lines: the ranges of a layer cannot be told
            from a few sentences.
    """
    try:
        with open(file, encoding="utf-8") as lines:
            texts = [text for line in itertools.islice(lines, 10 * _MOST_TEXTS) if (text := line.strip())][:_MOST_TEXTS]
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{file} is no text in UTF-8 ({error}). {_CALIBRATION}") from error
    except OSError as error:
        raise InvalidArgumentError(f"{file} cannot be read: {error.strerror}. {_CALIBRATION}") from error
    if any("\0" in text for text in texts):
        raise InvalidArgumentError(f"{file} has NUL characters, so it is no text. {_CALIBRATION}")
    if len(texts) < _FEWEST_TEXTS:
        raise InvalidArgumentError(f"{file} has {len(texts)} lines that are not empty. {_CALIBRATION}")
    return texts


def _special_tokens(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens in front of a text and behind it."""
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    encoding = backend.encode("a")
    special = encoding.special_tokens_mask
    front = next((index for index, flag in enumerate(special) if not flag), len(special))
    back = next((index for index, flag in enumerate(reversed(special)) if not flag), 0)
    return encoding.ids[:front], encoding.ids[len(special) - back :]


def channel_ranges(
    model: ir.Model, values: Iterable[ir.Value], sequences: Sequence[Sequence[int]]
) -> Mapping[str, npt.NDArray[np.float32]]:
    """The largest magnitude [K] of each channel of float values [B, S, K], by the name of the value."""
    graph, op = model.graph, GraphBuilder(model.graph)
    names, peaks = [], []
    for value in values:
        names.append(str(value.name))
        peak = op.ReduceMax(op.Abs(value), op.vector([0, 1]), keepdims=0)
        peak.dtype = ir.DataType.FLOAT
        peaks.append(peak)
    graph.outputs.extend(peaks)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            save(model, path)
            session = onnxruntime.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
    finally:
        del graph.outputs[len(graph.outputs) - len(peaks) :]
        for peak in peaks:
            reduce = peak.producer()
            absolute = reduce.inputs[0].producer() if reduce is not None and reduce.inputs[0] is not None else None
            graph.remove([node for node in (reduce, absolute) if node is not None])
    largest: list[npt.NDArray[np.float32]] = []
    for sequence in sequences:
        found = session.run([str(peak.name) for peak in peaks], feeds(session, sequence))
        largest = [np.maximum(a, b) for a, b in zip(largest, found, strict=True)] if largest else found
    return dict(zip(names, largest, strict=True))


def feeds(session: onnxruntime.InferenceSession, sequence: Sequence[int]) -> dict[str, npt.NDArray[np.int64]]:
    """The inputs of a graph for one text."""
    ids = np.array([sequence], dtype=np.int64)
    known = {node.name for node in session.get_inputs()}
    every = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: array for name, array in every.items() if name in known}


def options() -> onnxruntime.SessionOptions:
    """Settings of a session for measuring: the graph as it is, and no chatter."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return settings
