"""The modules of a checkpoint, as ONNX nodes: everything of a bundle's graph but the network itself.

Each function takes values of the graph and returns a value. Shapes in comments: B texts, S tokens, H hidden size, V
vocabulary. The definitions are those of sentence-transformers' modules of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._bundle import Task
from stonnx._errors import UnsupportedError
from stonnx_export import modules
from stonnx_export.graph import OPSET, GraphBuilder, last_dimension


def graft(model: ir.Model, chain: tuple[modules.Module, ...], *, task: Task = "embedding") -> None:
    """Append the modules after the first to a graph, and give it the outputs of its task.

    ``embedding`` has ``sentence_embedding`` [B, dim] and, where there are tokens, ``token_embeddings`` [B, S, H];
    ``sparse`` has ``sparse_embedding`` [B, dim]. The graph has the input ``attention_mask`` [B, S], and as outputs the
    token embeddings [B, S, H], the logits [B, S, V], the hidden states of every layer, or the vector [B, H] of a module
    that gives one at once.
    """
    graph = model.graph
    op = GraphBuilder(graph)
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    states = list(graph.outputs)
    tokens: ir.Value | None = states[-1]
    vector: ir.Value | None = None
    if not isinstance(chain[0], modules.Transformer):
        tokens, vector = None, states[0]
    for module in chain[1:]:
        if isinstance(module, modules.WeightedLayerPooling) and tokens is not None:
            tokens = weighted_layers(op, module, states)
        elif isinstance(module, modules.Pooling) and tokens is not None:
            vector = pool(op, module, tokens, mask)
        elif isinstance(module, modules.SpladePooling) and tokens is not None:
            vector = splade(op, module, tokens, mask)
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
    if vector is None:
        raise UnsupportedError("A chain without a Pooling module gives no sentence embedding.")
    features = last_dimension(states[-1])
    name = "sparse_embedding" if task == "sparse" else "sentence_embedding"
    op.name_output(vector, name, ("batch", output_dimension(chain, features)))
    graph.outputs[:] = [vector]
    if task == "embedding" and tokens is not None:
        op.name_output(tokens, "token_embeddings", ("batch", "sequence", features))
        graph.outputs.append(tokens)


def graft_scores(model: ir.Model, activation: str) -> None:
    """Give a classification network, whose output is [B, labels], the outputs ``logits`` and ``scores``."""
    graph = model.graph
    op = GraphBuilder(graph)
    logits = graph.outputs[0]
    labels = last_dimension(logits)
    scores = op.Identity(logits) if activation == "identity" else ACTIVATIONS[activation](op, logits)
    op.name_output(logits, "logits", ("batch", labels))
    op.name_output(scores, "scores", ("batch", labels))
    graph.outputs[:] = [logits, scores]


def output_dimension(chain: tuple[modules.Module, ...], size: int) -> int:
    """Dimensions of the vector that a chain ends with, where its first module gives ``size``."""
    for module in chain:
        match module:
            case modules.Pooling():
                size *= len(module.modes)
            case modules.Dense() | modules.SparseAutoEncoder():
                size = module.weight.shape[0]
    return size


def static_embedding(weight: npt.NDArray[np.float32]) -> ir.Model:
    """A graph without a network: the mean of the rows of a table [V, H]; zero for a text without tokens."""
    model, op, ids, mask = _empty_graph()
    tokens = op.Gather(op.constant(weight, "embeddings"), ids, axis=0)
    vector = _mean(op, tokens, mask)
    op.name_output(vector, "vector", ("batch", weight.shape[1]))
    model.graph.outputs.append(vector)
    return model


def sparse_static_embedding(weight: npt.NDArray[np.float32]) -> ir.Model:
    """A graph without a network: the weights [V] of the tokens that occur in a text, zero elsewhere."""
    model, op, ids, mask = _empty_graph()
    table = op.constant(weight, "weights")
    shape = op.Concat(op.Shape(ids, start=0, end=1), op.vector([len(weight)]), axis=0)
    zeros = op.Expand(op.constant(np.zeros(1, dtype=np.float32)), shape)
    # The maximum, since the id of padding may be that of a token that occurs.
    present = op.ScatterElements(zeros, ids, op.Cast(mask, to=ir.DataType.FLOAT), axis=1, reduction="max")
    vector = op.Mul(present, table)
    op.name_output(vector, "vector", ("batch", len(weight)))
    model.graph.outputs.append(vector)
    return model


def _empty_graph() -> tuple[ir.Model, GraphBuilder, ir.Value, ir.Value]:
    inputs = [
        ir.Value(name=name, shape=ir.Shape(("batch", "sequence")), type=ir.TensorType(ir.DataType.INT64))
        for name in ("input_ids", "attention_mask")
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET}, name="main_graph")
    return ir.Model(graph, ir_version=11), GraphBuilder(graph), inputs[0], inputs[1]


def weighted_layers(op: GraphBuilder, module: modules.WeightedLayerPooling, states: list[ir.Value]) -> ir.Value:
    """The weighted mean of the hidden states [B, S, H] from one layer on."""
    weights = module.weights / module.weights.sum()
    used = states[module.layer_start :]
    if len(used) != len(weights):
        raise UnsupportedError(f"WeightedLayerPooling has {len(weights)} weights for {len(used)} layers.")
    return op.Sum(*(op.Mul(state, op.constant(np.array(w))) for state, w in zip(used, weights, strict=True)))


def splade(op: GraphBuilder, module: modules.SpladePooling, logits: ir.Value, mask: ir.Value) -> ir.Value:
    """Logits [B, S, V] to term weights [B, V]: log1p(relu(x)), once or twice, then the maximum or sum over tokens.

    ReLU and log1p are monotone, so the maximum is taken before them: on V numbers instead of S x V.
    """

    def saturate(x: ir.Value) -> ir.Value:
        x = _log1p(op, op.Relu(x))
        return _log1p(op, x) if module.twice else x

    if module.strategy == "max":
        # Without a token there is nothing to take the maximum of; ReLU turns that -inf into 0.
        return saturate(_max(op, logits, mask))
    return _sum(op, saturate(logits), op.Cast(mask, to=ir.DataType.FLOAT))


def _log1p(op: GraphBuilder, x: ir.Value) -> ir.Value:
    # ONNX has no log1p, and log(1 + x) loses small x. With u = 1 + x as it was rounded, log(u) x / (u - 1) does not:
    # W. Kahan's formula; Higham, "Accuracy and Stability of Numerical Algorithms", section 1.14.1.
    one = op.constant(np.array(1.0, dtype=np.float32))
    rounded = op.Add(x, one)
    difference = op.Sub(rounded, one)
    lost = op.Equal(difference, op.constant(np.array(0.0, dtype=np.float32)))
    return op.Where(lost, x, op.Div(op.Mul(op.Log(rounded), x), op.Where(lost, one, difference)))


def sparse_auto_encoder(op: GraphBuilder, module: modules.SparseAutoEncoder, vector: ir.Value) -> ir.Value:
    """The k largest latents of a vector [B, H], behind a ReLU; the others are zero."""
    if module.normalize:
        centred = op.Sub(vector, op.ReduceMean(vector, op.vector([-1]), keepdims=1))
        squares = op.ReduceSumSquare(centred, op.vector([-1]), keepdims=1)
        # torch's std divides by H - 1.
        degrees = op.constant(np.array(module.weight.shape[1] - 1, dtype=np.float32))
        std = op.Sqrt(op.Div(squares, degrees))
        vector = op.Div(centred, op.Add(std, op.constant(np.array(1e-5, dtype=np.float32))))
    latents = _linear(op, op.Sub(vector, op.constant(module.pre_bias)), module.weight, module.latent_bias)
    values, indices = op.multiple("TopK", latents, op.vector([module.k]), outputs=2, axis=-1)
    zeros = op.Sub(latents, latents)
    return op.Relu(op.ScatterElements(zeros, indices, values, axis=1))


def pool(op: GraphBuilder, module: modules.Pooling, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    """Token embeddings [B, S, H] and mask [B, S] to vectors [B, modes x H]."""
    used = mask
    if not module.include_prompt:
        # The first `prompt_length` tokens do not count. 0, the default, leaves every token in.
        prompt_length = op.optional_input("prompt_length", np.array(0, dtype=np.int64), ())
        width = op.Shape(mask, start=1, end=2)
        positions = op.Range(op.scalar(0), op.Squeeze(width), op.scalar(1))
        kept = op.Cast(op.GreaterOrEqual(positions, prompt_length), to=ir.DataType.INT64)
        used = op.Mul(mask, kept)
    poolings = _POOLINGS if used is mask else _POOLINGS | {"cls": _first_used}
    vectors = [poolings[mode](op, tokens, used) for mode in module.modes]
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
    # Padding is on the right.
    return op.Gather(tokens, op.scalar(0), axis=1)


def _first_used(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The first token that counts, behind an excluded prompt.
    index = op.ArgMax(op.Cast(mask, to=ir.DataType.INT32), axis=1, keepdims=1)
    return op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))


def _last(op: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> ir.Value:
    # The last token that counts. Without any, the last of all is taken, times its mask of zero.
    flags = op.Cast(mask, to=ir.DataType.INT32)
    index = op.ArgMax(flags, axis=1, keepdims=1, select_last_index=1)
    picked = op.Squeeze(op.GatherND(tokens, op.Unsqueeze(index, op.vector([2])), batch_dims=1), op.vector([1]))
    any_token = op.ReduceMax(op.Cast(mask, to=ir.DataType.FLOAT), op.vector([1]), keepdims=1)
    return op.Mul(picked, any_token)


_POOLINGS: dict[str, Callable[[GraphBuilder, ir.Value, ir.Value], ir.Value]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last,
}


def dense(op: GraphBuilder, module: modules.Dense, vector: ir.Value) -> ir.Value:
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
    # With alpha = 1, its default, the same function.
    "celu": lambda op, x: op.Elu(x, alpha=1.0),
    "selu": lambda op, x: op.Selu(x),
    "mish": lambda op, x: op.Mul(x, op.Tanh(op.Softplus(x))),
    "relu6": lambda op, x: _clip(op, x, 0.0, 6.0),
    "hardtanh": lambda op, x: _clip(op, x, -1.0, 1.0),
    "hardsigmoid": lambda op, x: op.HardSigmoid(x, alpha=1 / 6, beta=0.5),
    "hardswish": lambda op, x: op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5)),
    "hardshrink": lambda op, x: op.Shrink(x, bias=0.0, lambd=0.5),
    "softshrink": lambda op, x: op.Shrink(x, bias=0.5, lambd=0.5),
    "tanhshrink": lambda op, x: op.Sub(x, op.Tanh(x)),
    "softsign": lambda op, x: op.Softsign(x),
    "log_sigmoid": lambda op, x: op.Neg(op.Softplus(op.Neg(x))),
    "softmax": lambda op, x: op.Softmax(x, axis=-1),
    "softmin": lambda op, x: op.Softmax(op.Neg(x), axis=-1),
    "log_softmax": lambda op, x: op.LogSoftmax(x, axis=-1),
}


def _clip(op: GraphBuilder, x: ir.Value, lowest: float, highest: float) -> ir.Value:
    return op.Clip(x, *(op.constant(np.array(bound, dtype=np.float32)) for bound in (lowest, highest)))


def layer_norm(op: GraphBuilder, module: modules.LayerNorm, vector: ir.Value) -> ir.Value:
    """Layer normalization over the last dimension."""
    weight, bias = op.constant(module.weight), op.constant(module.bias)
    return op.LayerNormalization(vector, weight, bias, axis=-1, epsilon=module.epsilon)


def normalize(op: GraphBuilder, vector: ir.Value) -> ir.Value:
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize."""
    norm = op.ReduceL2(vector, op.vector([-1]), keepdims=1)
    return op.Div(vector, op.Max(norm, op.constant(np.array(1e-12, dtype=np.float32))))
