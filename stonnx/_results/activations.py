"""Activations of rerankers, logits to scores: the names that manifests use, and torch's classes for them, in numpy.

Each function except softmax and its kin computes elementwise. All keep shape and float32. The definitions are those of
the classes of ``torch.nn``: https://docs.pytorch.org/docs/stable/nn.html#non-linear-activations-weighted-sum-nonlinearity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidArgumentError, UnsupportedError

FloatArray: TypeAlias = npt.NDArray[np.float32]
Activation: TypeAlias = Callable[[FloatArray], Any]

_erfc = np.vectorize(math.erfc, otypes=[np.float32])


def identity(x: FloatArray) -> FloatArray:
    """x."""
    return x


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow for negative x.

    Example:
        >>> sigmoid(np.array([-1000.0, 0.0], dtype=np.float32))
        array([0. , 0.5], dtype=float32)
    """
    result: FloatArray = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    return result


def tanh(x: FloatArray) -> FloatArray:
    """The hyperbolic tangent."""
    return np.tanh(x)


def relu(x: FloatArray) -> FloatArray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def gelu(x: FloatArray, approximate: str = "none") -> FloatArray:
    """x times the normal distribution's probability below x; with ``approximate="tanh"`` its usual approximation."""
    if approximate == "tanh":
        return x * sigmoid(np.float32(2 * math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))
    below: FloatArray = _erfc(x / np.float32(-math.sqrt(2))) / 2
    return x * below


def silu(x: FloatArray) -> FloatArray:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def leaky_relu(x: FloatArray, negative_slope: float = 0.01) -> FloatArray:
    """x, times ``negative_slope`` below zero."""
    return np.where(x >= 0, x, x * np.float32(negative_slope))


def softplus(x: FloatArray, beta: float = 1.0, threshold: float = 20.0) -> FloatArray:
    """log(1 + exp(beta x)) / beta, or x itself if beta x is above ``threshold``."""
    scaled = x * np.float32(beta)
    return np.where(scaled > threshold, x, np.logaddexp(scaled, np.float32(0)) / np.float32(beta))


def elu(x: FloatArray, alpha: float = 1.0) -> FloatArray:
    """x, and ``alpha`` (exp(x) - 1) below zero."""
    return np.where(x > 0, x, np.float32(alpha) * np.expm1(np.minimum(x, 0)))


def celu(x: FloatArray, alpha: float = 1.0) -> FloatArray:
    """x, and ``alpha`` (exp(x / alpha) - 1) below zero."""
    return np.where(x > 0, x, np.float32(alpha) * np.expm1(np.minimum(x, 0) / np.float32(alpha)))


def selu(x: FloatArray) -> FloatArray:
    """A scaled :func:`elu`; the constants are those of arXiv:1706.02515, appendix A1."""
    return np.float32(1.0507009873554805) * elu(x, 1.6732632423543772)


def mish(x: FloatArray) -> FloatArray:
    """x tanh(log(1 + exp(x)))."""
    return x * np.tanh(np.logaddexp(x, np.float32(0)))


def hardtanh(x: FloatArray, min_val: float = -1.0, max_val: float = 1.0) -> FloatArray:
    """x, between ``min_val`` and ``max_val``."""
    return np.clip(x, np.float32(min_val), np.float32(max_val))


def relu6(x: FloatArray) -> FloatArray:
    """x, between 0 and 6."""
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: FloatArray) -> FloatArray:
    """x / 6 + 1 / 2, between 0 and 1."""
    return relu6(x + np.float32(3)) / np.float32(6)


def hardswish(x: FloatArray) -> FloatArray:
    """x times its :func:`hardsigmoid`."""
    return x * hardsigmoid(x)


def hardshrink(x: FloatArray, lambd: float = 0.5) -> FloatArray:
    """x, and 0 between -``lambd`` and ``lambd``."""
    return np.where(np.abs(x) > np.float32(lambd), x, np.float32(0))


def softshrink(x: FloatArray, lambd: float = 0.5) -> FloatArray:
    """x moved towards 0 by ``lambd``, at most to 0."""
    return x - np.clip(x, np.float32(-lambd), np.float32(lambd))


def tanhshrink(x: FloatArray) -> FloatArray:
    """x - tanh(x)."""
    return x - np.tanh(x)


def softsign(x: FloatArray) -> FloatArray:
    """x / (1 + |x|)."""
    result: FloatArray = x / (1 + np.abs(x))
    return result


def log_sigmoid(x: FloatArray) -> FloatArray:
    """The logarithm of :func:`sigmoid`."""
    result: FloatArray = -np.logaddexp(-x, np.float32(0))
    return result


