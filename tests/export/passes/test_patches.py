"""The convolution of patches becomes a product: it fires, is exact, and declines."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph_of, nodes_of, random, run_as_it_is, shaped

from stonnx_export.passes import patches

CHANNELS, WIDTH = 3, 8


def network(
    *,
    image: tuple[int, int] = (12, 16),
    patch: tuple[int, int] = (4, 4),
    bias: bool = False,
    perm: tuple[int, ...] = (0, 2, 1),
    **attributes: Any,
) -> ir.Model:
    """Tokens [B, patches, width] of images, as CLIP makes them; the last arguments make them something else."""
    shape = ("batch", CHANNELS, *image)
    model, op, (pixels,) = graph_of(("pixel_values", ir.DataType.FLOAT, shape))
    rng = np.random.default_rng(0)
    operands = [op.constant(random(rng, WIDTH, CHANNELS, *patch), "weight")]
    if bias:
        operands.append(op.constant(random(rng, WIDTH), "bias"))
    windows = op.Conv(pixels, *operands, **{"strides": list(patch), **attributes})
    tokens = op.Transpose(op.Reshape(windows, op.vector([0, 0, -1])), perm=list(perm))
    result = op.Tanh(shaped(tokens, "batch", "patches", WIDTH))
    op.name_output(result, "output", ["batch", "patches", WIDTH])
    model.graph.outputs.append(result)
    return model


@pytest.mark.parametrize(
    "written",
    [{}, {"bias": True}, {"patch": (3, 8)}, {"patch": (12, 16)}, {"auto_pad": "VALID"}, {"pads": [0, 0, 0, 0]}],
    ids=str,
)
def test_is_exact(written: dict[str, Any]) -> None:
    before = network(**written)
    after = before.clone()
    assert patches.run(after).fired == 1
    assert not nodes_of(after, "Conv")
    images = random(np.random.default_rng(1), 2, CHANNELS, 12, 16, scale=2.0)
    (expected,), (found,) = (run_as_it_is(model, pixel_values=images) for model in (before, after))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "written",
    [
        {"strides": [2, 2]},
        {"pads": [1, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER"},
        {"dilations": [2, 2]},
        {"image": (13, 16)},
        {"perm": (2, 0, 1)},
    ],
    ids=str,
)
def test_declines(written: dict[str, Any]) -> None:
    model = network(**written)
    found = patches.run(model)
    assert (found.fired, len(found.declined)) == (0, 1)
    assert len(nodes_of(model, "Conv")) == 1
