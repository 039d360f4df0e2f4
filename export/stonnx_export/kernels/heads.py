"""``Attention`` nodes with the operators around them: projections, norms of heads, rotation, groups of heads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from stonnx_export.graph.read import caps_scores, constant_array, is_causal
from stonnx_export.kernels.functions import Declined
from stonnx_export.kernels.products import Product, product_of, unshaped
from stonnx_export.kernels.window import Windows
from stonnx_export.passes.fuse_rms_norm import rms_norm_of


@dataclass(frozen=True)
class Heads:
    """The heads of queries, keys or values: a product, or a third of one, and the operators on it.

    ``limit`` is the number of first tokens that it was cut to. ``cos`` and ``sin`` are the tables of its rotation.
    """

    product: Product
    part: int | None = None
    gamma: ir.Value | None = None
    epsilon: float | None = None
    cos: ir.Value | None = None
    sin: ir.Value | None = None
    limit: ir.Value | None = None


@dataclass(frozen=True)
class Attention:
    """An attention node, from its projections to the mix of values."""

    query: Heads
    key: Heads
    value: Heads
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    causal: bool
    window: int | None
    lengths: ir.Value | None
    position_bias: ir.Value | None
    # The mask of a window, or a causal one: the operator has an attribute for it, and the body reads the mask.
    mask: ir.Value | None

    @property
    def products(self) -> tuple[Product, ...]:
        """The projections: three products, or one that makes queries, keys and values side by side."""
        every = (self.query.product, self.key.product, self.value.product)
        return every[:1] if self.query.part is not None else every

    @property
    def limit(self) -> ir.Value | None:
        """How many first tokens attend, if not all do."""
        return self.query.limit


def attention_of(value: ir.Value, windows: Windows) -> Attention | None:
    """The attention that a value [tokens, heads * head_size] is the result of; None if it is something else.

    Raises:
        Declined: The operators do not have this kind of attention.
    """
    mixed = unshaped(value)
    node = mixed.producer() if mixed is not None else None
    if node is not None and node.op_type == "Transpose" and _swaps_heads(node):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Attention":
        return None
    query, key, values, mask, past_key, past_value, lengths = [*node.inputs, *(None,) * 7][:7]
    if past_key is not None or past_value is not None or caps_scores(node):
        raise Declined("its attention has past keys, or bounds its scores")
    heads, kv_heads = (_number_of_heads(node, name, part) for name, part in (("q", query), ("kv", key)))
    one, two, three = (heads_of(part) for part in (query, key, values))
    position_bias, window, causal = None, None, is_causal(node)
    if mask is not None and mask.dtype == ir.DataType.FLOAT:
        position_bias = mask
    elif mask is not None:
        window = windows.width(mask)
        if window is None and not windows.is_causal(mask):
            raise Declined("its mask is neither padding nor a window around each token")
        causal = causal or window is None
    if two.limit is not None or three.limit is not None:
        raise Declined("its keys are those of the first tokens only")
    if (one.part, two.part, three.part) not in ((None, None, None), (0, 1, 2)):
        raise Declined("its queries, keys and values are in an order of their own")
    if one.part is not None and {two.product.weight, three.product.weight} != {one.product.weight}:
        raise Declined("its queries, keys and values come from two merged products")
    if (one.cos, one.sin) != (two.cos, two.sin) or three.cos is not None or three.gamma is not None:
        raise Declined("it rotates or normalizes its values, or its queries and keys differently")
    width = one.product.shape[1] // (1 if one.part is None else 3)
    if width % heads:
        raise Declined(f"{heads} heads do not divide its width of {width}")
    head_size = width // heads
    # If keys are repeated for each group of queries, the product shows how many there were.
    if one.part is None:
        kv_heads = two.product.shape[1] // head_size
    attribute = node.attributes.get("scale")
    scale = attribute.as_float() if attribute is not None else 1 / math.sqrt(head_size)
    read_by_body = mask if position_bias is None else None
    return Attention(
        one, two, three, heads, kv_heads, head_size, scale, causal, window, lengths, position_bias, read_by_body
    )


def heads_of(value: ir.Value | None) -> Heads:
    """The product that heads are made from, and the operators on it.

    Raises:
        Declined: They are made from something else.
    """
    if value is None:
        raise Declined("its attention lacks an input")
    flat = _cut(value)
    product = product_of(flat[0])
    if product is not None:
        return Heads(product, limit=flat[1])
    for unwrap in (_repeated, _rotated, _normalized, _transposed, _third):
        found = unwrap(value)
        if found is not None:
            return found
    raise Declined("its queries, keys or values are more than a product with a rotation and a norm")


def _cut(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """All tokens of a value, and the number of first tokens if the value was cut to these."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 4 or value.shape is None or len(value.shape) != 3:
        return value, None
    start, axis = constant_array(node.inputs[1]), constant_array(node.inputs[3])
    if start is None or axis is None or start.tolist() != [0] or axis.tolist() not in ([1], [-2]):
        return value, None
    if len(node.inputs) > 4 or node.inputs[0] is None:
        return value, None
    return node.inputs[0], node.inputs[2]


