"""Turns a PyTorch network into an ONNX graph: ids and mask enter, token embeddings or logits leave."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch

from stonnx._errors import UnsupportedError
from stonnx_export.graph.builder import OPSET
from stonnx_export.graph.read import last_dimension

Output = Literal["last_hidden_state", "logits", "hidden_states"]

# The size of the traced example. A network is unlikely to have these dimensions by chance. Neither of them is 1,
# because the tracer would take 1 for a constant.
_BATCH, _SEQUENCE = 2, 7


class _Network(torch.nn.Module):  # type: ignore[misc]
    """A transformers model with the inputs and the output that a bundle needs."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.output = output

    def forward(self, *values: torch.Tensor) -> Any:
        feeds: dict[str, Any] = dict(zip(self.inputs, values, strict=True))
        if self.output == "hidden_states":
            feeds["output_hidden_states"] = True
        return getattr(self.model(**feeds, return_dict=True), self.output)


class _Chain(torch.nn.Module):  # type: ignore[misc]
    """All modules of a sentence-transformers model, with a vector or scores as output, and token embeddings if any."""

    def __init__(self, modules: Sequence[torch.nn.Module], inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.chain = torch.nn.ModuleList(modules)
        self.inputs = inputs
        self.output = output

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features: dict[str, Any] = dict(zip(self.inputs, values, strict=True))
        for module in self.chain:
            features = module(features)
        tokens = features.get("token_embeddings")
        return (features[self.output],) if tokens is None else (features[self.output], tokens)


def trace(model: torch.nn.Module, *, token_types: bool, output: Output = "last_hidden_state") -> ir.Model:
    """Trace a transformers model.

    Args:
        model: The network, in float32.
        token_types: Whether its tokenizer tells the two texts of a pair apart by ``token_type_ids``.
        output: The result to read: ``"last_hidden_state"``, ``"logits"``, or the ``"hidden_states"`` of every layer.

    Returns:
        A graph with the inputs ``input_ids``, ``attention_mask`` and, if used, ``token_type_ids``, all int64
        [batch, sequence], and float32 outputs [batch, sequence, features], or [batch, labels] for a classifier.

    Raises:
        UnsupportedError: The code of the network does something that a graph cannot express.
    """
    names = _input_names(model, token_types)
    traced = _trace(_Network(model, names, output), names, model)
    _name_by_module(traced.graph)
    return traced


def trace_answers(model: torch.nn.Module, tokens: Sequence[int]) -> ir.Model:
    """Trace a causal language model, with the rows of its vocabulary product that belong to a few tokens only.

    Args:
        model: The network, in float32.
        tokens: The tokens.

    Returns:
        A graph as of :func:`trace`, with the logits of these tokens [batch, sequence, tokens].

    Raises:
        UnsupportedError: The network has no such product, or does something that a graph cannot express.
    """
    head = model.get_output_embeddings()
    kind = getattr(model.config, "model_type", type(model).__name__)
    if not isinstance(head, torch.nn.Linear):
        raise UnsupportedError(
            f"Causal language models of type {kind!r} cannot be exported: their logits are not a linear layer of the "
            "vocabulary."
        )
    beyond = [token for token in tokens if not 0 <= token < head.out_features]
    if beyond:
        raise UnsupportedError(
            f"The LogitScore module reads the token {beyond[0]}, and the network has logits for {head.out_features} "
            "tokens. Set true_token_id and false_token_id in its config.json to ids of the vocabulary."
        )
    few = torch.nn.Linear(head.in_features, len(tokens), bias=head.bias is not None)
    rows = list(tokens)
    with torch.no_grad():
        few.weight.copy_(head.weight[rows])
        if head.bias is not None:
            few.bias.copy_(head.bias[rows])
    model.set_output_embeddings(few)
    try:
        return trace(model, token_types=False, output="logits")
    finally:
        model.set_output_embeddings(head)


def trace_chain(modules: Sequence[torch.nn.Module], output: str, *, token_types: bool) -> ir.Model:
    """Trace all modules of a model together.

    Args:
        modules: The modules, the first of which reads ids.
        output: The feature that is the result: ``"sentence_embedding"`` or ``"scores"``.
        token_types: As for :func:`trace`.

    Returns:
        A graph with the inputs of :func:`trace`, and as outputs the result [batch, features] and, if there are any, the
        token embeddings [batch, sequence, features].

    Raises:
        UnsupportedError: The code of a module does something that a graph cannot express.
    """
    network = getattr(modules[0], "auto_model", modules[0])
    names = _input_names(network, token_types)
    return _trace(_Chain(modules, names, output), names, network)


class _Tower(torch.nn.Module):  # type: ignore[misc]
    """One half of a network that gives texts and images vectors in the same space."""

    def __init__(self, model: torch.nn.Module, method: str, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.inputs = inputs

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        found = getattr(self.model, self.method)(**dict(zip(self.inputs, values, strict=True)))
        # transformers 4 gives the vector itself.
        vector: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
        return vector


def trace_texts(model: torch.nn.Module) -> ir.Model:
    """Trace the half of a CLIP network that reads texts: as :func:`trace`, with a vector [batch, features]."""
    names = ("input_ids", "attention_mask")
    traced = _trace(_Tower(model, "get_text_features", names), names, model)
    _name_by_module(traced.graph)
    return traced


def trace_images(model: torch.nn.Module, size: int) -> ir.Model:
    """Trace the half of a CLIP network that reads images.

    Returns:
        A graph with the input ``pixel_values``, float32 [batch, 3, size, size], and a vector [batch, features].

    Raises:
        UnsupportedError: The code of the network does something that a graph cannot express.
    """
    names = ("pixel_values",)
    example = (torch.zeros(_BATCH, 3, size, size),)
    traced = _exported(_Tower(model, "get_image_features", names), names, example, {0: torch.export.Dim.DYNAMIC}, model)
    traced.graph.inputs[0].shape = ir.Shape(("batch", 3, size, size))
    vector = traced.graph.outputs[0]
    vector.shape = ir.Shape(("batch", last_dimension(vector)))
    _name_by_module(traced.graph)
    return traced


def _input_names(model: torch.nn.Module, token_types: bool) -> tuple[str, ...]:
    has_types = token_types and "token_type_ids" in inspect.signature(model.forward).parameters
    return ("input_ids", "attention_mask", "token_type_ids") if has_types else ("input_ids", "attention_mask")


def _trace(traceable: torch.nn.Module, names: tuple[str, ...], model: torch.nn.Module) -> ir.Model:
    ids = torch.full((_BATCH, _SEQUENCE), 1, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, _SEQUENCE - 2 :] = 0
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    dimensions = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    traced = _exported(traceable, names, tuple(example[name] for name in names), dimensions, model)
    for value in traced.graph.inputs:
        value.shape = ir.Shape(("batch", "sequence"))
    for value in traced.graph.outputs:
        features = last_dimension(value)
        rank = 2 if value.shape is not None and len(value.shape) == 2 else 3
        value.shape = ir.Shape(("batch", "sequence", features) if rank == 3 else ("batch", features))
    return traced


def _exported(
    traceable: torch.nn.Module,
    names: tuple[str, ...],
    example: tuple[torch.Tensor, ...],
    dimensions: dict[int, Any],
    model: torch.nn.Module,
) -> ir.Model:
    with _refused(model), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            traceable.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            dynamic_shapes=(tuple(dimensions for _ in names),),
            verbose=False,
        )
    assert program is not None
    traced: ir.Model = program.model
    return traced


def _name_by_module(graph: ir.Graph) -> None:
    """Name results after the module and the operator that they come from, because reports name layers."""
    counts: dict[str, int] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        value = node.outputs[0]
        # The last scope is torch's operator; the first module of a path is _Network's `model`.
        module = scopes[-2].split(".") if len(scopes) > 1 else []
        if module[:1] != ["model"] or value.is_graph_output():
            continue
        name = f"{'.'.join(module[1:])}/{node.op_type}".removeprefix("/")
        counts[name] = counts.get(name, 0) + 1
        value.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


@contextlib.contextmanager
def _refused(model: torch.nn.Module) -> Iterator[None]:
    """Turn every error of the tracer or the network into a readable one: the tracer's own contains the graph."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UnsupportedError(
            f"Networks of type {kind!r} cannot be exported from PyTorch: tracing this one ended in "
            f"{type(cause).__name__}: {reason:.300}\n"
            "If the checkpoint has its network as onnx/model.onnx, export that: --source onnx"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer, which logs and warns about matters of its own that a user cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # It prints, too: steps on the standard output and, if it fails, the graph so far on the standard error.
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
