"""Blocks of a finished graph as operators that a native kernel can run, and that onnxruntime runs without one.

Requires: the graph as it would be written. Ensures: each block that ``kernels/OPERATORS.md`` describes is one node of
the domain ``stonnx.kernels``. The node is a model-local function, and the nodes that it replaced are its body. A block
that does not fit stays as it is, and the result says why. Exact to the last bit if the bodies run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stonnx._bundle.manifest import Kernels
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.pass_result import PassResult
from stonnx_export.graph.read import IMAGE_INPUT, QUERY_ROWS, constant_array, input_named
from stonnx_export.kernels import rows
from stonnx_export.kernels.blocks import Lengths, block, endings
from stonnx_export.kernels.functions import Declined, Outliner
from stonnx_export.kernels.products import WeightKind
from stonnx_export.kernels.vocabulary import vocabularies
from stonnx_export.kernels.window import Windows

_NAME = "outline"
# The version of kernels/OPERATORS.md by which blocks are outlined; and that of blocks that compute more rows of a text
# than those that its tokens attend to.
_OPERATORS, _OPERATORS_WITH_ATTENDED = 1, 2


@dataclass(frozen=True)
class Outline:
    """How many blocks of each operator a graph has, and why the others stayed as they were, with how many of them."""

    blocks: Counter[str]
    stock: Counter[str]
    operators: int = _OPERATORS

    @property
    def result(self) -> PassResult:
        """The result in the form that every pass returns."""
        return PassResult(_NAME, self.blocks.total(), tuple(self.stock.elements()))


def kernels(outlines: Sequence[Outline]) -> Kernels | None:
    """The manifest's entry about the kernels of a bundle's graphs; None if no graph has any such block."""
    blocks = sum((found.blocks for found in outlines), Counter[str]())
    stock = sum((found.stock for found in outlines), Counter[str]())
    operators = max((found.operators for found in outlines), default=_OPERATORS)
    return Kernels(operators, dict(blocks), dict(stock)) if blocks or stock else None


def run(model: ir.Model, kinds: Collection[WeightKind]) -> Outline:
    """Rewrite a model in place. Blocks whose weights are stored in another way than ``kinds`` stay as they are."""
    graph = model.graph
    blocks: Counter[str] = Counter()
    stock: Counter[str] = Counter()
    if not kinds:
        return Outline(blocks, stock)
    rows.run(model)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    lengths = _lengths(graph)
    windows, outliner = Windows(model), Outliner(model)
    for ending in endings(model):
        try:
            part = block(ending, lengths, windows, kinds)
            outliner.replace(part)
        except Declined as reason:
            stock[str(reason)] += 1
        else:
            blocks[part.operator] += 1
    for kind, part in vocabularies(model, lengths.own):
        if kind not in kinds:
            continue
        try:
            outliner.replace(part)
        except Declined as reason:
            stock[str(reason)] += 1
        else:
            blocks[part.operator] += 1
    if blocks:
        outliner.finish()
    RemoveUnusedNodesPass()(model)
    graph.sort()
    return Outline(blocks, stock, _OPERATORS if lengths.own is lengths.rows else _OPERATORS_WITH_ATTENDED)


def weights_of_blocks(model: ir.Model) -> list[frozenset[str]]:
    """The names of the weights of each block of a float32 graph that a kernel could run. The graph stays as it is."""
    model = model.clone()
    lengths, windows = _lengths(model.graph), Windows(model)
    found = []
    for ending in endings(model):
        try:
            part = block(ending, lengths, windows, {"Float"})
        except Declined:
            continue
        weights = (value for name, value in part.inputs.items() if name.startswith("w_") and value is not None)
        found.append(frozenset(str(value.name) for value in weights))
    return found


def _lengths(graph: ir.Graph) -> Lengths:
    """The numbers of tokens of each text, and of its rows that are results."""
    own, query_rows, ids = _own_tokens(graph), input_named(graph, QUERY_ROWS), input_named(graph, "input_ids")
    if own is None or query_rows is None or ids is None:
        return Lengths(own, own)
    node = own.producer()
    assert node is not None
    op = GraphBuilder(graph, before=list(graph)[list(graph).index(node) + 1])
    return Lengths(own, op.Max(own, op.Min(query_rows, op.Shape(ids, start=1, end=2))))


def _own_tokens(graph: ir.Graph) -> ir.Value | None:
    """The number of tokens of each text. Attention reads it already, or it is made for the kernels."""
    mask = input_named(graph, "attention_mask")
    if mask is None:
        return _lengths_of_images(graph)
    for node in (use.node for use in mask.uses()):
        axes = constant_array(node.inputs[1]) if node.op_type == "ReduceSum" and len(node.inputs) > 1 else None
        if axes is not None and axes.tolist() == [1] and node.attributes["keepdims"].as_int() == 0:
            return node.outputs[0]
    op = GraphBuilder(graph, before=graph[0])
    return op.ReduceSum(mask, op.vector([1]), keepdims=0)


def _lengths_of_images(graph: ir.Graph) -> ir.Value | None:
    """The number of tokens of each image, which is the same for all, for kernels that read rows of tokens."""
    images = input_named(graph, IMAGE_INPUT)
    keys = [node.inputs[1] for node in graph if node.op_type == "Attention"]
    sizes = {key.shape[1] for key in keys if key is not None and key.shape is not None and len(key.shape) == 3}
    size = sizes.pop() if len(sizes) == 1 else None
    if images is None or not isinstance(size, int):
        return None
    op = GraphBuilder(graph, before=graph[0])
    return op.Expand(op.vector([size]), op.Shape(images, end=1))
