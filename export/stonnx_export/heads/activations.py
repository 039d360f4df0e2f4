"""PyTorch's activation functions as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from stonnx_export.graph.builder import GraphBuilder

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
    # With alpha = 1, the default of CELU, ELU is the same function.
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
