"""Token-wise matrix products in 8 bits, with a scale for each token or one static scale for all tokens.

Requires: products ``x W`` of float32 tokens [B, S, K] with a constant W [K, N]. Ensures: each such product that is
large enough to matter is ``MatMulIntegerToFloat`` of uint8 tokens and an int8 W with a scale for each column. Each
token has a scale of its own, or a static one, which is a constant of the graph. So a text's vector depends neither on
the other texts of its batch nor on padding. A static scale saves the pass over the values that finds a scale and the
pass over the product that applies it, and the bias goes into the product.

The channels of x are evened out first, if that is free (``smooth_channels``).

The operator documents scales of one dimension only. Its CPU kernel also scales rows by [tokens, 1]. The probe in every
bundle would notice if that changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx._bundle.manifest import Scalar
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import bias_behind, constant_array, depends_on_inputs, last_dimension
from stonnx_export.int8 import smooth_channels
from stonnx_export.int8.tables import is_quantizable, quantize_rows, quantized_table

_NAME = "quantize_products"
_DOMAIN = "com.microsoft"

# Products with fewer weights are not worth the nodes that quantizing takes.
_SMALLEST = 4096
# GELU is never smaller than this (its minimum is -0.16997, that of the form with tanh -0.17004).
_GELU_MINIMUM = 0.1701


@dataclass(frozen=True)
class Range:
    """How 8 bits hold the values of a token: ``value / scale + zero_point``, with ``scale`` from its own extremes.

    ``symmetric`` takes the largest magnitude; otherwise values are bounded from below by ``-lowest``, a constant.
    If two products are added in 16 bits, only 7 bits cannot saturate: ``safe_*``.
    """

    symmetric: bool
    zero_point: int
    steps: int
    safe_zero_point: int
    safe_steps: int
    lowest: float = 0.0

    @property
    def suffix(self) -> str:
        """A suffix for names of initializers: values that are bounded from below have initializers of their own."""
        return "" if self.symmetric else f"_above_{self.lowest:g}"


SYMMETRIC = Range(symmetric=True, zero_point=128, steps=127, safe_zero_point=64, safe_steps=63)
# A small bound from below gains nearly one bit.
AFTER_GELU = Range(False, zero_point=16, steps=239, safe_zero_point=8, safe_steps=119, lowest=_GELU_MINIMUM)
AFTER_RELU = Range(False, zero_point=0, steps=255, safe_zero_point=0, safe_steps=127)


@dataclass(frozen=True)
class Group:
    """The products that read one value: it is quantized once for all of them."""

    input: ir.Value
    products: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The name of the first product's result: stable from one trace to the next."""
        return str(self.products[0].outputs[0].name)


