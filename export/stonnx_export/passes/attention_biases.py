"""Attention without the biases of its keys and values.

Requires: ``Attention`` of three-dimensional inputs, keys or values being ``x + b`` with a constant b. Ensures: keys
do not have a bias, unless scores are capped: it adds the same number to all scores of a query, and softmax does not see
it. The bias of the values moves after the following product, ``b W + c``, because the weights of attention sum to 1.
Exact in real numbers.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import add_to_bias
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import bias_behind, caps_scores, constant_array, only_use, vector_added

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
        biased = vector_added(key)
        if biased is not None and caps_scores(node):
            declined.append(f"{node.name}: its scores are capped, which sees the bias of its keys")
        elif biased is not None:
            node.replace_input_with(1, biased[0])
            fired += 1
        biased = vector_added(value)
        if biased is None:
            continue
        if not _move_behind_product(node, biased[1]):
            declined.append(f"{node.name}: its result is not the input of one product with a bias")
            continue
        node.replace_input_with(2, biased[0])
        fired += 1
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _move_behind_product(attention: ir.Node, bias_of_values: ir.Value) -> bool:
    heads = [attention.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads")]
    product = only_use(attention.outputs[0])
    if heads[0] != heads[1] or product is None or product.op_type != "MatMul":
        return False
    weight, biased = constant_array(product.inputs[1]), bias_behind(product)
    bias = constant_array(bias_of_values)
    if weight is None or biased is None or bias is None:
        return False
    add_to_bias(biased, bias.astype("float64") @ weight.astype("float64"))
    return True
