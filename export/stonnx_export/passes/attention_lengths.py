"""Turns attention with a padding mask into attention with the length of each text.

Requires: ONNX ``Attention`` nodes (opset 24), right-padded batches, and the pass ``shapes`` before this one. Ensures:
nodes whose mask only says which tokens are padding read ``nonpad_kv_seqlen`` instead; nodes whose mask is also causal
have ``is_causal``. A graph whose results include rows after the end of a text (``QUERY_ROWS``) keeps its causal masks:
those rows must not attend to each other. Both take and give [batch, sequence, hidden] without transposes if they can,
and the computation of the mask disappears. Nodes without a mask lose
their transposes too, if the graph does not know padding. Exact. This is the fastest attention of the CPU provider.

The pass does not guess from the nodes whether a mask is a padding mask (or a causal padding mask), because every
network computes it by other nodes. It runs the part of the graph that computes the mask on texts of several lengths.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.part import part_of
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import QUERY_ROWS, input_named, is_causal

_NAME = "attention_lengths"
# Lengths of the texts in each batch on which a mask is probed, right-padded to the longest.
_PROBES = ((1,), (5, 2), (3, 7, 1), (300, 40))
# The widest mask that is probed has this many tokens on each side.
_WIDEST = 8192


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the attention nodes that were replaced."""
    graph = model.graph
    mask_input = input_named(graph, "attention_mask")
    nodes = [node for node in graph if node.op_type == "Attention"]
    if not nodes:
        return PassResult(_NAME, 0, ("the graph has no Attention node",))
    if mask_input is None:
        return _without_padding(model, nodes)
    kinds: dict[ir.Value, str | None] = {}
    reads_padding = input_named(graph, QUERY_ROWS) is not None
    fired, declined = 0, []
    lengths: ir.Value | None = None
    for node in nodes:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is None:
            declined.append(f"{node.name}: it has no mask")
            continue
        bias, mask = _position_bias(mask, mask_input)
        if mask not in kinds:
            kinds[mask] = kind_of_mask(model, mask, reads_padding)
        kind = kinds[mask]
        if (bias is not None or reads_padding) and kind != "padding":
            kind = None
        if kind is None or len(node.inputs) > 4 or len(node.outputs) > 1:
            reason = "its mask is more than padding" if kind is None else "it has past keys or further outputs"
            declined.append(f"{node.name}: {reason}")
            continue
        causal = kind == "causal" or is_causal(node)
        if causal and reads_padding:
            declined.append(f"{node.name}: it is causal, and rows after the end of a text are results")
            continue
        if lengths is None and not causal:
            op = GraphBuilder(graph, before=graph[0])
            lengths = op.ReduceSum(mask_input, op.vector([1]), keepdims=0)
        _replace(graph, node, None if causal else lengths, bias, causal=causal)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _without_padding(model: ir.Model, nodes: list[ir.Node]) -> PassResult:
    """Take the transposes away from the attention of a graph whose inputs all have one length, as that of images."""
    fired, declined = 0, []
    for node in nodes:
        if any(value is not None for value in node.inputs[3:]) or len(node.outputs) > 1:
            declined.append(f"{node.name}: it has a mask without attention_mask, past keys, or further outputs")
        elif _is_in_heads(node):
            _replace(model.graph, node, None, None, causal=is_causal(node))
            fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _is_in_heads(node: ir.Node) -> bool:
    """Whether attention [B, heads, S, H / heads] comes from tokens [B, S, H], and goes back to these."""
    flat = [_before_split_into_heads(part) for part in node.inputs[:3]]
    return None not in flat and _after_merge_of_heads(node.outputs[0]) is not None


