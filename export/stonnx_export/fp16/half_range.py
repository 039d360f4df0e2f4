"""The largest values of a network over texts. They show which of its operators overflow in half precision.

Running in half precision on the CPU would not show it: onnxruntime's CPU provider computes such operators in float32
and removes the casts between them. So a value beyond 65,504 survives there and is infinite on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._device.wheels import import_onnxruntime
from stonnx_export.calibration.measure import Sample, options, random_sequences, text_sequences
from stonnx_export.fp16 import float16
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import IMAGE_INPUT
from stonnx_export.graph.save import save
from stonnx_export.originals.original import OriginalTokenizer
from stonnx_export.texts import sentences, verification_texts

_BATCH = 8
# Longer texts do not have larger values, but take long.
_LONGEST = 512
_Batch = Mapping[str, npt.NDArray[Any]]


def sequences(tokenizer: OriginalTokenizer, limit: int | None) -> list[list[int]]:
    """Token ids to measure with: the texts that bundles are verified with, and random tokens."""
    limit = min(limit or _LONGEST, _LONGEST)
    texts = [*verification_texts(limit, 2), *sentences()]
    return [*text_sequences(tokenizer, texts, limit), *random_sequences(tokenizer, limit)]


def largest_values(model: ir.Model, samples: Sequence[Sample]) -> Mapping[str, float]:
    """The largest magnitude of each value that ``fp16.float16`` would compute or read in half precision, by its name.

    Args:
        model: The float32 network, which is left as it is.
        samples: Token ids of texts, or images. Texts are measured with padding, because masks are at their lowest
            there.
    """
    model = model.clone()
    graph, op = model.graph, GraphBuilder(model.graph)
    values = float16.values(model)
    for value in values:
        peak = op.ReduceMax(op.Abs(value), keepdims=0)
        peak.dtype, peak.shape = ir.DataType.FLOAT, ir.Shape(())
        graph.outputs.append(peak)
    if not values:
        return {}
    graph.sort()
    names = [str(output.name) for output in graph.outputs[len(graph.outputs) - len(values) :]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save(model, path)
        session = import_onnxruntime().InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
    known = {node.name for node in session.get_inputs()}
    largest = np.zeros(len(values))
    for batch in _batches(samples):
        found = session.run(names, {name: array for name, array in batch.items() if name in known})
        largest = np.maximum(largest, np.array(found, dtype=np.float64))  # a NaN stays one
    return {str(value.name): float(peak) for value, peak in zip(values, largest, strict=True)}


def _batches(samples: Sequence[Sample]) -> Iterator[_Batch]:
    """Batches of images, or of texts of similar length, each with a text of one token."""
    if isinstance(samples[0], np.ndarray):
        for start in range(0, len(samples), _BATCH):
            yield {IMAGE_INPUT: np.stack(cast("Sequence[npt.NDArray[np.float32]]", samples[start : start + _BATCH]))}
        return
    ordered = sorted(cast(Sequence[Sequence[int]], samples), key=len)
    for start in range(0, len(ordered), _BATCH):
        rows = [ordered[start][:1], *ordered[start : start + _BATCH]]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(rows):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
