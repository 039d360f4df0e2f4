"""Turns a part of a graph into a model-local function: one node takes the place of many, which become its body.

onnxruntime inlines the body if no kernel claims the node, so the result is the same to the last bit. Operators that
parts share, such as the zero points of all tokens, are copied into each body. A body whose operators differ needs an
operator name of its own, because onnxruntime 1.26 ignores the ``overload`` of functions. The second body of ``NAME`` is
``NAME_1``, and the library registers each operator under these names too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import IMAGE_INPUT, input_named

DOMAIN = "stonnx.kernels"
# Bodies that an operator may have in one graph: as many names as the library registers.
MOST_BODIES = 24
_MOST_EXTRAS = 12
# The name of the dimension of tokens if a graph works on the first ones only (see first_token).
FIRST_TOKENS = "tokens"
# Larger constants are inputs of the function: the kernel wants them, and two layers can share a body.
_LARGEST_CONSTANT = 64
# The runtime replaces these initializers if 8-bit products saturate. It cannot do so inside a body.
_REPLACEABLE = "stonnx_int8_"


@dataclass(frozen=True)
class Part:
    """The part that becomes one node: everything that ``output`` is computed from, up to the inputs.

    ``inputs`` are in the order of the operator, None if one is left out. Further inputs that only the body needs follow
    as ``extra_0``, ``extra_1`` ... , and ``last`` are those of the operator that come after all of these. ``same_rows``
    says that all its values have as many rows as its first input.
    """

    operator: str
    inputs: Mapping[str, ir.Value | None]
    extras: tuple[ir.Value, ...]
    attributes: Mapping[str, int | float | str]
    output: ir.Value
    same_rows: bool
    last: Mapping[str, ir.Value] = field(default_factory=dict)


class Declined(Exception):  # noqa: N818 - an answer, not a failure
    """The reason why a part stays as it is."""


class Outliner:
    """Replaces parts of a model by calls of functions. Parts with equal bodies share one function."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        ids = input_named(model.graph, "input_ids") or input_named(model.graph, IMAGE_INPUT)
        op = GraphBuilder(model.graph, before=model.graph[0])
        # [texts, tokens of the longest], or [images, channels]: bodies make shapes from it.
        self._shape = op.Shape(ids, end=2) if ids is not None else None
        self._zero_points: dict[ir.Value, ir.Value] = {}
        self._names: dict[bytes, str] = {}
        self._bodies: Counter[str] = Counter()

    def replace(self, part: Part) -> None:
        """Put one node in the place of a part.

        Raises:
            Declined: The part reads something that a body cannot have. The graph stays as it was.
        """
        graph = self._model.graph
        order = {node: index for index, node in enumerate(graph)}
        body = _Body(part, order, self._shape, lambda expand: self._shared(part, expand))
        function = body.function(self._model.opset_imports)
        key = ir.serde.serialize_function(function).SerializeToString(deterministic=True)
        if key not in self._names:
            count = self._bodies[part.operator]
            if count == MOST_BODIES:
                raise Declined(f"the graph has more than {MOST_BODIES} forms of {part.operator}")
            self._bodies[part.operator] += 1
            self._names[key] = name = f"{part.operator}_{count}" if count else part.operator
            named = ir.Function(DOMAIN, name, graph=function.graph, attributes=list(function.attributes.values()))
            self._model.functions[named.identifier()] = named
            self._model.opset_imports.setdefault(DOMAIN, 1)
        node = part.output.producer()
        assert node is not None
        op = GraphBuilder(graph, before=node)
        new = getattr(op, self._names[key])(*body.actuals, _domain=DOMAIN, **part.attributes)
        new.shape, new.type = part.output.shape, part.output.type
        take_place(part.output, new)

    def finish(self) -> None:
        """Let operators outside of the parts spread their zero points over scales of their own.

        They are spread over those of the first block that needed them. A block that is one node now would be computed
        a second time, only for the number of its tokens.
        """
        for node in list(self._model.graph):
            expand = _zero_points(node)
            if expand is not None:
                op = GraphBuilder(self._model.graph, before=node)
                node.replace_input_with(2, op.Expand(expand.inputs[0], op.Shape(node.inputs[1])))

    def _shared(self, part: Part, expand: ir.Node) -> ir.Value | None:
        """Zero points of all tokens, which replace those that were spread over the scales of one block.

        They are spread over the tokens of the first block that needs them. All other blocks take them as inputs too.
        """
        spread, tokens = expand.outputs[0], next(iter(part.inputs.values()))
        if not part.same_rows or tokens is None:
            return None
        if spread not in self._zero_points:
            node = part.output.producer()
            assert node is not None
            op = GraphBuilder(self._model.graph, before=node)
            rows = op.Concat(op.Shape(tokens, start=0, end=1), op.vector([1]), axis=0)
            self._zero_points[spread] = op.Expand(expand.inputs[0], rows)
        return self._zero_points[spread]


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let all readers read another value, and let the graph give it under the same name."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if new.is_graph_output():
        old.name, new.name = f"{old.name}_replaced", old.name


