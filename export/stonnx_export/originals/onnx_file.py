"""Turns an ONNX file of another exporter into a network with our names, our opset, and only the output we need.

A file that cannot be used as it is gets refused, with the reason: reduced precision, inputs that stonnx does not feed,
fixed sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.version_converter import convert_version

from stonnx._device.cpus import available_cpus
from stonnx._device.wheels import import_onnxruntime
from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.graph.read import input_named

# The output that the exporter wants of a network: token embeddings [B, S, H], a logit for each token of the vocabulary
# [B, S, V], or one for each label [B, labels].
Wanted = Literal["tokens", "vocabulary", "labels"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Names that exporters give these outputs: optimum's for sentence_transformers, its others and transformers.onnx.
_NAMES: Mapping[Wanted, tuple[str, ...]] = {
    "tokens": ("token_embeddings", "last_hidden_state"),
    "vocabulary": ("logits",),
    "labels": ("logits",),
}
# The output of a graph that has a head of its own.
SENTENCE_EMBEDDING = "sentence_embedding"

_OTHER_NAMES = {name for names in _NAMES.values() for name in names} | {SENTENCE_EMBEDDING}
# The same in words, and the task of optimum-cli that gives it.
_WANTED: Mapping[Wanted, tuple[str, str]] = {
    "tokens": (
        "token embeddings, last_hidden_state or token_embeddings [batch, sequence, hidden]",
        "feature-extraction",
    ),
    "vocabulary": ("the logits of its masked-LM head [batch, sequence, vocabulary]", "fill-mask"),
    "labels": ("the logits of its classification head [batch, labels]", "text-classification"),
}

_REDUCED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# The operators of ONNX and onnxruntime that compute with quantized weights.
_QUANTIZED = (
    *("MatMulInteger", "ConvInteger", "QLinearMatMul", "DequantizeLinear"),
    *("QAttention", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"),
)

# The operators that have a graph inside.
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")

# The first version that knows opset 24. Graphs without a network have it too.
_IR_VERSION = 11


def find(folder: Path) -> Path | None:
    """The ONNX file of a network: in the place that the Hub uses, or else in the place that optimum-cli uses."""
    return next((file for file in (folder / "onnx" / "model.onnx", folder / "model.onnx") if file.is_file()), None)


class OnnxFile:
    """A network in a file, checked, and loaded into onnxruntime without any optimization.

    Raises:
        ExportError: The file, or data that belongs to it, is damaged or missing.
        UnsupportedError: This kind of graph cannot become part of a bundle.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path = path
        self._model = _load(path)
        _check_inputs(self._model, path)
        _check_precision(self._model, path)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = available_cpus()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            example = self.run(np.zeros((1, 3), dtype=np.int64))
        except Exception as error:  # onnxruntime's errors share no public base class
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot run {path}: {error} If the file is incomplete, or lacks "
                "the file with its weights beside it, download it again; else export the checkpoint itself."
            ) from error
        self.output = _choose_output(example, wanted, path)
        self._rank, self._features = example[self.output].ndim, example[self.output].shape[-1]
        self.has_head = SENTENCE_EMBEDDING in example

    def run(
        self, ids: npt.NDArray[np.int64], types: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """All outputs for texts without padding: ids, and the types of tokens (None: 0), are [B, S]."""
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids) if types is None else types,
        }
        names = [value.name for value in self._session.get_outputs()]
        arrays = self._session.run(None, {value.name: feeds[value.name] for value in self._session.get_inputs()})
        return dict(zip(names, arrays, strict=True))

    def network(self, *, token_types: bool) -> ir.Model:
        """The network in the form that ``trace`` gives, from the file on disk, without the outputs that are not needed.

        Args:
            token_types: Whether its tokenizer tells the two texts of a pair apart. If it does not, the input
                ``token_type_ids`` of the file becomes a constant, 0 everywhere.
        """
        model = _load(self.path)
        ir.external_data.load_to_model(model)  # the bundle's file lies elsewhere, and contains its weights
        graph = model.graph
        graph.outputs[:] = [value for value in graph.outputs if value.name == self.output]
        graph.inputs[:] = sorted(graph.inputs, key=lambda value: _INPUTS.index(str(value.name)))
        RemoveUnusedNodesPass()(model)
        _check_control_flow(graph, self.path)
        for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
            # Sizes get our names. Shapes that depend on them are inferred again from there.
            value.shape = ir.Shape(("batch", "sequence")) if value in graph.inputs else None
        _to_current_opset(model, self.path)
        graph = model.graph
        with _silence("onnx_ir"):
            ShapeInferencePass()(model)
        _restore_softmax(graph)
        if not token_types:
            _drop_token_types(graph)
        RemoveUnusedNodesPass()(model)
        graph.outputs[0].shape = ir.Shape(("batch", *("sequence",) * (self._rank - 2), self._features))
        return model