def softmax(x: FloatArray, dim: int | None = -1) -> FloatArray:
    """exp(x), divided by its sum along ``dim``; None is the last one.

    Example:
        >>> softmax(np.array([[0.0, 0.0, 0.0, 1000.0], [1.0, 1.0, 1.0, 1.0]], dtype=np.float32))
        array([[0.  , 0.  , 0.  , 1.  ],
               [0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    axis = -1 if dim is None else dim
    powers: FloatArray = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    result: FloatArray = powers / powers.sum(axis=axis, keepdims=True)
    return result


def softmin(x: FloatArray, dim: int | None = -1) -> FloatArray:
    """:func:`softmax` of -x."""
    return softmax(-x, dim)


def log_softmax(x: FloatArray, dim: int | None = -1) -> FloatArray:
    """The logarithm of :func:`softmax`."""
    axis = -1 if dim is None else dim
    lowered: FloatArray = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    result: FloatArray = lowered - np.log(np.exp(lowered).sum(axis=axis, keepdims=True))
    return result


ACTIVATIONS: Mapping[str, Callable[..., FloatArray]] = {
    "identity": identity,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "gelu": gelu,
    "silu": silu,
    "leaky_relu": leaky_relu,
    "softplus": softplus,
    "elu": elu,
    "celu": celu,
    "selu": selu,
    "mish": mish,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "tanhshrink": tanhshrink,
    "softsign": softsign,
    "log_sigmoid": log_sigmoid,
    "softmax": softmax,
    "softmin": softmin,
    "log_softmax": log_softmax,
}

# torch class -> name, and the attributes that are parameters of the function.
TORCH_CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Identity": ("identity", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "ReLU": ("relu", ()),
    "GELU": ("gelu", ("approximate",)),
    "SiLU": ("silu", ()),
    "LeakyReLU": ("leaky_relu", ("negative_slope",)),
    "Softplus": ("softplus", ("beta", "threshold")),
    "ELU": ("elu", ("alpha",)),
    "CELU": ("celu", ("alpha",)),
    "SELU": ("selu", ()),
    "Mish": ("mish", ()),
    "ReLU6": ("relu6", ()),
    "Hardtanh": ("hardtanh", ("min_val", "max_val")),
    "Hardsigmoid": ("hardsigmoid", ()),
    "Hardswish": ("hardswish", ()),
    "Hardshrink": ("hardshrink", ("lambd",)),
    "Softshrink": ("softshrink", ("lambd",)),
    "Tanhshrink": ("tanhshrink", ()),
    "Softsign": ("softsign", ()),
    "LogSigmoid": ("log_sigmoid", ()),
    "Softmax": ("softmax", ("dim",)),
    "Softmin": ("softmin", ("dim",)),
    "LogSoftmax": ("log_softmax", ("dim",)),
}


def resolve_activation(value: Any) -> Activation:
    """The numpy function for an activation, in any form that a caller may pass. This never imports torch.

    Args:
        value: A name of :data:`ACTIVATIONS`; the path of a torch class, ``"torch.nn.Sigmoid"``; an object of such a
            class, whose parameters apply; a function of torch with such a name, ``torch.sigmoid``; or any other
            callable, which is returned as it is and gets a float32 array.

    Raises:
        UnsupportedError: ``value`` has another form.

    Example:
        >>> resolve_activation("torch.nn.modules.activation.Tanh")(np.zeros(2, dtype=np.float32))
        array([0., 0.], dtype=float32)
    """
    if isinstance(value, str):
        package, _, name = value.rpartition(".")
        if not package and name in ACTIVATIONS:
            return ACTIVATIONS[name]
        if package.partition(".")[0] == "torch" and name in TORCH_CLASSES:
            return ACTIVATIONS[TORCH_CLASSES[name][0]]
        raise _unknown(repr(value))
    if _is_from_torch(type(value)) and type(value).__name__ in TORCH_CLASSES:
        name, parameters = TORCH_CLASSES[type(value).__name__]
        settings = {parameter: getattr(value, parameter) for parameter in parameters}
        return functools.partial(ACTIVATIONS[name], **settings) if settings else ACTIVATIONS[name]
    if any(map(_is_from_torch, (value, *type(value).__mro__))):
        # A function, a class, or an object of a torch class: it would need a tensor.
        name = getattr(value, "__name__", "")
        if not isinstance(value, type) and name in ACTIVATIONS:
            return ACTIVATIONS[name]
        raise _unknown(f"{value!r:.100}")
    if not callable(value):
        raise _unknown(f"{value!r:.100}")
    activation: Activation = value
    return activation


def _is_from_torch(value: Any) -> bool:
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == "torch"


def _unknown(found: str) -> UnsupportedError:
    names, classes = ", ".join(ACTIVATIONS), ", ".join(f"torch.nn.{name}" for name in TORCH_CLASSES)
    return UnsupportedError(
        f"The activation {found} is not known. Allowed are the names {names}; the classes {classes}, as objects or as "
        "paths; and functions that take and return numpy arrays."
    )


def activated(logits: FloatArray, activation: Activation | None) -> FloatArray:
    """The scores of logits [pairs, labels]; None: they are scores already."""
    if activation is None:
        return logits
    scores = np.asarray(activation(logits), dtype=np.float32)
    if scores.shape[:1] != logits.shape[:1]:
        raise InvalidArgumentError(
            f"activation_fn must return a row for each of the {len(logits)} pairs, and returned the shape "
            f"{scores.shape}."
        )
    return scores


def finish_scores(scores: FloatArray, labels: int, apply_softmax: bool) -> FloatArray:
    """Scores after the activation: [pairs, 1] to [pairs], then softmax, in the order of sentence-transformers."""
    if labels == 1 and scores.ndim > 1:
        scores = scores.squeeze(-1)
    return softmax(scores, dim=1) if apply_softmax and scores.ndim > 1 else scores
