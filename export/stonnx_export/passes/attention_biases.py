"""Attention without the biases of its keys and values.

Requires: ``Attention`` of three-dimensional inputs, keys or values being ``x + b`` with a constant b. Ensures: keys
have no bias, since it adds the same number to all scores of a query and softmax does not see it, unless scores are
capped; the bias of the values moves behind the following product, ``b W + c``, since the weights of attention sum to 1.
Exact in real numbers.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph import GraphBuilder, constant_array, only_use
from stonnx_export.passes._result import PassResult

_NAME = "attention_biases"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the biases that are gone."""
    fired, declined = 0, []
    for node in [node for node in model.graph if node.op_type == "Attention" and "q_num_heads" in node.attributes]:
        query, key, value = node.inputs[:3]
        if query is None or len({id(part) for part in (query, key, value)}) < 3:
            continue
        if len(node.outputs) > 1 or any(value is not None for value in node.inputs[4:6]):
            declined.append(f"{node.name}: it has past keys or further outputs")
            continue
        plain = _without_bias(key)
        if plain is not None and "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0:
            declined.append(f"{node.name}: its scores are capped, which sees the bias of its keys")
        elif plain is not None:
            node.replace_input_with(1, plain)
            fired += 1
        plain = _without_bias(value)
        if plain is None:
            continue
        if not _move_behind_product(node, value):
            declined.append(f"{node.name}: its result is not the input of one product with a bias")
            continue
        node.replace_input_with(2, plain)
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _without_bias(value: ir.Value | None) -> ir.Value | None:
    """x of ``x + b`` that only attention reads."""
    add = value.producer() if value is not None else None
    if value is None or add is None or add.op_type != "Add" or only_use(value) is None:
        return None
    first, second = add.inputs
    return first if _is_vector(second) else second if _is_vector(first) else None


def _is_vector(value: ir.Value | None) -> bool:
    array = constant_array(value)
    return array is not None and array.ndim == 1


def _move_behind_product(attention: ir.Node, value: ir.Value | None) -> bool:
    heads = [attention.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads")]
    product = only_use(attention.outputs[0])
    if heads[0] != heads[1] or product is None or product.op_type != "MatMul" or value is None:
        return False
    weight = constant_array(product.inputs[1])
    add = only_use(product.outputs[0])
    producer = value.producer()
    if weight is None or add is None or add.op_type != "Add" or producer is None:
        return False
    bias = next(array for array in map(constant_array, producer.inputs) if array is not None)
    for index, operand in enumerate(add.inputs):
        array = constant_array(operand)
        if array is not None and array.ndim == 1:
            assert add.graph is not None
            op = GraphBuilder(add.graph, before=add)
            # In double precision: the sum replaces one that was rounded once.
            moved = (array + bias.astype("float64") @ weight.astype("float64")).astype(array.dtype)
            add.replace_input_with(index, op.constant(moved, "bias"))
            return True
    return False
