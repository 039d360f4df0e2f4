"""Adding nodes to an ONNX graph: the small vocabulary that heads and passes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from stonnx_export.graph.read import constant_array

OPSET = 24


class GraphBuilder:
    """Makes nodes by their operator's name: ``op.Add(a, b)`` returns the value that the new node computes.

    Args:
        graph: The graph that the nodes are added to.
        before: Insert before this node instead of at the end.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None) -> None:
        self.graph = graph
        self._before = before
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def __getattr__(self, operator: str) -> Callable[..., ir.Value]:
        def node(*inputs: ir.Value | None, _domain: str = "", **attributes: Any) -> ir.Value:
            tape = Tape()
            value = tape.op(operator, inputs, attributes, domain=_domain)
            value.name = self._fresh(operator)
            if self._before is None:
                self.graph.extend(tape.nodes)
            else:
                self.graph.insert_before(self._before, tape.nodes)
            return value

        return node

    def multiple(self, operator: str, *inputs: ir.Value, outputs: int, **attributes: Any) -> tuple[ir.Value, ...]:
        """The values of a node with several outputs."""
        first = getattr(self, operator)(*inputs, **attributes)
        node = first.producer()
        node.resize_outputs(outputs)
        for value in node.outputs[1:]:
            value.name = self._fresh(operator)
        return tuple(node.outputs)

    def constant(self, array: npt.NDArray[Any], name: str = "constant") -> ir.Value:
        """An initializer. Equal small arrays share one."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = self._fresh(name)
        value = self.named_constant(name, array)
        if key is not None:
            self._constants[key] = value
        return value

    def named_constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """An initializer of exactly that name. It is made once."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def scalar(self, value: int) -> ir.Value:
        """An int64 scalar."""
        return self.constant(np.array(value, dtype=np.int64))

    def vector(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector, as axes are given."""
        return self.constant(np.array(values, dtype=np.int64))

    def optional_input(self, name: str, default: npt.NDArray[Any], shape: Sequence[int | str]) -> ir.Value:
        """A graph input with a default: an initializer of the same name, which a caller may override."""
        tensor = ir.tensor(default, name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.inputs.append(value)
        self.graph.register_initializer(value)
        return value

    def name_output(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> None:
        """Give a value the name, type and shape of a graph output."""
        other = next((v for n in self.graph for v in n.outputs if v.name == name and v is not value), None)
        if other is not None:
            other.name = self._fresh(name)
        value.name = name
        value.shape = ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)

    def _fresh(self, stem: str) -> str:
        # Names are unique within a graph; counting on the graph itself keeps them stable from run to run.
        counters: dict[str, int] | None = self.graph.meta.get("stonnx_names")
        if counters is None:
            counters = self.graph.meta["stonnx_names"] = _counted(self.graph)
        counters[stem] = counters.get(stem, -1) + 1
        return f"stonnx_{stem}_{counters[stem]}"


def _counted(graph: ir.Graph) -> dict[str, int]:
    """The highest number of each stem among the names of a graph that was read from a file."""
    counters: dict[str, int] = {}
    for name in [*graph.initializers, *(str(value.name) for node in graph for value in node.outputs)]:
        stem, _, number = name.removeprefix("stonnx_").rpartition("_")
        if name.startswith("stonnx_") and number.isdecimal():
            counters[stem] = max(counters.get(stem, -1), int(number))
    return counters


def add_to_bias(biased: tuple[ir.Node, int], vector: npt.NDArray[np.float64]) -> None:
    """Add to the bias that :func:`bias_behind` found, in double precision: that bias was rounded once already."""
    add, index = biased
    bias = constant_array(add.inputs[index])
    assert add.graph is not None
    assert bias is not None
    sum_of_both = (bias + vector).astype(bias.dtype)
    add.replace_input_with(index, GraphBuilder(add.graph, before=add).constant(sum_of_both, "bias"))
