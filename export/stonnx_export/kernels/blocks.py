"""Blocks of a transformer in its graph: attention or feed-forward network, with residual connection and norms.

A block ends with the addition of its residual, or with the norm after it. The search walks back from there, over the
operators and inputs of the block. A block with anything that ``kernels/OPERATORS.md`` does not describe is declined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from stonnx_export.graph.read import NORMALIZATIONS, constant_array, last_dimension, only_use
from stonnx_export.kernels.functions import Declined, Part
from stonnx_export.kernels.heads import Attention, attention_of
from stonnx_export.kernels.products import Product, WeightKind, product_of, unshaped, vector_factor
from stonnx_export.kernels.window import Windows
from stonnx_export.passes.fuse_rms_norm import rms_norm_of

_PRECISIONS: Mapping[WeightKind, str] = {"Float": "float32", "BFloat16": "bfloat16", "Int8": "8 bits"}
_Inputs = dict[str, ir.Value | None]
_Attributes = dict[str, int | float | str]


@dataclass(frozen=True)
class Lengths:
    """The tokens of each text [B]: its own, and how many of its rows are results. None: the graph has no such texts.

    The two are one value unless tokens fill up queries and no other token attends to them.
    """

    own: ir.Value | None
    rows: ir.Value | None


@dataclass(frozen=True)
class Norm:
    """A normalization: its weights and settings."""

    gamma: ir.Value
    beta: ir.Value | None
    rms: bool
    epsilon: float
    input: ir.Value


@dataclass(frozen=True)
class Ending:
    """``residual + product``, and the norm that reads it, if any."""

    product: Product
    residual: ir.Value
    out: Norm | None
    sum: ir.Value


def norm_of(value: ir.Value | None) -> Norm | None:
    """The normalization that a value is the result of, over its channels, as one operator or in pieces; else None."""
    pieces = rms_norm_of(value)
    if pieces is not None:
        return Norm(pieces.gamma, None, True, pieces.epsilon, pieces.input)
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in NORMALIZATIONS or len(node.outputs) != 1:
        return None
    axis, epsilon = (node.attributes.get(name) for name in ("axis", "epsilon"))
    tokens, gamma = node.inputs[:2]
    if tokens is None or gamma is None or gamma.const_value is None or (axis is not None and axis.as_int() != -1):
        return None
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    rms = node.op_type == "RMSNormalization"
    return Norm(gamma, beta, rms, epsilon.as_float() if epsilon is not None else 1e-5, tokens)


def endings(model: ir.Model) -> Iterator[Ending]:
    """The additions of a residual to a product, in the order of the graph."""
    for node in list(model.graph):
        if node.op_type != "Add":
            continue
        for branch, residual in (node.inputs, reversed(node.inputs)):
            out = norm_of(branch)
            product = product_of(branch if out is None else out.input)
            if product is None or residual is None or constant_array(residual) is not None:
                continue
            yield Ending(product, residual, out, node.outputs[0])
            break


def block(ending: Ending, lengths: Lengths, windows: Windows, kinds: Collection[WeightKind]) -> Part:
    """The block with this ending.

    Raises:
        Declined: The block does something that the operators cannot.
    """
    attention = attention_of(ending.product.input, windows)
    if attention is not None:
        inputs, attributes, last = _attention(attention, lengths)
        products, limit, mask = attention.products, attention.limit, attention.mask
        operator = "Attention"
    else:
        activated = _activated(ending.product.input)
        if activated is None:
            raise Declined("its product reads neither attention nor an activation")
        inputs, attributes = activated.settings(lengths.rows)
        products, limit, mask = activated.products, None, None
        last = {}
        operator = "FeedForward"
    products = (*products, ending.product)
    found = {product.kind for product in products}
    if len(found) > 1:
        raise Declined(f"its products are of different precision: {', '.join(sorted(found))}")
    if not found <= {*kinds}:
        raise Declined(f"its products are in {_PRECISIONS[products[0].kind]}")
    inputs |= _product(ending.product, "o" if attention is not None else "down")
    return replace(_around(operator, ending, products, inputs, attributes, limit, mask), last=last)


def _around(
    operator: str,
    ending: Ending,
    products: tuple[Product, ...],
    inputs: _Inputs,
    attributes: _Attributes,
    limit: ir.Value | None,
    mask: ir.Value | None,
) -> Part:
    """The block, given the part between its norms."""
    source = products[0].input
    if any(product.input is not source for product in products[:-1]):
        raise Declined("its products read different values")
    residual = _before_limit(ending.residual, limit)
    scaled = vector_factor(residual)
    unscaled = _before_limit(scaled[0], limit) if scaled is not None else None
    rows = unshaped(source)
    if rows is not None and (rows is residual or rows is unscaled):
        # The block before it is in 8 bits and gives rows, and this one is not.
        source = rows
    pre = norm_of(source)
    post: Norm | None = None
    y = ending.sum
    residual_scale: ir.Value | None = None
    if residual is source or unscaled is source:
        pre, x = None, source
        residual_scale = scaled[1] if scaled is not None and residual is not source else None
        following = only_use(ending.sum)
        post = norm_of(following.outputs[0]) if following is not None else None
        if post is not None:
            assert following is not None
            y = following.outputs[0]
    elif pre is not None and residual is pre.input:
        x = pre.input
    else:
        raise Declined("its residual is neither what its products read nor what was normalized for them")
    every = [norm for norm in (pre, ending.out, post) if norm is not None]
    attributes |= _common_settings(every, attributes)
    ordered: _Inputs = {"x": x, **inputs}
    ordered |= _norm(pre, "pre") | _norm(ending.out, "out") | _norm(post, "post")
    ordered["residual_scale"] = residual_scale
    names = ATTENTION_INPUTS if operator == "Attention" else FEED_FORWARD_INPUTS
    full: _Inputs = {name: ordered.get(name) for name in names}
    settings = tuple(dict.fromkeys(value for product in products for value in product.settings))
    extras = settings if mask is None else (*settings, mask)
    return Part(f"{operator}{products[0].kind}", full, extras, attributes, y, same_rows=limit is None)


def _before_limit(value: ir.Value, limit: ir.Value | None) -> ir.Value:
    """The value of all tokens, if only its first ones are read."""
    if limit is None:
        return value
    tokens = unshaped(value)
    node = tokens.producer() if tokens is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[2] is not limit or node.inputs[0] is None:
        return value
    return unshaped(node.inputs[0]) or value


_AROUND = ("out_gamma", "out_beta", "residual_scale", "post_gamma", "post_beta")
ATTENTION_INPUTS = (
    *("x", "lengths", "token_limit", "pre_gamma", "pre_beta"),
    *("w_q", "s_q", "b_q", "w_k", "s_k", "b_k", "w_v", "s_v", "b_v"),
    *("q_gamma", "k_gamma", "cos", "sin", "position_bias", "w_o", "s_o", "b_o", *_AROUND),
)
FEED_FORWARD_INPUTS = (
    *("x", "lengths", "pre_gamma", "pre_beta", "w_up", "s_up", "b_up", "w_gate", "s_gate", "b_gate"),
    *("w_down", "s_down", "b_down", *_AROUND),
)


def _attention(attention: Attention, lengths: Lengths) -> tuple[_Inputs, _Attributes, dict[str, ir.Value]]:
    """The inputs and attributes of what stands between the norms, and the inputs that come last."""
    if attention.lengths is not None and attention.lengths is not lengths.own:
        raise Declined("its attention has lengths of its own")
    query, key = attention.query, attention.key
    inputs: _Inputs = {
        "lengths": lengths.rows,
        "token_limit": attention.limit,
        "q_gamma": query.gamma,
        "k_gamma": key.gamma,
        "cos": query.cos,
        "sin": query.sin,
        "position_bias": attention.position_bias,
    }
    for name, product in zip("qkv", attention.products, strict=False):
        inputs |= _product(product, name)
    attributes: _Attributes = {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_size": attention.head_size,
        "scale": attention.scale,
    }
    if attention.causal:
        attributes["causal"] = 1
    if attention.window is not None:
        attributes["window"] = attention.window
    if query.cos is not None:
        attributes["rotary"] = 1
    if query.epsilon != key.epsilon:
        raise Declined("its queries and keys are normalized differently")
    if query.epsilon is not None:
        attributes["epsilon"] = query.epsilon
    # Causal attention without lengths and mask reads all rows before a token's own.
    bounded = attention.lengths is not None or attention.mask is not None
    last = {"attended": lengths.own} if bounded and lengths.own is not None and lengths.own is not lengths.rows else {}
    return inputs, attributes, last


@dataclass(frozen=True)
class Activated:
    """``activation(x W_up) * (x W_gate)``, the second factor if there is one.

    ``fused`` says that one product has both side by side: 1, the columns that are activated come first; 2, last.
    """

    activation: str
    up: Product
    gate: Product | None
    fused: int

    @property
    def products(self) -> tuple[Product, ...]:
        """One, or two."""
        return (self.up,) if self.gate is None else (self.up, self.gate)

    def settings(self, lengths: ir.Value | None) -> tuple[_Inputs, _Attributes]:
        """The inputs and attributes of what stands between the norms."""
        inputs: _Inputs = {"lengths": lengths, **_product(self.up, "up")}
        if self.gate is not None:
            inputs |= _product(self.gate, "gate")
        attributes: _Attributes = {"activation": self.activation}
        if self.fused:
            attributes["fused_gate"] = self.fused
        return inputs, attributes


def _activated(value: ir.Value) -> Activated | None:
    """The activated values that a feed-forward network's last product reads; else None."""
    tokens = unshaped(value)
    plain = _activation(tokens)
    if plain is not None:
        activation, inner, bias = plain
        up = product_of(inner)
        return Activated(activation, _biased(up, bias), None, 0) if up is not None else None
    node = tokens.producer() if tokens is not None else None
    if node is None or node.op_type != "Mul":
        return None
    for active, other in (node.inputs, reversed(node.inputs)):
        found = _activation(unshaped(active))
        if found is None or other is None:
            continue
        activation, inner, bias = found
        halves = _halves(inner, other)
        if halves is not None:
            product, fused = halves
            return Activated(activation, product, None, fused) if bias is None else None
        up, gate = product_of(inner), product_of(other)
        if up is not None and gate is not None:
            return Activated(activation, _biased(up, bias), gate, 0)
    return None