def groups(model: ir.Model) -> list[Group]:
    """The products that can be quantized, in the order of the graph."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type != "MatMul" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        tokens, weight = node.inputs[0], constant_array(node.inputs[1])
        if weight is None or weight.ndim != 2 or weight.size < _SMALLEST or weight.dtype != np.float32:
            continue
        if tokens.shape is not None and len(tokens.shape) == 3:
            found.setdefault(tokens, []).append(node)
    return [Group(value, tuple(nodes)) for value, nodes in found.items()]


@dataclass
class Quantizer:
    """Quantizes the groups of a graph, except those named in ``keep``.

    ``ranges`` has the largest magnitude of each channel, [K], by the name of the group's input. ``static`` has the
    largest magnitude of all tokens, evened out, of each group that gets a static scale, by the group's name. ``codes``
    has the weights in 8 bits, [K, N], by the name of the product's result; the others are rounded to the nearest step.
    """

    ranges: Mapping[str, npt.NDArray[np.float32]]
    keep: Collection[str] = ()
    static: Mapping[str, float] = field(default_factory=dict)
    codes: Mapping[str, npt.NDArray[np.int8]] = field(default_factory=dict)
    # The pass fills this: an initializer's name -> the value that replaces it if sums of two products could saturate.
    saturation_safe: dict[str, Scalar] = field(default_factory=dict)
    _shared: dict[tuple[object, ...], ir.Value] = field(default_factory=dict, init=False, repr=False)
    # Whether the group at hand reads a constant.
    _is_constant: bool = field(default=False, init=False, repr=False)

    def run(self, model: ir.Model) -> PassResult:
        """Rewrite a model in place. ``fired`` counts products."""
        graph, fired = model.graph, 0
        model.opset_imports.setdefault(_DOMAIN, 1)
        every = groups(model)
        chosen = [group for group in every if group.name not in self.keep]
        declined = [f"{group.name}: kept in float32 for accuracy" for group in every if group.name in self.keep]
        # This precedes the first quantized product: evening out the input of one can change the weights of another.
        scales = [self.smooth(graph, group) for group in chosen]
        for group, smooth in zip(chosen, scales, strict=True):
            self._quantize(GraphBuilder(graph, before=group.products[0]), group, smooth)
            fired += len(group.products)
        RemoveUnusedNodesPass()(model)
        return PassResult(_NAME, fired, tuple(declined))

    def smooth(self, graph: ir.Graph, group: Group) -> smooth_channels.Scales | None:
        """Even out the input of a group; its products are still to be multiplied by the scales [K]."""
        if any(rows_of_table(product) is not None for product in group.products):
            return None  # the embeddings read the same table, unscaled
        return smooth_channels.smooth(graph, group.input, group.products, self.ranges[str(group.input.name)])

    def _quantize(self, op: GraphBuilder, group: Group, smooth: npt.NDArray[np.float32] | None) -> None:
        values, channels = group.input, last_dimension(group.input)
        self._is_constant = not depends_on_inputs(values)
        leading = op.Shape(values, end=2)
        flat = op.Reshape(values, op.vector([-1, channels]))
        static = group.name in self.static
        quantize = self._static_codes if static else self._codes_of_tokens
        codes, scale, zero_point = quantize(op, flat, group)
        for product in group.products:
            weight, weight_scale, width = self._weight(op, product, smooth)
            operands: list[ir.Value | None] = [codes, weight, scale, weight_scale, zero_point]
            replaced = product.outputs[0]
            biased = bias_behind(product) if static else None  # scales of tokens would multiply a bias too
            if biased is not None and not biased[0].outputs[0].is_graph_output():
                add, index = biased
                operands += [None, add.inputs[index]]
                replaced = add.outputs[0]
            result = op.MatMulIntegerToFloat(*operands, _domain=_DOMAIN)
            shape = op.Concat(leading, op.vector([width]), axis=0)
            result = op.Reshape(result, shape)
            result.shape, result.type = replaced.shape, replaced.type
            replaced.replace_all_uses_with(result)

    def _codes_of_tokens(self, op: GraphBuilder, flat: ir.Value, group: Group) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The codes of tokens [tokens, K], each with a scale of its own, [tokens, 1], and their zero point."""
        chosen = range_of(group)
        peak = op.ReduceMax(op.Abs(flat) if chosen.symmetric else flat, op.vector([1]), keepdims=1)
        steps = self._scalar(
            op, f"reciprocal_of_steps{chosen.suffix}", np.float32, 1 / chosen.steps, 1 / chosen.safe_steps
        )
        scale = op.Mul(peak, steps)
        if chosen.lowest:
            least = (chosen.lowest / chosen.zero_point, chosen.lowest / chosen.safe_zero_point)
            scale = op.Max(scale, self._scalar(op, "least_scale", np.float32, *least))
        zero_point = self._zero_point(op, chosen)
        zero_points = self._zero_points(op, zero_point, scale, group.input)
        # A row is one block: its scale [tokens, 1] serves the product too.
        codes = op.QuantizeLinear(flat, scale, zero_points, axis=1, block_size=last_dimension(group.input))
        return codes, scale, zero_point

    def _static_codes(self, op: GraphBuilder, flat: ir.Value, group: Group) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The codes of tokens [tokens, K] with one scale, and their zero point."""
        chosen, peak = range_of(group), self.static[group.name]
        name = f"scale_{len([name for name in self.saturation_safe if '_int8_scale_' in name])}"
        scale = self._scalar(op, name, np.float32, peak / chosen.steps, peak / chosen.safe_steps)
        zero_point = self._zero_point(op, chosen)
        return op.QuantizeLinear(flat, scale, zero_point), scale, zero_point

    def _zero_point(self, op: GraphBuilder, chosen: Range) -> ir.Value:
        return self._scalar(op, f"zero_point{chosen.suffix}", np.uint8, chosen.zero_point, chosen.safe_zero_point)

    def _zero_points(self, op: GraphBuilder, zero_point: ir.Value, scale: ir.Value, tokens: ir.Value) -> ir.Value:
        """The zero point of every token [tokens, 1]; values with the same symbolic shape share it."""
        dimensions = [str(dimension) for dimension in tokens.shape or ()][:2]
        key = (zero_point, *dimensions)
        if "None" in dimensions or key not in self._shared:
            self._shared[key] = op.Expand(zero_point, op.Shape(scale))
        return self._shared[key]

    def _weight(
        self, op: GraphBuilder, product: ir.Node, smooth: npt.NDArray[np.float32] | None
    ) -> tuple[ir.Value, ir.Value, int]:
        """int8 codes [K, N] of a product's weight, the scale [N] of each column, and N."""
        weight = constant_array(product.inputs[1])
        assert weight is not None
        rows = rows_of_table(product)
        if rows is not None:
            # The same rows, transposed, of the codes that the embeddings read: onnxruntime does that once, at load.
            codes, scale = quantized_table(op, rows[0])
            cut = list(rows[1].inputs[1:]) if rows[1] is not None else []
            codes = op.Slice(codes, *cut) if cut else codes
            scale = op.Slice(scale, *cut) if cut else scale
            return op.Transpose(codes, perm=[1, 0]), op.Squeeze(scale, op.vector([1])), weight.shape[1]
        if smooth is not None:
            weight = weight * smooth[:, None]
        nearest, column_scale = quantize_columns(weight)
        chosen = self.codes.get(str(product.outputs[0].name), nearest)
        return op.constant(chosen, "weight"), op.constant(column_scale, "weight_scale"), weight.shape[1]

    def _scalar(self, op: GraphBuilder, name: str, dtype: type, value: float, safe: float) -> ir.Value:
        """An initializer with a name of its own, which a runtime may replace by its safe value.

        onnxruntime computes the codes of a constant, such as DeBERTa's relative positions, when it loads the graph.
        That is before it replaces anything, so they have the safe value in both forms.
        """
        if self._is_constant:
            return op.constant(np.array(safe, dtype=dtype), name)
        scalar = op.named_constant(f"stonnx_int8_{name}", np.array(value, dtype=dtype))
        self.saturation_safe[str(scalar.name)] = Scalar(np.dtype(dtype).name, float(dtype(safe)))
        return scalar


def quantize_columns(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 codes [K, N] of a weight, each rounded to the nearest step, and the scale [N] of each column."""
    codes, scale = quantize_rows(np.ascontiguousarray(weight.T))
    return np.ascontiguousarray(codes.T), scale[:, 0]


def rows_of_table(product: ir.Node) -> tuple[ir.Value, ir.Node | None] | None:
    """The table whose rows, transposed, are a product's weight, and the Slice that takes them, if any."""
    transpose = product.inputs[1].producer() if product.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose":
        return None
    rows = transpose.inputs[0]
    cut = rows.producer() if rows is not None else None
    table = cut.inputs[0] if cut is not None and cut.op_type == "Slice" else rows
    if table is None or not is_quantizable(table):
        return None
    return table, cut


def range_of(group: Group) -> Range:
    """How 8 bits hold the input of a group: the operator that computes it decides whether it is bounded."""
    node = group.input.producer()
    operator = node.op_type if node is not None else ""
    return {"Gelu": AFTER_GELU, "FastGelu": AFTER_GELU, "Relu": AFTER_RELU}.get(operator, SYMMETRIC)