class _Body:
    """The nodes of a part, copied with names that do not depend on where they came from."""

    def __init__(
        self,
        part: Part,
        order: Mapping[ir.Node, int],
        shape: ir.Value | None,
        shared: Callable[[ir.Node], ir.Value | None],
    ) -> None:
        self._part, self._shape, self._shared = part, shape, shared
        self._formals = [ir.Value(name=name) for name in part.inputs]
        self.actuals: list[ir.Value | None] = list(part.inputs.values())
        self._values: dict[ir.Value, ir.Value] = {
            actual: formal for formal, actual in zip(self._formals, self.actuals, strict=True) if actual is not None
        }
        last = [ir.Value(name=name) for name in part.last]
        self._values |= dict(zip(part.last.values(), last, strict=True))
        for value in part.extras:
            self._extra(value)
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        inside = self._inside()
        for node in sorted(inside, key=order.__getitem__):
            self._copy(node)
        if len(self.actuals) - len(part.inputs) > _MOST_EXTRAS:
            raise Declined(f"its body needs more than {_MOST_EXTRAS} further inputs")
        if last:
            for index in range(len(self.actuals) - len(part.inputs), _MOST_EXTRAS):
                self._formals.append(ir.Value(name=f"extra_{index}"))
                self.actuals.append(None)
            self._formals += last
            self.actuals += part.last.values()

    def function(self, opsets: Mapping[str, int]) -> ir.Function:
        """The function, which does not have a name yet."""
        graph = ir.Graph(
            self._formals,
            [self._values[self._part.output]],
            nodes=self._nodes,
            opset_imports={domain: version for domain, version in opsets.items() if domain != DOMAIN},
        )
        attributes = [
            ir.Attr(name, ir.convenience.convert_attribute(name, value).type, None)
            for name, value in self._part.attributes.items()
        ]
        return ir.Function(DOMAIN, "", graph=graph, attributes=attributes)

    def _extra(self, value: ir.Value) -> ir.Value:
        """The formal input of a value that only the body reads."""
        if value not in self._values:
            self._formals.append(ir.Value(name=f"extra_{len(self._formals) - len(self._part.inputs)}"))
            self.actuals.append(value)
            self._values[value] = self._formals[-1]
        return self._values[value]

    def _inside(self) -> set[ir.Node]:
        """The nodes of the part. Nodes that stay outside must not need their results."""
        found: set[ir.Node] = set()
        pending = [self._part.output]
        while pending:
            value = pending.pop()
            node = value.producer()
            if value in self._values or node in found:
                continue
            if node is None:
                self._check_constant(value)
            elif not counts_all_tokens(node):
                found.add(node)
                pending.extend(operand for operand in _operands(node) if operand is not None)
        for node in found:
            for value in node.outputs:
                outside = any(use.node not in found and not _is_of_zero_points(use.node) for use in value.uses())
                if value is not self._part.output and (value.is_graph_output() or (outside and not _is_cheap(node))):
                    raise Declined(f"{value.name} is needed outside of the block too")
        return found

    def _check_constant(self, value: ir.Value) -> None:
        name, tensor = str(value.name), value.const_value
        if tensor is None or value.is_graph_input():
            raise Declined(f"it reads {name}")
        if tensor.size > _LARGEST_CONSTANT or name.startswith(_REPLACEABLE):
            raise Declined(f"it reads the constant {name}, for which the operator has no input")

    def _copy(self, node: ir.Node) -> None:
        inputs = [self._operand(operand) for operand in _operands(node)]
        expand = _zero_points(node)
        if expand is not None:
            shared = self._shared(expand)
            if shared is not None:
                inputs[2] = self._extra(shared)
            else:
                inputs[2] = self._add("Expand", [inputs[2], self._add("Shape", [inputs[1]])])
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self._values[old] = new
        self._append(copy)

    def _operand(self, value: ir.Value | None) -> ir.Value | None:
        if value is None or value in self._values:
            return None if value is None else self._values[value]
        node = value.producer()
        if node is None:
            assert value.const_value is not None
            self._values[value] = self._constant(value.const_value.numpy())
        else:
            self._values[value] = self._dimensions(node)
        return self._values[value]

    def _dimensions(self, node: ir.Node) -> ir.Value:
        """The numbers, of texts or tokens or both, that a ``Shape`` outside of the part takes."""
        if self._shape is None:
            raise Declined("the graph has no input of texts or images")
        span = [self._constant(np.array([number], dtype=np.int64)) for number in span_of(node)]
        return self._add("Slice", [self._extra(self._shape), *span])

    def _constant(self, array: npt.NDArray[Any]) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._add("Constant", [], [ir.AttrTensor("value", ir.tensor(array))])
        return self._constants[key]

    def _add(self, operator: str, inputs: Iterable[ir.Value | None], attributes: Iterable[ir.Attr] = ()) -> ir.Value:
        return self._append(ir.Node("", operator, list(inputs), list(attributes)))

    def _append(self, node: ir.Node) -> ir.Value:
        first = sum(len(other.outputs) for other in self._nodes)
        for index, value in enumerate(node.outputs):
            value.name = f"value_{first + index}"
        self._nodes.append(node)
        return node.outputs[0]


