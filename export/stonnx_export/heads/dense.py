"""Dense layers, LayerNorm and Normalize after the pooling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx_export.checkpoint import modules
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.heads.activations import ACTIVATIONS


def dense(op: GraphBuilder, module: modules.Dense, vector: ir.Value) -> ir.Value:
    """activation(x W^T + b), with a residual connection around it if the module has one."""
    result = linear(op, vector, module.weight, module.bias)
    result = ACTIVATIONS[module.activation](op, result)
    if not module.residual:
        return result
    residual = vector if module.residual_weight is None else linear(op, vector, module.residual_weight, None)
    return op.Add(result, residual)


def linear(
    op: GraphBuilder, vector: ir.Value, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None
) -> ir.Value:
    """A linear layer: [B, in] to [B, out], with a weight [out, in]."""
    product = op.MatMul(vector, op.constant(np.ascontiguousarray(weight.T)))
    return product if bias is None else op.Add(product, op.constant(bias))


def layer_norm(op: GraphBuilder, module: modules.LayerNorm, vector: ir.Value) -> ir.Value:
    """Layer normalization over the last dimension."""
    weight, bias = op.constant(module.weight), op.constant(module.bias)
    return op.LayerNormalization(vector, weight, bias, axis=-1, epsilon=module.epsilon)


def normalize(op: GraphBuilder, vector: ir.Value) -> ir.Value:
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize."""
    norm = op.ReduceL2(vector, op.vector([-1]), keepdims=1)
    return op.Div(vector, op.Max(norm, op.constant(np.array(1e-12, dtype=np.float32))))
