"""The modules of a checkpoint, as ONNX nodes: everything in a bundle's graph except the network itself.

Each function takes values of the graph and returns a value. Shapes in comments: B texts, S tokens, H hidden size, V
vocabulary. The definitions are those of sentence-transformers' modules of the same names.
"""

from __future__ import annotations

import onnx_ir as ir

from stonnx._errors import UnsupportedError
from stonnx._tasks import TASKS, Task
from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import input_named, last_dimension
from stonnx_export.heads.activations import ACTIVATIONS
from stonnx_export.heads.dense import dense, layer_norm, normalize
from stonnx_export.heads.logit_score import logit_score
from stonnx_export.heads.pooling import pool, weighted_layers
from stonnx_export.heads.rows import RowMask, row_mask
from stonnx_export.heads.sparse import sparse_auto_encoder, splade


def graft(
    model: ir.Model, chain: tuple[modules.Module, ...], *, task: Task = "embedding", rows: RowMask | None = None
) -> None:
    """Append the modules after the first to a graph, and give it the outputs of its task.

    ``embedding`` has ``sentence_embedding`` [B, dim] and, if there are tokens, ``token_embeddings`` [B, S, H];
    ``sparse`` has ``sparse_embedding`` [B, dim], ``rerank`` has ``logits`` [B, labels]; ``multivector`` has
    ``token_embeddings`` [B, S, dim] and ``row_mask`` [B, S], of ``rows``. The given graph has the input
    ``attention_mask`` [B, S], unless it reads images. Its outputs are the token embeddings [B, S, H], the logits
    [B, S, V] of the vocabulary or of some of its tokens, the hidden states of every layer, or the vector [B, H] of a
    module that gives one directly.
    """
    graph = model.graph
    op = GraphBuilder(graph)
    mask = input_named(graph, "attention_mask")
    states = list(graph.outputs)
    tokens: ir.Value | None = states[-1]
    vector: ir.Value | None = None
    if not isinstance(chain[0], modules.Transformer) or modules.reads_images(chain):
        tokens, vector = None, states[0]
    for module in chain[1:]:
        if isinstance(module, modules.WeightedLayerPooling) and tokens is not None:
            tokens = weighted_layers(op, module, states)
        elif isinstance(module, modules.Pooling) and tokens is not None and mask is not None:
            vector = pool(op, module, tokens, mask)
        elif isinstance(module, modules.SpladePooling) and tokens is not None and mask is not None:
            vector = splade(op, module, tokens, mask)
        elif isinstance(module, modules.LogitScore) and tokens is not None and mask is not None:
            vector = logit_score(op, module, tokens, mask)
        elif isinstance(module, modules.Dense) and module.tokens and tokens is not None:
            tokens = dense(op, module, tokens)
        elif isinstance(module, modules.Normalize) and module.tokens and tokens is not None:
            tokens = normalize(op, tokens)
        elif isinstance(module, modules.MultiVectorMask | modules.HierarchicalTokenPooling) and rows is not None:
            continue  # one is an output of its own, the other belongs to the runtime
        elif vector is None:
            raise UnsupportedError(f"{type(module).__name__} before a Pooling module cannot be exported.")
        elif isinstance(module, modules.SparseAutoEncoder):
            vector = sparse_auto_encoder(op, module, vector)
        elif isinstance(module, modules.Dense):
            vector = dense(op, module, vector)
        elif isinstance(module, modules.LayerNorm):
            vector = layer_norm(op, module, vector)
        elif isinstance(module, modules.Normalize):
            vector = normalize(op, vector)
        else:
            raise UnsupportedError(f"{type(module).__name__} cannot be exported at this place of the chain.")
    if rows is not None and tokens is not None:
        width = token_dimension(chain, last_dimension(states[-1]))
        op.name_output(tokens, TASKS[task].output, ("batch", "sequence", width))
        graph.outputs[:] = [tokens, row_mask(op, rows, str(TASKS[task].row_mask))]
        return
    if vector is None:
        raise UnsupportedError("A chain without a Pooling module gives no sentence embedding.")
    features = last_dimension(states[-1])
    op.name_output(vector, TASKS[task].output, ("batch", output_dimension(chain, features)))
    graph.outputs[:] = [vector]
    token_output = TASKS[task].token_output
    if token_output is not None and tokens is not None:
        op.name_output(tokens, token_output, ("batch", "sequence", token_dimension(chain, features)))
        graph.outputs.append(tokens)


def graft_scores(model: ir.Model, activation: str) -> None:
    """Give a graph, whose output is [B, labels], the outputs ``logits`` and ``scores``."""
    graph = model.graph
    op = GraphBuilder(graph)
    logits = graph.outputs[0]
    labels = last_dimension(logits)
    scores = op.Identity(logits) if activation == "identity" else ACTIVATIONS[activation](op, logits)
    op.name_output(logits, "logits", ("batch", labels))
    op.name_output(scores, "scores", ("batch", labels))
    graph.outputs[:] = [logits, scores]


def name_outputs(model: ir.Model, task: Task, activation: str | None) -> None:
    """Give the outputs of its task to a graph that has all modules already: see ``Original.graph``."""
    graph = model.graph
    if task == "rerank":
        del graph.outputs[1:]
        graft_scores(model, activation or "identity")
        return
    op = GraphBuilder(graph)
    vector, tokens = graph.outputs[0], graph.outputs[1] if len(graph.outputs) > 1 else None
    if vector.shape is None or len(vector.shape) != 2:
        raise UnsupportedError("The last module of the chain gives no vector for each text.")
    name = "sparse_embedding" if task == "sparse" else "sentence_embedding"
    op.name_output(vector, name, ("batch", last_dimension(vector)))
    graph.outputs[:] = [vector]
    if task == "embedding" and tokens is not None:
        op.name_output(tokens, "token_embeddings", ("batch", "sequence", last_dimension(tokens)))
        graph.outputs.append(tokens)


def output_dimension(chain: tuple[modules.Module, ...], size: int) -> int:
    """Dimensions of the vector that a chain ends with, if its first module gives ``size``."""
    for module in chain:
        match module:
            case modules.Pooling():
                size *= len(module.modes)
            case modules.Dense() | modules.SparseAutoEncoder():
                size = module.weight.shape[0]
            case modules.LogitScore():
                size = 1
    return size


def token_dimension(chain: tuple[modules.Module, ...], size: int) -> int:
    """Dimensions of the vectors of tokens that a chain ends with, if its first module gives ``size``."""
    layers = [module for module in chain if isinstance(module, modules.Dense) and module.tokens]
    return int(layers[-1].weight.shape[0]) if layers else size
