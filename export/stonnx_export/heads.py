"""The modules behind the network, as ONNX nodes: pooling, Dense, LayerNorm, Normalize.

Each function takes values of the graph and returns a value. Shapes in comments: B texts, S tokens, H hidden size. The
definitions are those of sentence-transformers' modules of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._errors import UnsupportedError
from stonnx_export import checkpoint
from stonnx_export.graph import GraphBuilder, last_dimension


def graft(model: ir.Model, chain: tuple[checkpoint.Module, ...]) -> None:
    """Append the modules after the network to its graph, which then has the outputs ``sentence_embedding`` and
    ``token_embeddings``.

    The graph must have the input ``attention_mask`` [B, S] and one output [B, S, H].
    """
    graph = model.graph
    op = GraphBuilder(graph)
    tokens = graph.outputs[0]
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    vector: ir.Value | None = None
    for module in chain[1:]:
        if isinstance(module, checkpoint.Pooling):
            vector = pool(op, module, tokens, mask)
        elif vector is None:
            raise UnsupportedError(f"{type(module).__name__} before Pooling cannot be exported.")
        elif isinstance(module, checkpoint.Dense):
            vector = dense(op, module, vector)
        elif isinstance(module, checkpoint.LayerNorm):
            vector = layer_norm(op, module, vector)
        elif isinstance(module, checkpoint.Normalize):
            vector = normalize(op, vector)
    if vector is None:
        raise UnsupportedError("A chain without a Pooling module gives no sentence embedding.")
    hidden_size = last_dimension(tokens)
    op.name_output(vector, "sentence_embedding", ("batch", output_dimension(chain, hidden_size)))
    op.name_output(tokens, "token_embeddings", ("batch", "sequence", hidden_size))
    graph.outputs[:] = [vector, tokens]


def output_dimension(chain: tuple[checkpoint.Module, ...], hidden_size: int) -> int:
    """Dimensions of the sentence embedding."""
    dimension = hidden_size
    for module in chain:
        if isinstance(module, checkpoint.Pooling):
            dimension = hidden_size * len(module.modes)
        elif isinstance(module, checkpoint.Dense):
            dimension = module.weight.shape[0]
    return dimension


def pool(op: GraphBuilder, module: checkpoint.Pooling, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """Token embeddings [B, S, H] and mask [B, S] to vectors [B, modes x H]."""
    used = mask
    if not module.include_prompt:
        # The first `prompt_length` tokens do not count. 0, the default, leaves every token in.
        prompt_length = op.optional_input("prompt_length", np.array(0, dtype=np.int64), ())
        width = op.Shape(mask, start=1, end=2)
        positions = op.Range(op.scalar(0), op.Squeeze(width), op.scalar(1))
        kept = op.Cast(op.GreaterOrEqual(positions, prompt_length), to=ir.DataType.INT64)
        used = op.Mul(mask, kept)
    vectors = [_POOLINGS[mode](op, tokens, used) for mode in module.modes]
    return vectors[0] if len(vectors) == 1 else op.Concat(*vectors, axis=-1)


def _sum(op: GraphBuilder, tokens: ir.Value, weights: ir.Value) -> ir.Value:
    # [B, S, H], [B, S] -> [B, H]: a product with the weights as a row reads the tokens once.
    return op.Squeeze(op.MatMul(op.Unsqueeze(weights, op.vector([1])), tokens), op.vector([1]))


def _weighted_mean(op: GraphBuilder, tokens: ir.Value, weights: ir.Value, square_root: bool = False) -> ir.Value:
    total = op.ReduceSum(weights, op.vector([1]), keepdims=1)
    total = op.Max(total, op.constant(np.array(1e-9, dtype=np.float32)))
    return op.Div(_sum(op, tokens, weights), op.Sqrt(total) if square_root else total)


def _mean(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    return _weighted_mean(op, tokens, op.Cast(mask, to=ir.DataType.FLOAT))


def _mean_sqrt_len_tokens(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    return _weighted_mean(op, tokens, op.Cast(mask, to=ir.DataType.FLOAT), square_root=True)


def _position_weighted_mean(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    width = op.Squeeze(op.Shape(mask, start=1, end=2))
    positions = op.Range(op.scalar(1), op.Add(width, op.scalar(1)), op.scalar(1))
    return _weighted_mean(op, tokens, op.Cast(op.Mul(mask, positions), to=ir.DataType.FLOAT))


def _max(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    kept = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([2]))
    lowest = op.constant(np.array(-np.inf, dtype=np.float32))
    return op.ReduceMax(op.Where(kept, tokens, lowest), op.vector([1]), keepdims=0)


def _first(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The first token that counts: position 0, or the first behind an excluded prompt.
    index = op.ArgMax(op.Cast(mask, to=ir.DataType.INT32), axis=1, keepdims=1)
    return op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))


def _last(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The last token that counts. Without any, the last of all is taken, times its mask of zero.
    flags = op.Cast(mask, to=ir.DataType.INT32)
    index = op.ArgMax(flags, axis=1, keepdims=1, select_last_index=1)
    picked = op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))
    any_token = op.ReduceMax(op.Cast(mask, to=ir.DataType.FLOAT), op.vector([1]), keepdims=1)
    return op.Mul(picked, any_token)


_POOLINGS: Mapping[str, Callable[[GraphBuilder, ir.Value, ir.Value], ir.Value]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last,
}


def dense(op: GraphBuilder, module: checkpoint.Dense, vector: ir.Value) -> ir.Value:
    """activation(x W^T + b), with a residual connection around it where the module has one."""
    result = _linear(op, vector, module.weight, module.bias)
    result = ACTIVATIONS[module.activation](op, result)
    if not module.residual:
        return result
    residual = vector if module.residual_weight is None else _linear(op, vector, module.residual_weight, None)
    return op.Add(result, residual)


def _linear(
    op: GraphBuilder, vector: ir.Value, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None
) -> ir.Value:
    product = op.MatMul(vector, op.constant(np.ascontiguousarray(weight.T)))
    return product if bias is None else op.Add(product, op.constant(bias))


ACTIVATIONS: Mapping[str, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "identity": lambda op, x: x,
    "tanh": lambda op, x: op.Tanh(x),
    "sigmoid": lambda op, x: op.Sigmoid(x),
    "relu": lambda op, x: op.Relu(x),
    "gelu": lambda op, x: op.Gelu(x),
    "silu": lambda op, x: op.Mul(x, op.Sigmoid(x)),
    "leaky_relu": lambda op, x: op.LeakyRelu(x, alpha=0.01),
    "softplus": lambda op, x: op.Softplus(x),
    "elu": lambda op, x: op.Elu(x, alpha=1.0),
}


def layer_norm(op: GraphBuilder, module: checkpoint.LayerNorm, vector: ir.Value) -> ir.Value:
    """Layer normalization over the last dimension."""
    weight, bias = op.constant(module.weight), op.constant(module.bias)
    return op.LayerNormalization(vector, weight, bias, axis=-1, epsilon=module.epsilon)


def normalize(op: GraphBuilder, vector: ir.Value) -> ir.Value:
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize."""
    norm = op.ReduceL2(vector, op.vector([-1]), keepdims=1)
    return op.Div(vector, op.Max(norm, op.constant(np.array(1e-12, dtype=np.float32))))
