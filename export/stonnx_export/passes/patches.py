"""Turns the convolution that reads the patches of an image into a product.

Requires: ``Conv`` of images [B, C, S, S] of known size with a constant weight, whose steps are as large as its windows,
and after it a ``Reshape`` and a ``Transpose`` to tokens [B, patches, H]. Ensures: the patches [B, patches, C * P * P]
and ``MatMul``. Recipes store and compute it like every other product. Exact: each patch has its own window.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import constant_array, only_use

_NAME = "patches"


def run(model: ir.Model) -> PassResult:
    """Rewrite a model in place. ``fired`` counts the convolutions."""
    fired, declined = 0, []
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        if _rewrite(model.graph, node):
            fired += 1
        else:
            declined.append(f"{node.outputs[0].name}: its windows are not the patches of an image, in order")
    RemoveUnusedNodesPass()(model)
    return PassResult(_NAME, fired, tuple(declined))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    image, weight = node.inputs[0], constant_array(node.inputs[1])
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if image is None or image.shape is None or weight is None or weight.ndim != 4 or weight.dtype != np.float32:
        return False
    width, channels, *patch = weight.shape
    edges = [size for size in list(image.shape)[2:] if isinstance(size, int)]
    tokens = _tokens(node.outputs[0])
    if len(edges) != 2 or tokens is None or not _is_of_patches(node, patch):
        return False
    if any(edge % size for edge, size in zip(edges, patch, strict=True)):
        return False
    rows, columns = (edge // size for edge, size in zip(edges, patch, strict=True))
    op = GraphBuilder(graph, before=node)
    split = op.Reshape(image, op.vector([-1, channels, rows, patch[0], columns, patch[1]]))
    flat = int(np.prod([channels, *patch]))
    patches = op.Reshape(op.Transpose(split, perm=[0, 2, 4, 1, 3, 5]), op.vector([-1, rows * columns, flat]))
    patches.shape, patches.type = ir.Shape((image.shape[0], rows * columns, flat)), image.type
    matrix = np.ascontiguousarray(weight.reshape(width, flat).T)
    result = op.MatMul(patches, op.constant(matrix, "weight"))
    result.shape, result.type = tokens.shape, tokens.type
    if bias is not None:
        biased = op.Add(result, op.constant(bias, "bias"))
        biased.shape, biased.type = tokens.shape, tokens.type
        result = biased
    name = tokens.name
    tokens.replace_all_uses_with(result)
    # Reports name the product after the module that it came from.
    tokens.name, result.name = result.name, name
    return True


def _tokens(value: ir.Value) -> ir.Value | None:
    """Transpose(Reshape(x)) of shape [B, patches, H], if nothing else reads what is between; else None."""
    reshape = only_use(value)
    transpose = only_use(reshape.outputs[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    if transpose is None or transpose.op_type != "Transpose" or transpose.outputs[0].is_graph_output():
        return None
    tokens = transpose.outputs[0]
    swaps = tuple(transpose.attributes["perm"].as_ints()) == (0, 2, 1)
    return tokens if swaps and tokens.shape is not None and len(tokens.shape) == 3 else None


def _is_of_patches(node: ir.Node, patch: list[int]) -> bool:
    """Whether the windows of a convolution lie side by side, without borders around the image."""
    given = {
        name: node.attributes[name].as_ints() for name in ("strides", "pads", "dilations") if name in node.attributes
    }
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return (
        list(given.get("strides", ())) == patch
        and not any(given.get("pads", ()))
        and all(step == 1 for step in given.get("dilations", ()))
        and group == 1
        and automatic in ("NOTSET", "VALID")
    )
