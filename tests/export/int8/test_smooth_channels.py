"""Smoothing: exact, where it costs nothing, and what keeps one large channel from drowning the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import (
    HEADS,
    HIDDEN,
    TOKENS,
    encoder,
    graph_of,
    layer_norm,
    linear,
    nodes_of,
    random,
    run_as_it_is,
    shaped,
)

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import constant_array
from stonnx_export.int8 import products
from stonnx_export.int8.products import Quantizer, groups
from stonnx_export.int8.smooth_channels import exponent_of, smooth

Part = Callable[[GraphBuilder, ir.Value, np.random.Generator], ir.Value]

# Channels that differ by a factor of 10,000.
PEAK = np.float32(10) ** np.random.default_rng(6).uniform(-2, 2, HIDDEN).astype(np.float32)


def rms_norm(op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
    """As it is traced: x over its root mean square, times a weight for each channel."""
    mean = op.ReduceMean(op.Mul(x, x), op.vector([2]), keepdims=1)
    normal = op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, op.constant(np.float32([1e-6]))))))
    return op.Mul(op.constant(1 + random(rng, HIDDEN, scale=0.3), "gamma"), normal)


def gated(op: GraphBuilder, x: ir.Value, rng: np.random.Generator, *, bias: bool = False) -> ir.Value:
    """SwiGLU: silu(x W) * (x V)."""
    gate, up = linear(op, x, HIDDEN, rng, bias=False), linear(op, x, HIDDEN, rng, bias=bias)
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)


def gated_with_bias(op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
    return gated(op, x, rng, bias=True)


def gated_in_one(op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
    """GeGLU as ModernBERT has it: both halves are columns of one product."""
    both = op.Split(linear(op, x, 2 * HIDDEN, rng), num_outputs=2, axis=-1)
    node = both.producer()
    assert node is not None
    node.resize_outputs(2)
    for output, name in zip(node.outputs, ("first", "second"), strict=True):
        output.name = name
        shaped(output, *TOKENS, HIDDEN)
    return op.Mul(op.Gelu(node.outputs[0]), node.outputs[1])


def attention(kv_heads: int) -> Part:
    def part(op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
        query = linear(op, x, HIDDEN, rng)
        key, value = (linear(op, x, HIDDEN // HEADS * kv_heads, rng, bias=False) for _ in range(2))
        return op.Attention(query, key, value, q_num_heads=HEADS, kv_num_heads=kv_heads)

    return part


FREE: dict[str, Part] = {
    "LayerNormalization": lambda op, x, rng: layer_norm(op, x, rng),
    "RMSNorm": rms_norm,
    "SwiGLU": gated,
    "SwiGLU with a bias": gated_with_bias,
    "GeGLU of one product": gated_in_one,
    "attention": attention(HEADS),
    "attention with shared values": attention(2),
}
NOT_FREE: dict[str, Part] = {
    "GELU": lambda op, x, rng: op.Gelu(linear(op, x, HIDDEN, rng)),
    "a sum": lambda op, x, rng: op.Add(x, linear(op, x, HIDDEN, rng)),
    "an input": lambda op, x, rng: x,
    "a product of two activations": lambda op, x, rng: op.Mul(op.Tanh(x), op.Sigmoid(x)),
}


def model_of(part: Part, *, read_by_others: bool = False) -> tuple[ir.Model, ir.Value, ir.Node]:
    """part(x) W, the value part(x), and the product."""
    model, op, (tokens,) = graph_of(("tokens", ir.DataType.FLOAT, (*TOKENS, HIDDEN)))
    rng = np.random.default_rng(1)
    value = shaped(part(op, tokens, rng), *TOKENS, HIDDEN)
    result = linear(op, value, HIDDEN, rng, bias=False)
    outputs = [result, *([op.Tanh(value)] if read_by_others else [])]
    for number, output in enumerate(outputs):
        named = op.Identity(output)
        op.name_output(named, f"output_{number}", [*TOKENS, HIDDEN])
        model.graph.outputs.append(named)
    product = result.producer()
    assert product is not None
    return model, value, product


def multiply_rows(model: ir.Model, product: ir.Node, scales: np.ndarray) -> None:
    """What the quantizer does with the product."""
    weight = constant_array(product.inputs[1])
    assert weight is not None
    product.replace_input_with(1, GraphBuilder(model.graph).constant(weight * scales[:, None], "multiplied"))


READERS: dict[str, tuple[Part, float]] = {
    "queries, keys and values": (attention(HEADS), 0.95),
    "shared keys and values": (attention(2), 0.95),
    "GELU": (lambda op, x, rng: op.Gelu(linear(op, x, HIDDEN, rng)), 0.65),
    "SwiGLU": (gated, 0.65),
    "a residual connection": (
        lambda op, x, rng: layer_norm(op, shaped(op.Add(x, linear(op, x, HIDDEN, rng)), *TOKENS, HIDDEN), rng),
        0.65,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_a_product_sets_the_exponent(name: str) -> None:
    part, exponent = READERS[name]
    _, value, _ = model_of(part)
    first = next(node for node in value.graph if node.op_type == "MatMul")
    every = [use.node for use in first.inputs[0].uses() if use.node.op_type == "MatMul"]
    assert exponent_of(every) == exponent


@pytest.mark.parametrize("read_by_others", [False, True])
@pytest.mark.parametrize("part", FREE)
def test_is_exact(part: str, read_by_others: bool) -> None:
    tokens = random(np.random.default_rng(2), 2, 7, HIDDEN)
    model, value, product = model_of(FREE[part], read_by_others=read_by_others)
    before = run_as_it_is(model, tokens=tokens)
    scales = smooth(model.graph, value, [product], PEAK)
    # A gate and attention cannot be undone for others.
    assert (scales is not None) == (part in ("LayerNormalization", "RMSNorm") or not read_by_others)
    if scales is None:
        after = run_as_it_is(model, tokens=tokens)
    else:
        assert np.exp(np.log(scales.astype(np.float64)).mean()) == pytest.approx(1, rel=1e-4)
        assert scales.max() / scales.min() > 10
        # Without the other half the result is another one: something was divided.
        assert np.abs(run_as_it_is(model, tokens=tokens)[0] - before[0]).max() > 0.1
        multiply_rows(model, product, scales)
        model.graph.sort()
        after = run_as_it_is(model, tokens=tokens)
    for expected, result in zip(before, after, strict=True):
        assert np.abs(result - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("part", NOT_FREE)
def test_leaves_alone_what_would_cost_an_operation(part: str) -> None:
    model, value, product = model_of(NOT_FREE[part])
    before = [node.op_type for node in model.graph]
    assert smooth(model.graph, value, [product], PEAK) is None
    assert [node.op_type for node in model.graph] == before


def test_adds_nothing_to_the_graph() -> None:
    for part in FREE.values():
        model, value, product = model_of(part)
        before = sorted(node.op_type for node in model.graph)
        smooth(model.graph, value, [product], PEAK)
        assert sorted(node.op_type for node in model.graph) == before


@pytest.mark.parametrize("part", ["RMSNorm", "SwiGLU", "attention", "attention with shared values"])
def test_one_large_channel_no_longer_drowns_the_others(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel a hundred times as large as the others, whose weights are a hundredth: the same network in float32."""
    monkeypatch.setattr(products, "_SMALLEST", 1)
    tokens = random(np.random.default_rng(2), 4, 16, HIDDEN)
    model, value, product = model_of(FREE[part])
    outlier = np.ones(HIDDEN, np.float32)
    outlier[5 :: HIDDEN // HEADS] = 100  # in every head: some share their values
    scales = smooth(model.graph, value, [product], (1 / outlier) ** (1 / 0.65))
    assert scales is not None
    multiply_rows(model, product, scales)
    (expected,) = run_as_it_is(model, tokens=tokens)
    errors = []
    for peak in (np.ones(HIDDEN, np.float32), outlier):
        quantized = model.clone()
        # Only the product behind the value is quantized.
        ranges = {str(group.input.name): peak for group in groups(quantized)}
        others = [group.name for group in groups(quantized) if group.input.name != value.name]
        Quantizer(ranges, others).run(quantized)
        quantized.graph.sort()
        (result,) = run_as_it_is(quantized, tokens=tokens)
        errors.append(np.square(result - expected).sum() / np.square(expected).sum())
    assert errors[1] < 0.3 * errors[0]


def test_every_layer_of_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind both norms and behind attention, which is all but the input of the product behind GELU."""
    monkeypatch.setattr(products, "_SMALLEST", 1)
    model = encoder(layers=2)
    smoothed = [
        smooth(model.graph, group.input, group.products, PEAK) is not None
        for group in groups(model)
        if group.input.shape is not None and group.input.shape[-1] == HIDDEN
    ]
    assert smoothed == [True] * 6
    assert len(nodes_of(model, "Mul")) == 4  # one for each residual connection