def _operands(node: ir.Node) -> list[ir.Value | None]:
    """The values that a node reads; for zero points that are one number for all tokens, that number."""
    operands, expand = list(node.inputs), _zero_points(node)
    if expand is not None:
        operands[2] = expand.inputs[0]
    return operands


def _zero_points(node: ir.Node) -> ir.Node | None:
    """The ``Expand`` that spreads the zero point of a QuantizeLinear over its tokens, if there is one."""
    spread = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
    producer = spread.producer() if spread is not None else None
    return producer if producer is not None and producer.op_type == "Expand" else None


def _is_of_zero_points(node: ir.Node) -> bool:
    """Whether a node is the shape over which zero points are spread. Each body makes its own."""
    uses = [use.node for use in node.outputs[0].uses()] if node.op_type == "Shape" else []
    return bool(uses) and all(
        user.op_type == "Expand" and all(_zero_points(use.node) is user for use in user.outputs[0].uses())
        for user in uses
    )


def counts_all_tokens(node: ir.Node) -> bool:
    """Whether a node takes the number of texts, of tokens in each, or both, from a value that has all tokens."""
    value = node.inputs[0] if node.op_type == "Shape" else None
    if value is None or value.shape is None or len(value.shape) < 2:
        return False
    if value.name == IMAGE_INPUT:  # the number of images; that of their tokens is a constant
        return True
    start, end = span_of(node)
    names = [dimension.value for dimension in value.shape[:2] if not isinstance(dimension, int)]
    return 0 <= start < end <= 2 and len(set(names) - {None, FIRST_TOKENS}) == 2


def span_of(shape: ir.Node) -> tuple[int, int]:
    """The first dimension that a ``Shape`` takes and its end; an open end is -1."""
    first, last = (shape.attributes.get(name) for name in ("start", "end"))
    return first.as_int() if first is not None else 0, last.as_int() if last is not None else -1


def _is_cheap(node: ir.Node) -> bool:
    """Whether a node computes a shape or the like: a few numbers, which cost nothing to compute twice."""
    return node.op_type in ("Shape", "Slice", "Squeeze", "Unsqueeze", "Concat", "Expand", "Reshape", "Constant")