def _position_bias(mask: ir.Value, mask_input: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """The part of a mask that depends on positions alone [1, heads, S, S], if any, and the rest of the mask."""
    add = mask.producer()
    if add is None or add.op_type != "Add":
        return None, mask
    first, second = add.inputs
    if first is None or second is None or _depends_on(first, mask_input) == _depends_on(second, mask_input):
        return None, mask
    bias, rest = (second, first) if _depends_on(first, mask_input) else (first, second)
    expand = bias.producer()
    if expand is not None and expand.op_type == "Expand" and expand.inputs[0] is not None:
        bias = expand.inputs[0]  # the operator spreads it over the texts by itself
    return bias, rest


def _depends_on(value: ir.Value, source: ir.Value) -> bool:
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current is source:
            return True
        node = current.producer()
        if current not in seen and node is not None:
            pending += [operand for operand in node.inputs if operand is not None]
        seen.add(current)
    return False


def _replace(graph: ir.Graph, node: ir.Node, lengths: ir.Value | None, bias: ir.Value | None, *, causal: bool) -> None:
    """Give a node the lengths of the texts, if there are any, instead of a mask, or make it causal.

    A bias for positions takes the place of the mask.

    Padding on the right comes after every token that causal attention reads, so it does not need lengths. They would
    even be wrong, because the operator takes the tokens of a text with a length for the last ones of its keys.
    """
    op = GraphBuilder(graph, before=node)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    instead_of_mask = (bias, None, None, lengths) if lengths is not None else ()
    if causal:
        attributes["is_causal"] = 1
    query, key, value = node.inputs[:3]
    flat = [_before_split_into_heads(part) for part in (query, key, value)]
    merged = _after_merge_of_heads(node.outputs[0])
    if None not in flat and merged is not None:
        heads = [part.shape[1] for part in (query, key)]  # type: ignore[union-attr,index]
        attributes |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
        result = op.Attention(*flat, *instead_of_mask, **attributes)
        replaced = merged
    else:
        result = op.Attention(query, key, value, *instead_of_mask, **attributes)
        replaced = node.outputs[0]
    result.shape, result.type = replaced.shape, replaced.type
    replaced.replace_all_uses_with(result)


def _before_split_into_heads(value: ir.Value | None) -> ir.Value | None:
    """x [B, S, H], if the value is Transpose(Reshape(x)) of shape [B, heads, S, H / heads]; else None."""
    transpose = value.producer() if value is not None else None
    if value is None or transpose is None or transpose.op_type != "Transpose" or not _swaps_heads(transpose):
        return None
    reshaped = transpose.inputs[0]
    reshape = reshaped.producer() if reshaped is not None else None
    if reshape is None or reshape.op_type != "Reshape" or value.shape is None or not isinstance(value.shape[1], int):
        return None
    flat = reshape.inputs[0]
    return flat if flat is not None and flat.shape is not None and len(flat.shape) == 3 else None


def _after_merge_of_heads(value: ir.Value) -> ir.Value | None:
    """The value of Reshape(Transpose(x)) of shape [B, S, H], if x has no other use; else None."""
    for operator in ("Transpose", "Reshape"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != operator or value.is_graph_output():
            return None
        if operator == "Transpose" and not _swaps_heads(uses[0].node):
            return None
        value = uses[0].node.outputs[0]
    return value if value.shape is not None and len(value.shape) == 3 else None


def _swaps_heads(transpose: ir.Node) -> bool:
    return tuple(transpose.attributes["perm"].as_ints()) == (0, 2, 1, 3)


def kind_of_mask(model: ir.Model, mask: ir.Value, reads_padding: bool) -> str | None:
    """``"padding"``, ``"causal"``, or None if the mask is something else or depends on more than the inputs.

    ``reads_padding``: the rows of padding count, too.
    """
    part = part_of(model, mask)
    if part is None:
        return None
    probes = _probes(part.graph)
    if max(map(max, probes)) > _WIDEST:
        return None
    kinds = {"padding", "causal"}
    for lengths in probes:
        width = max(lengths)
        attention_mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        try:
            values = part.run(np.ones_like(attention_mask), attention_mask)
        except Exception:  # more positions than the network has, or an input that padding does not depend on
            continue
        allowed = values if values.dtype == bool else values > -1e4
        if values.dtype != bool and np.any(values[allowed] != 0):
            return None
        try:
            allowed = np.broadcast_to(allowed, (len(lengths), 1, width, width))[:, 0]
        except ValueError:
            return None
        real = attention_mask.astype(bool)
        expected = np.broadcast_to(real[:, None, :], allowed.shape)
        causal = expected & np.tri(width, dtype=bool)
        # Otherwise, queries that are padding do not matter: nothing reads their rows.
        read = np.ones_like(real) if reads_padding else real
        kinds = {
            kind
            for kind, pattern in (("padding", expected), ("causal", causal))
            if kind in kinds and np.array_equal(allowed[read], pattern[read])
        }
    return kinds.pop() if len(kinds) == 1 else None


def _probes(part: ir.Graph) -> list[tuple[int, ...]]:
    """The batches to probe a mask with: some of every kind, and a longer one for each number in its graph.

    The size of a sliding window is one of these numbers, and its mask looks like padding for every shorter text.
    """
    constants = [*part.initializers.values(), *(value for node in part for value in node.outputs)]
    arrays = [tensor.numpy() for value in constants if (tensor := ir.convenience.get_const_tensor(value)) is not None]
    integers = [array for array in arrays if array.dtype.kind in "iu" and array.size]
    numbers = {abs(int(number)) for array in integers for number in (array.min(), array.max())}
    longest = max(map(max, _PROBES))
    # Larger ones are not lengths: the tracer writes the end of an open slice as the largest integer.
    return [*_PROBES, *((number + 2,) for number in sorted(numbers) if longest <= number + 1 < 2**31)]