def _activation(value: ir.Value | None) -> tuple[str, ir.Value, ir.Value | None] | None:
    """An activation, what it is of, and the bias that it adds first, if any."""
    node = value.producer() if value is not None else None
    inner = node.inputs[0] if node is not None and node.inputs else None
    if node is None or inner is None:
        return None
    if node.op_type == "Gelu":
        form = node.attributes.get("approximate")
        tanh = form is not None and form.as_string() == "tanh"
        return "gelu_tanh" if tanh else "gelu", inner, None
    if node.op_type == "FastGelu":
        return "gelu_tanh", inner, node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Relu":
        return "relu", inner, None
    if node.op_type == "Mul":
        for tokens, factor in (node.inputs, reversed(node.inputs)):
            sigmoid = factor.producer() if factor is not None else None
            if sigmoid is None or tokens is None or sigmoid.op_type != "Sigmoid":
                continue
            if sigmoid.inputs[0] is tokens:
                return "silu", tokens, None
    return None


def _halves(active: ir.Value, other: ir.Value) -> tuple[Product, int] | None:
    """The product of which two values are the halves, and which of the halves is the active one, 1 or 2."""
    first, second = unshaped(active), unshaped(other)
    node = first.producer() if first is not None else None
    if node is None or second is None or node.op_type != "Split" or second.producer() is not node:
        return None
    if len(node.outputs) != 2 or node.inputs[0] is None or first is None:
        return None
    product = product_of(node.inputs[0])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    dimensions = [value.shape for value in node.outputs]
    if product is None or any(shape is None or axis not in (-1, len(shape) - 1) for shape in dimensions):
        return None
    if len({last_dimension(value) for value in node.outputs}) > 1:
        return None
    return product, 1 if first is node.outputs[0] else 2


def _biased(product: Product, bias: ir.Value | None) -> Product:
    if bias is None:
        return product
    if product.bias is not None:
        raise Declined("its product has two biases")
    return replace(product, bias=bias)


def _product(product: Product, name: str) -> _Inputs:
    return {f"w_{name}": product.weight, f"s_{name}": product.weight_scale, f"b_{name}": product.bias}


def _norm(norm: Norm | None, name: str) -> _Inputs:
    return {} if norm is None else {f"{name}_gamma": norm.gamma, f"{name}_beta": norm.beta}


def _common_settings(norms: Sequence[Norm], attributes: _Attributes) -> _Attributes:
    """The settings that the norms of a block share."""
    if len({norm.rms for norm in norms}) > 1:
        raise Declined("it has norms of two kinds")
    epsilons = {norm.epsilon for norm in norms} | ({attributes["epsilon"]} if "epsilon" in attributes else set())
    if len(epsilons) > 1:
        raise Declined("its norms have different epsilons")
    common: _Attributes = dict.fromkeys(["epsilon"], epsilons.pop()) if epsilons else {}
    return common | {"norm": 1} if norms and norms[0].rms else common
