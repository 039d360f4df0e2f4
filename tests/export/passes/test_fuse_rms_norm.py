"""RMS normalization in pieces as one operator: it fires on every way to write it, is exact, and declines."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HIDDEN, TOKENS, graph_of, nodes_of, random, run_as_it_is, shaped

from stonnx_export.passes import PassResult, fuse_rms_norm


def network(
    *,
    square: str = "Pow",
    axis: int = -1,
    keepdims: int = 1,
    divide: bool = False,
    swapped: bool = False,
    upside_down: bool = False,
    read_twice: str = "",
    weight: tuple[int, ...] = (HIDDEN,),
    of_other: bool = False,
    is_output: bool = False,
    epsilon: float = 1e-3,
) -> ir.Model:
    """w * x / sqrt(mean(x^2) + epsilon), written in one of many ways; the last arguments make it something else."""
    model, op, (x, other) = graph_of(*((name, ir.DataType.FLOAT, (*TOKENS, HIDDEN)) for name in ("x", "other")))
    order = -1 if swapped else 1
    squares = op.Mul(x, x) if square == "Mul" else op.Pow(x, op.constant(np.float32(2 if square == "Pow" else 3)))
    mean = op.ReduceMean(squares, op.vector([axis]), keepdims=keepdims)
    if not keepdims:
        mean = op.Unsqueeze(mean, op.vector([2]))
    root = op.Sqrt(op.Add(*[mean, op.constant(np.float32([epsilon]))][::order]))
    numerator = other if of_other else x
    if divide:
        normal = op.Div(*[numerator, root][:: -1 if upside_down else 1])
    else:
        normal = op.Mul(*[numerator, op.Reciprocal(root)][::order])
    gamma = op.constant(1 + random(np.random.default_rng(0), *weight, scale=0.3), "gamma")
    outputs = [shaped(op.Mul(*[normal, gamma][::order]), *TOKENS, HIDDEN)]
    if read_twice:
        outputs.append({"root": root, "normal": normal}[read_twice])
    for number, output in enumerate(outputs):
        output = output if is_output else op.Identity(output)
        op.name_output(output, f"output_{number}", [*TOKENS, HIDDEN if number == 0 else "width"])
        model.graph.outputs.append(output)
    return model


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"square": "Mul"},
        {"axis": 2},
        {"divide": True},
        {"swapped": True},
        {"divide": True, "swapped": True, "square": "Mul"},
        {"epsilon": 0.5},
    ],
    ids=str,
)
def test_is_exact(written: dict[str, Any]) -> None:
    before = network(**written)
    after = before.clone()
    assert fuse_rms_norm.run(after) == PassResult("fuse_rms_norm", 1)
    assert [node.op_type for node in after.graph] == ["RMSNormalization", "Identity"]
    rng = np.random.default_rng(1)
    # Tokens of all sizes: epsilon counts for the small ones.
    x = random(rng, 2, 9, HIDDEN) * np.float32(10) ** np.arange(-4, 5, dtype=np.float32)[:, None]
    (expected,), (result,) = (run_as_it_is(model, x=x, other=x) for model in (before, after))
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=0)
    assert fuse_rms_norm.run(after) == PassResult("fuse_rms_norm", 0)


@pytest.mark.parametrize(
    "other",
    [
        {"square": "cube"},
        {"axis": 1},
        {"keepdims": 0},
        {"divide": True, "upside_down": True},
        {"read_twice": "root"},
        {"read_twice": "normal"},
        {"weight": (1,)},
        {"weight": (1, HIDDEN)},
        {"of_other": True},
        {"is_output": True},
    ],
    ids=str,
)
def test_declines_what_is_something_else(other: dict[str, Any]) -> None:
    model = network(**other)
    operators = [node.op_type for node in model.graph]
    assert fuse_rms_norm.run(model) == PassResult("fuse_rms_norm", 0)
    assert [node.op_type for node in model.graph] == operators
    assert not nodes_of(model, "RMSNormalization")
