"""The modules of sentence-transformers in numpy: the oracle for bundles that are made without PyTorch.

It is written from the definitions of the modules and judges the results of ``heads``. The two do not share code, and
this one computes in float64. Shapes: B texts, S tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._errors import UnsupportedError
from stonnx_export.checkpoint import modules

_Array = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.int64]


def run(
    chain: tuple[modules.Module, ...], states: npt.NDArray[np.float32], mask: _Mask, prompt_length: int = 0
) -> npt.NDArray[np.float32]:
    """Run the modules after the first on a network's output.

    Args:
        chain: The whole chain; its first module is the network.
        states: Token embeddings [B, S, H], or logits [B, S, V].
        mask: The attention mask [B, S], padding on either side.
        prompt_length: Tokens of the prompt, left out by a Pooling with ``include_prompt=False``.

    Returns:
        Vectors [B, features].
    """
    # float32 until the tokens are pooled: the logits of a long text take much memory.
    values: npt.NDArray[Any] = states
    for module in chain[1:]:
        match module:
            case modules.Pooling() if values.ndim == 3:
                values = pooling(module, values, mask, prompt_length)
            case modules.SpladePooling() if values.ndim == 3:
                values = _splade(module, values, mask)
            case modules.SparseAutoEncoder() if values.ndim == 2:
                values = _sparse_auto_encoder(module, values)
            case modules.Dense() if values.ndim == 2:
                values = _dense(module, values)
            case modules.LayerNorm() if values.ndim == 2:
                centred = values - values.mean(axis=1, keepdims=True)
                deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + module.epsilon)
                values = centred / deviation * module.weight + module.bias
            case modules.Normalize() if values.ndim == 2:
                # in float32, the epsilon of torch.nn.functional.normalize is not quite 1e-12
                values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12))
            case _:
                raise UnsupportedError(f"{type(module).__name__} at this place of the chain is not known in numpy.")
    return values.astype(np.float32)


def static_embedding(weight: npt.NDArray[np.float32], ids: list[int]) -> npt.NDArray[np.float32]:
    """The mean of a text's rows of a table [V, H]; zero for a text without tokens. [H]."""
    if not ids:
        return np.zeros(weight.shape[1], dtype=np.float32)
    mean: npt.NDArray[np.float32] = weight[ids].mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def sparse_static_embedding(weight: npt.NDArray[np.float32], ids: list[int]) -> npt.NDArray[np.float32]:
    """The weight [V] of each token that occurs in a text, zero elsewhere. [V]."""
    vector = np.zeros_like(weight)
    vector[ids] = weight[ids]
    return vector


def keep_largest(rows: npt.NDArray[np.float32], count: int | None) -> npt.NDArray[np.float32]:
    """Rows [B, V] with their ``count`` values of largest magnitude, the first of equal ones; all values for None."""
    if count is None or count >= rows.shape[1]:
        return rows
    places = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :count]
    kept = np.zeros_like(rows)
    np.put_along_axis(kept, places, np.take_along_axis(rows, places, axis=1), axis=1)
    return kept


def pooling(module: modules.Pooling, tokens: npt.NDArray[Any], mask: _Mask, prompt_length: int = 0) -> _Array:
    """Token embeddings [B, S, H] to vectors [B, modes x H], text by text."""
    wide = tokens.astype(np.float64)
    rows = [_pool(module, row, flags.astype(bool), prompt_length) for row, flags in zip(wide, mask, strict=True)]
    return np.stack(rows)


def _pool(module: modules.Pooling, tokens: _Array, real: npt.NDArray[np.bool_], prompt_length: int) -> _Array:
    """One text: [S, H] to [modes x H]."""
    position = np.arange(len(tokens))
    # Tokens are counted from the first one that is not padding. If there is none, all tokens are padding.
    start = int(real.argmax())
    used = real if module.include_prompt else real & (position >= start + prompt_length)
    none = not used.any()
    kept = tokens[used]
    zero = np.zeros(tokens.shape[1])
    parts = []
    for mode in module.modes:
        match mode:
            case "cls":
                part = tokens[0] if none else kept[0]
            case "max":
                part = np.full_like(zero, -np.inf) if none else kept.max(axis=0)
            case "mean":
                part = zero if none else kept.mean(axis=0)
            case "mean_sqrt_len_tokens":
                part = zero if none else kept.sum(axis=0) / math.sqrt(len(kept))
            case "weightedmean":
                # A token weighs as much as its number in the text, even if the prompt before it is left out.
                weights = (position - start + 1)[used]
                part = zero if none else np.average(kept, axis=0, weights=weights)
            case "lasttoken":
                part = zero if none else kept[-1]
            case _:
                raise UnsupportedError(f"Pooling mode {mode!r} is not known in numpy.")
        parts.append(part)
    return np.concatenate(parts)


def _splade(module: modules.SpladePooling, logits: npt.NDArray[Any], mask: _Mask) -> _Array:
    pooled = np.zeros((logits.shape[0], logits.shape[2]))
    for position in range(logits.shape[1]):
        weights = np.log1p(np.maximum(logits[:, position].astype(np.float64), 0.0) * mask[:, position, None])
        if module.twice:
            weights = np.log1p(weights)
        pooled = np.maximum(pooled, weights) if module.strategy == "max" else pooled + weights
    return pooled


def _sparse_auto_encoder(module: modules.SparseAutoEncoder, values: _Array) -> _Array:
    if module.normalize:
        centred = values - values.mean(axis=1, keepdims=True)
        values = centred / (centred.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    latents = (values - module.pre_bias) @ module.weight.T.astype(np.float64) + module.latent_bias
    smallest = np.partition(latents, -module.k, axis=1)[:, -module.k, None]
    return np.where(latents >= smallest, np.maximum(latents, 0.0), 0.0)


def _dense(module: modules.Dense, values: _Array) -> _Array:
    result = values @ module.weight.T.astype(np.float64)
    if module.bias is not None:
        result = result + module.bias
    result = ACTIVATIONS[module.activation](result)
    if not module.residual:
        return result
    straight = values if module.residual_weight is None else values @ module.residual_weight.T.astype(np.float64)
    return result + straight


def _softmax(x: _Array) -> _Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: _Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


# Klambauer et al., "Self-Normalizing Neural Networks", arXiv:1706.02515, appendix A1.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# In float64, and apart from the runtime's functions in float32: both the graph and those are compared with these.
# These never take exp of large numbers: float64 would overflow, and the tests turn that warning into an error.
ACTIVATIONS: Mapping[str, Callable[[_Array], _Array]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": lambda x: (1 + np.tanh(x / 2)) / 2,
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "selu": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0.0))),
    "mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "hardtanh": lambda x: np.clip(x, -1.0, 1.0),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0.0),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0.0),
    "tanhshrink": lambda x: x - np.tanh(x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "softmax": _softmax,
    "softmin": lambda x: _softmax(-x),
    "log_softmax": lambda x: x - np.logaddexp.reduce(x, axis=-1, keepdims=True),
}
