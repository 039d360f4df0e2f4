"""Graphs of one product, quantized, and calibration of what flows into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from small_graphs import HIDDEN, TOKENS, graph_of, run_as_it_is, shaped

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.int8.products import Quantizer, groups

Part = Callable[[GraphBuilder, ir.Value], ir.Value]
WIDTH = 48


def product(activation: Part, weight: np.ndarray) -> ir.Model:
    """activation(x) W of tokens x [B, S, H]."""
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    inner = shaped(activation(op, tokens), *TOKENS, HIDDEN)
    result = shaped(op.MatMul(inner, op.constant(weight, "weight")), *TOKENS, weight.shape[1])
    model.graph.outputs.append(shaped(op.Identity(result), *TOKENS, weight.shape[1]))
    return model


def identity(op: GraphBuilder, tokens: ir.Value) -> ir.Value:
    return tokens


def quantized(before: ir.Model, *keep: str) -> tuple[ir.Model, Quantizer]:
    """The graph with every product in 8 bits but those kept, and the quantizer; the channels of an input are alike."""
    model = before.clone()
    ranges = {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
    quantizer = Quantizer(ranges, keep)
    quantizer.run(model)
    model.graph.sort()
    return model, quantizer


def shaped_values(part: Part, tokens: np.ndarray) -> np.ndarray:
    """What a graph computes in front of its product."""
    model, op, (values,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    model.graph.outputs.append(shaped(op.Identity(part(op, values)), *TOKENS, HIDDEN))
    return run_as_it_is(model, tokens=tokens)[0]


def weights_rng() -> np.random.Generator:
    return np.random.default_rng(9)


def three_texts() -> dict[str, np.ndarray]:
    mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int64)
    return {"input_ids": mask * np.random.default_rng(0).integers(1, 50, mask.shape), "attention_mask": mask}


def equal_ranges(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(group.input.name): np.ones(int(group.input.shape[-1]), np.float32) for group in groups(model)}