def _load(path: Path) -> ir.Model:
    """The graph without functions of its own, and without weights among its inputs."""
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's errors, and those of onnx-ir if protobuf lets a file pass
        raise ExportError(
            f"{path} is not a readable ONNX file: {error} It may be incomplete, or a Git LFS pointer: download it "
            "again."
        ) from error
    graph = model.graph
    if not list(graph.outputs):
        raise ExportError(f"{path} has no graph with an output. It may be incomplete: download it again.")
    InlinePass()(model)
    version = graph.opset_imports.pop("ai.onnx", None)  # the other name of ""
    if version is not None:
        graph.opset_imports.setdefault("", version)
    # Before IR version 4, every weight was an input too.
    graph.inputs[:] = [value for value in graph.inputs if value.name not in graph.initializers]
    return model


def _check_inputs(model: ir.Model, path: Path) -> None:
    names = [str(value.name) for value in model.graph.inputs]
    unknown = [name for name in names if name not in _INPUTS]
    missing = [name for name in _INPUTS[:2] if name not in names]
    if unknown or missing:
        problem = f"has the input {unknown[0]!r}" if unknown else f"lacks the input {missing[0]!r}"
        raise UnsupportedError(
            f"{path} {problem}. A bundle's network takes input_ids and attention_mask, and token_type_ids if the "
            "model has them, and works out everything else by itself. Export the checkpoint again with these inputs."
        )
    for value in model.graph.inputs:
        if value.dtype != ir.DataType.INT64:
            raise UnsupportedError(f"{path}: the input {value.name!r} is {value.dtype}, and must be INT64.")
        fixed = [size for size in value.shape or () if isinstance(size, int)]
        if fixed:
            raise UnsupportedError(
                f"{path}: the input {value.name!r} has the fixed shape {value.shape}. A bundle takes texts of every "
                "number and length: export the checkpoint again with dynamic axes."
            )


def _check_precision(model: ir.Model, path: Path) -> None:
    nodes = [node for graph in model.graphs() for node in graph]
    constants = [value for graph in model.graphs() for value in graph.initializers.values()]
    constants += [node.outputs[0] for node in nodes if node.op_type == "Constant"]
    types = [tensor.dtype for value in constants if (tensor := ir.convenience.get_const_tensor(value)) is not None]
    reduced = [str(dtype).lower() for dtype in types if dtype in _REDUCED]
    quantized = [node.op_type for node in nodes if node.op_type in _QUANTIZED]
    if reduced or quantized:
        what = f"has weights in {reduced[0]}" if reduced else f"is quantized (it has the operator {quantized[0]})"
        raise UnsupportedError(
            f"{path} {what}. A bundle is made from float32 weights, and only its recipe reduces them (--dtype): use "
            "the float32 model.onnx of the model, or export its checkpoint."
        )


