"""Adding nodes to an ONNX graph: the small vocabulary that heads and passes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from stonnx._errors import ExportError

OPSET = 24
# They work on each token by itself, over its channels.
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


class GraphBuilder:
    """Makes nodes by their operator's name: ``op.Add(a, b)`` returns the value that the new node computes.

    Args:
        graph: Where the nodes go.
        before: Insert in front of this node instead of at the end.
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
        """An initializer. Equal small arrays are one."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = self._fresh(name)
        value = self.named_constant(name, array)
        if key is not None:
            self._constants[key] = value
        return value

    def named_constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """An initializer of exactly that name, which is made once."""
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


def last_dimension(value: ir.Value) -> int:
    """The number of features of a value, which is always known."""
    size = value.shape[-1] if value.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(f"The network's output {value.name!r} has no fixed number of features.")
    return size


def input_named(graph: ir.Graph, name: str) -> ir.Value | None:
    """The graph input of that name."""
    return next((value for value in graph.inputs if value.name == name), None)


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer, of a constant, or of rows of one, transposed or not; else None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None and not value.is_graph_input() else None
    if tensor is not None:
        return tensor.numpy()
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Transpose", "Slice"):
        return None
    array, *rest = (constant_array(operand) for operand in node.inputs)
    if array is None or any(operand is None for operand in rest):
        return None
    if node.op_type == "Transpose":
        return array.transpose(tuple(node.attributes["perm"].as_ints()))
    starts, ends, axes = (operand.tolist() for operand in rest[:3] if operand is not None)
    cut = {axis: slice(start, end) for start, end, axis in zip(starts, ends, axes, strict=True)}
    result: npt.NDArray[Any] = array[tuple(cut.get(axis, slice(None)) for axis in range(array.ndim))]
    return result


def constant_number(value: ir.Value | None) -> float | None:
    """The number that a constant of one element is; else None."""
    array = constant_array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def check_finite(model: ir.Model) -> None:
    """Raise ExportError where weights are NaN or infinite: no text that meets them has a vector."""
    for name, value in model.graph.initializers.items():
        array = constant_array(value)
        if array is None or array.dtype.kind != "f" or array.size == 1:
            continue
        broken = ~np.isfinite(array)
        # Minus infinity among zeros is a mask.
        if broken.any() and (array[~broken].any() or not np.isneginf(array[broken]).all()):
            raise ExportError(
                f"{np.count_nonzero(broken):,} of the {array.size:,} weights {name!r} are NaN or infinite: the "
                "checkpoint is damaged. Download it again, or go back to one that was saved before."
            )


# One file holds a protobuf of up to 2 GB; larger weights go beside it.
_MAX_EMBEDDED_BYTES = 1_900_000_000


def save(model: ir.Model, path: Path) -> None:
    """Write a model to a file; weights over 1.9 GB go to a second one, ``PATH.data``."""
    constants = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    large = sum(tensor.nbytes for tensor in constants) > _MAX_EMBEDDED_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)


def only_use(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, where nothing else does and it is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def vector_added(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """x and b, where a value is ``x + b`` with a constant vector b, and only one node reads it; else None."""
    add = value.producer() if value is not None else None
    if value is None or add is None or add.op_type != "Add" or only_use(value) is None:
        return None
    first, second = add.inputs
    if first is None or second is None:
        return None
    return (first, second) if _is_vector(second) else (second, first) if _is_vector(first) else None


def bias_behind(product: ir.Node) -> tuple[ir.Node, int] | None:
    """The addition of a constant vector that alone reads a product, and which of its inputs that is; else None."""
    add = only_use(product.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    index = 1 if add.inputs[0] is product.outputs[0] else 0
    bias = add.inputs[index]
    return (add, index) if bias is not None and _is_vector(bias) else None


def add_to_bias(biased: tuple[ir.Node, int], vector: npt.NDArray[np.float64]) -> None:
    """Add to what :func:`bias_behind` found, in double precision: the sum replaces one that was rounded once."""
    add, index = biased
    bias = constant_array(add.inputs[index])
    assert add.graph is not None
    assert bias is not None
    sum_of_both = (bias + vector).astype(bias.dtype)
    add.replace_input_with(index, GraphBuilder(add.graph, before=add).constant(sum_of_both, "bias"))


def _is_vector(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.ndim == 1


def is_causal(attention: ir.Node) -> bool:
    """Whether an ``Attention`` node lets each token see those in front of it only."""
    return "is_causal" in attention.attributes and attention.attributes["is_causal"].as_int() == 1


def caps_scores(attention: ir.Node) -> bool:
    """Whether an ``Attention`` node bounds its scores in front of the softmax."""
    return "softcap" in attention.attributes and attention.attributes["softcap"].as_float() != 0
