"""Token-wise products in a graph: in float32, or in 8 bits with a scale for each token or one for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from stonnx_export.graph.read import constant_array

# How weights are stored. The names of operators contain it.
WeightKind = Literal["Float", "BFloat16", "Int8"]

_WEIGHTS: Mapping[ir.DataType, WeightKind] = {
    ir.DataType.FLOAT: "Float",
    ir.DataType.BFLOAT16: "BFloat16",
    ir.DataType.INT8: "Int8",
}


@dataclass(frozen=True)
class Product:
    """``y = x W + b`` for tokens x.

    The last five belong to 8 bits: the scale [N] of each column; a static ``scale``, or how the scale of a token
    follows from its peak (``steps``, and ``least`` if it is bounded from below); and the zero point.
    """

    input: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    weight_scale: ir.Value | None = None
    scale: ir.Value | None = None
    steps: ir.Value | None = None
    least: ir.Value | None = None
    zero_point: ir.Value | None = None

    @property
    def kind(self) -> WeightKind:
        """How its weights are stored."""
        return kind_of(self.weight)

    @property
    def settings(self) -> tuple[ir.Value, ...]:
        """The values that say how its input becomes 8 bits. Only the stock operators need them."""
        return tuple(value for value in (self.scale, self.steps, self.least, self.zero_point) if value is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        assert self.weight.const_value is not None
        rows, columns = self.weight.const_value.shape.numpy()
        return rows, columns


def product_of(value: ir.Value | None) -> Product | None:
    """The product whose result a value is, reshaped or not; else None."""
    value = unshaped(value)
    product, bias = _without_bias(value)
    product = unshaped(product)
    node = product.producer() if product is not None else None
    if node is None:
        return None
    if node.op_type == "MatMul":
        tokens, weight = node.inputs[0], stored(node.inputs[1])
        return Product(tokens, weight, bias) if tokens is not None and weight is not None else None
    if node.op_type == "MatMulIntegerToFloat":
        return _integer_product(node, bias)
    return None


def _without_bias(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """x and b, if a value is ``x + b`` with a constant vector b; else the value itself and None."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add":
        for tokens, bias in (node.inputs, reversed(node.inputs)):
            array = constant_array(bias)
            if array is not None and array.ndim == 1:
                return tokens, bias
    return value, None


def unshaped(value: ir.Value | None) -> ir.Value | None:
    """The value that a chain of ``Reshape`` starts from."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Reshape":
        value = node.inputs[0]
    return value


def _integer_product(node: ir.Node, bias: ir.Value | None) -> Product | None:
    codes, weight, scale, weight_scale, zero_point, _, inner_bias = [*node.inputs, None, None, None][:7]
    quantize = codes.producer() if codes is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear" or stored(weight) is not weight:
        return None
    if (bias is not None and inner_bias is not None) or quantize.inputs[1] is not scale or scale is None:
        return None
    assert weight is not None
    tokens = quantize.inputs[0]
    assert tokens is not None
    common = {"bias": bias or inner_bias, "weight_scale": weight_scale, "zero_point": zero_point}
    if constant_array(scale) is not None:
        return Product(tokens, weight, scale=scale, **common)
    found = _scale_of_tokens(scale, tokens)
    return None if found is None else Product(tokens, weight, steps=found[0], least=found[1], **common)


def _scale_of_tokens(scale: ir.Value, tokens: ir.Value) -> tuple[ir.Value, ir.Value | None] | None:
    """The factor that turns the peak of each token into its scale, and the least scale, if any."""
    node, least = scale.producer(), None
    if node is not None and node.op_type == "Max" and len(node.inputs) == 2:
        least = node.inputs[1]
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Mul":
        return None
    peak, steps = node.inputs
    reduce = peak.producer() if peak is not None else None
    if reduce is None or reduce.op_type != "ReduceMax" or reduce.inputs[0] is None or steps is None:
        return None
    magnitude = reduce.inputs[0].producer()
    read = magnitude.inputs[0] if magnitude is not None and magnitude.op_type == "Abs" else reduce.inputs[0]
    return (steps, least) if read is tokens else None


def kind_of(weight: ir.Value) -> WeightKind:
    """How a weight is stored, of those that :func:`stored` finds."""
    assert weight.const_value is not None
    return _WEIGHTS[weight.const_value.dtype]


def stored(weight: ir.Value | None) -> ir.Value | None:
    """The constant matrix that a weight is, or from whose bfloat16 the graph makes it in float32; else None."""
    node = weight.producer() if weight is not None else None
    if node is not None and node.op_type == "Cast":
        weight = node.inputs[0]
    tensor = weight.const_value if weight is not None and not weight.is_graph_input() else None
    if tensor is None or weight is None or len(tensor.shape) != 2 or tensor.dtype not in _WEIGHTS:
        return None
    return weight


def vector_factor(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """x and s, if a value is ``x * s`` with a constant vector s; else None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul":
        return None
    first, second = node.inputs
    for tokens, factor in ((first, second), (second, first)):
        array = constant_array(factor)
        if tokens is not None and factor is not None and array is not None and array.ndim == 1 and np.size(array) > 1:
            return tokens, factor
    return None