def _check_control_flow(graph: ir.Graph, path: Path) -> None:
    found = next((node.op_type for node in graph if node.op_type in _CONTROL_FLOW), None)
    if found is not None:
        raise UnsupportedError(
            f"{path} has control flow: the operator {found}, which has a graph inside and decides at run time whether "
            "that runs. A bundle's network is one graph without such operators. Export the checkpoint from its PyTorch "
            "weights (--source torch), or make the ONNX file again without them, for example with: "
            "optimum-cli export onnx --model MODEL DIRECTORY"
        )


def _choose_output(example: Mapping[str, npt.NDArray[Any]], wanted: Wanted, path: Path) -> str:
    """The name of the wanted output. The outputs of the graph for a text of three tokens show which one it is."""
    shape = (1,) if wanted == "labels" else (1, 3)
    names = [name for name in _NAMES[wanted] if name in example]
    if not names and len(example) == 1 and not set(example) & _OTHER_NAMES:
        names = list(example)  # an old exporter's "output_0"
    for name in names:
        array = example[name]
        if array.shape[:-1] == shape and array.dtype == np.float32:
            return name
    given = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in example.items())
    what, task = _WANTED[wanted]
    raise UnsupportedError(
        f"{path} gives, for a text of three tokens: {given}. This model needs {what}; stonnx adds the pooling and what "
        "follows it, and cannot use a vector that is pooled already. Export the checkpoint again, for "
        f"example with: optimum-cli export onnx --task {task} --model MODEL DIRECTORY"
    )


def _to_current_opset(model: ir.Model, path: Path) -> None:
    """Bring every node to the form that it has in our opset."""
    version = model.graph.opset_imports.get("", OPSET)
    if version > OPSET:
        raise UnsupportedError(f"{path} has opset {version}; opsets up to {OPSET} are known.")
    with _silence("onnxscript") as messages:
        convert_version(model, OPSET, fallback=True)
    if model.graph.opset_imports.get("") != OPSET:
        reason = messages[-1] if messages else "no reason was given"
        raise ExportError(f"{path} has opset {version} and cannot be converted to {OPSET}: {reason}")
    model.ir_version = max(model.ir_version, _IR_VERSION)


def _restore_softmax(graph: ir.Graph) -> None:
    """Bring back Softmax over the last dimension, which the converter to opset 13 put Flatten and Reshape around.

    The converter does so if it does not know the number of dimensions: old nodes flatten by themselves.
    """
    for node in [node for node in graph if node.op_type == "Softmax"]:
        flatten = node.inputs[0].producer() if node.inputs[0] is not None else None
        uses = list(node.outputs[0].uses())
        if flatten is None or flatten.op_type != "Flatten" or [use.node.op_type for use in uses] != ["Reshape"]:
            continue
        original, restored = flatten.inputs[0], uses[0].node.outputs[0]
        axis = flatten.attributes["axis"].as_int() if "axis" in flatten.attributes else 1
        if original is None or original.shape is None or axis not in (-1, len(original.shape) - 1):
            continue
        node.replace_input_with(0, original)
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        node.outputs[0].shape = original.shape
        restored.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)


def _drop_token_types(graph: ir.Graph) -> None:
    types, ids = input_named(graph, "token_type_ids"), input_named(graph, "input_ids")
    if types is None or ids is None:
        return
    op = GraphBuilder(graph, before=graph[0])
    zeros = op.Expand(op.constant(np.zeros((1, 1), dtype=np.int64)), op.Shape(ids))
    zeros.shape, zeros.type = types.shape, types.type
    types.replace_all_uses_with(zeros)
    graph.inputs.remove(types)


@contextmanager
def _silence(name: str) -> Iterator[list[str]]:
    """Keep a library's log off the terminal. The list gets it, for an error message to name the cause."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            messages.append(f"{record.getMessage()} {cause or ''}".strip())

    logger, handler = logging.getLogger(name), Handler(logging.WARNING)
    before = logger.propagate, logger.handlers[:]
    logger.propagate, logger.handlers[:] = False, [handler]
    try:
        yield messages
    finally:
        logger.propagate, logger.handlers[:] = before
