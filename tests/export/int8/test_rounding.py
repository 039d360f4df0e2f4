"""Compensated rounding: the nearest step where inputs are unrelated, and better for the product where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from stonnx_export.int8.rounding import compensated

INPUTS, OUTPUTS = 300, 40  # more inputs than a block has


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight [K, N], the scale [N] of its columns, and tokens [T, K] of which the channels go together."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 127
    few = rng.normal(size=(2000, 30)) @ rng.normal(size=(30, INPUTS))
    return weight, scale, (few + 0.5 * rng.normal(size=few.shape)).astype(np.float32)


def nearest(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.rint(weight / scale).astype(np.int8)


def lost(codes: np.ndarray, weight: np.ndarray, scale: np.ndarray, tokens: np.ndarray) -> float:
    return float(np.square(tokens @ (codes * scale - weight)).sum())


def test_the_product_loses_less_than_with_the_nearest_steps() -> None:
    weight, scale, tokens = problem()
    codes = compensated(weight, scale, tokens.T @ tokens)
    assert (codes.dtype, codes.shape) == (np.int8, weight.shape)
    assert lost(codes, weight, scale, tokens) < 0.6 * lost(nearest(weight, scale), weight, scale, tokens)
    # No weight has gone far.
    assert np.abs(codes * scale - weight).max() < 3 * scale.max()


def test_inputs_that_are_unrelated_get_the_nearest_steps() -> None:
    weight, scale, _ = problem()
    moments = np.diag(np.random.default_rng(1).uniform(0.1, 10, INPUTS))
    np.testing.assert_array_equal(compensated(weight, scale, moments), nearest(weight, scale))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_size_of_the_moments_does_not_matter(factor: float) -> None:
    weight, scale, tokens = problem()
    moments = (tokens.T @ tokens).astype(np.float64)
    np.testing.assert_array_equal(compensated(weight, scale, factor * moments), compensated(weight, scale, moments))


def test_scaled_columns_have_the_same_codes() -> None:
    """As where the values of attention are evened out after the weights were rounded."""
    weight, scale, tokens = problem()
    columns = 2.0 ** np.random.default_rng(2).integers(-3, 4, OUTPUTS)
    codes = [compensated(weight * factor, scale * factor, tokens.T @ tokens) for factor in (1, columns)]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("moments", [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 0, 0])], ids=str)
def test_inputs_that_are_always_zero_or_the_same(moments: np.ndarray) -> None:
    weight = np.array([[127.0, -127], [0.3, 126.9], [-50, 0]])
    codes = compensated(weight, np.ones(2), moments)
    assert np.abs(codes - weight).max() <= 1
    assert codes.min() >= -127