def _repeated(value: ir.Value) -> Heads | None:
    """Reshape(Expand(Unsqueeze(x, 2))): each head of x [B, kv_heads, S, D] for a group of queries."""
    chain = [value]
    for operator in ("Reshape", "Expand", "Unsqueeze"):
        node = chain[-1].producer()
        if node is None or node.op_type != operator or node.inputs[0] is None:
            return None
        chain.append(node.inputs[0])
    axes = constant_array(chain[2].producer().inputs[1])  # type: ignore[union-attr]
    if axes is None or axes.tolist() != [2] or _rank(chain[-1]) != 4 or _rank(value) != 4:
        return None
    return heads_of(chain[-1])


def _rotated(value: ir.Value) -> Heads | None:
    """``x cos + rotate_half(x) sin``."""
    node = value.producer()
    if node is None or node.op_type != "Add":
        return None
    for straight, turned in (node.inputs, reversed(node.inputs)):
        first, second = (_factors(part) for part in (straight, turned))
        for tokens, cos in first:
            for half, sin in second:
                if _is_rotated_half(half, tokens):
                    return replace(heads_of(tokens), cos=_table(cos), sin=_table(sin))
    return None


def _factors(value: ir.Value | None) -> list[tuple[ir.Value, ir.Value]]:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul" or node.inputs[0] is None or node.inputs[1] is None:
        return []
    return [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]


def _is_rotated_half(value: ir.Value, tokens: ir.Value) -> bool:
    """Concat(-second half of the channels, first half)."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2 or _rank(tokens) != 4:
        return False
    if concat.attributes["axis"].as_int() not in (-1, 3):
        return False
    negated, first = concat.inputs
    negation = negated.producer() if negated is not None else None
    if negation is None or negation.op_type != "Neg":
        return False
    assert tokens.shape is not None
    size = tokens.shape[3]
    if not isinstance(size, int):
        return False
    return _span_of(negation.inputs[0], tokens, size) == (size // 2, size) and _span_of(first, tokens, size) == (
        0,
        size // 2,
    )


def _span_of(value: ir.Value | None, tokens: ir.Value, size: int) -> tuple[int, int] | None:
    """The channels that a Slice takes from tokens."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[0] is not tokens or len(node.inputs) < 4:
        return None
    numbers = [constant_array(operand) for operand in node.inputs[1:]]
    if any(number is None or number.size != 1 for number in numbers):
        return None
    start, end, axis, *step = (int(number.reshape(())) for number in numbers if number is not None)
    return (start, min(end, size)) if axis in (3, -1) and step in ([], [1]) else None


def _table(value: ir.Value) -> ir.Value:
    """cos or sin [1, S, R], which an Unsqueeze spreads over heads."""
    node = value.producer()
    axes = constant_array(node.inputs[1]) if node is not None and node.op_type == "Unsqueeze" else None
    table = node.inputs[0] if node is not None else None
    if axes is None or axes.tolist() != [1] or table is None or _rank(table) != 3 or table.shape[0] != 1:  # type: ignore[index]
        raise Declined("the table of its rotation differs between texts")
    return table


def _normalized(value: ir.Value) -> Heads | None:
    """The RMS norm of each head, as one operator or in pieces."""
    pieces = rms_norm_of(value)
    if pieces is not None:
        return replace(heads_of(pieces.input), gamma=pieces.gamma, epsilon=pieces.epsilon)
    node = value.producer()
    if node is None or node.op_type != "RMSNormalization" or node.inputs[0] is None:
        return None
    axis, epsilon = (node.attributes.get(name) for name in ("axis", "epsilon"))
    if axis is not None and axis.as_int() not in (-1, 3):
        return None
    return replace(
        heads_of(node.inputs[0]), gamma=node.inputs[1], epsilon=epsilon.as_float() if epsilon is not None else 1e-5
    )


def _transposed(value: ir.Value) -> Heads | None:
    """[B, S, heads, D] to [B, heads, S, D]."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or not _swaps_heads(node) or node.inputs[0] is None:
        return None
    return heads_of(node.inputs[0])


def _third(value: ir.Value) -> Heads | None:
    """Squeeze(Slice(x)) of x [B, S, 3, heads, D]: queries, keys or values of one product."""
    squeeze = value.producer()
    cut = squeeze.inputs[0].producer() if squeeze is not None and squeeze.inputs[0] is not None else None
    if squeeze is None or squeeze.op_type != "Squeeze" or cut is None or cut.op_type != "Slice":
        return None
    merged = cut.inputs[0]
    numbers = [constant_array(operand) for operand in cut.inputs[1:4]]
    if merged is None or _rank(merged) != 5 or merged.shape[2] != 3 or any(n is None for n in numbers):  # type: ignore[index]
        return None
    start, end, axis = (int(number.reshape(())) for number in numbers if number is not None)
    product = product_of(merged)
    if product is None or axis not in (2, -3) or end != start + 1:
        return None
    return Heads(product, part=start)


def _number_of_heads(node: ir.Node, name: str, part: ir.Value | None) -> int:
    attribute = node.attributes.get(f"{name}_num_heads")
    if attribute is not None:
        return attribute.as_int()
    heads = part.shape[1] if part is not None and part.shape is not None and len(part.shape) == 4 else None
    if not isinstance(heads, int):
        raise Declined("the number of its heads is not known")
    return heads


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _swaps_heads(transpose: ir.Node) -> bool:
    return tuple(transpose.attributes["perm"].as_ints()) == (0, 2, 1, 3)
