"""Networks that lose much in int8, and bounds that notice it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stonnx_export import RECIPES


def make_hostile(bias: np.ndarray, following: np.ndarray) -> None:
    """One neuron that is always on, far stronger than all others, and hardly read.

    The scale of 8 bits follows it, and what the other neurons say is lost.
    """
    bias[0] = 1000
    following[0] *= 1e-4


def with_tolerance(monkeypatch: pytest.MonkeyPatch, **bounds: float) -> None:
    """int8 with other bounds for vectors, and no aim. Random weights of so few channels lose more than trained ones."""
    recipe = RECIPES["int8"]
    tolerance = {"embedding": {"invariance_cosine": 0.999999, **bounds}}
    monkeypatch.setitem(RECIPES, "int8", dataclasses.replace(recipe, tolerance=tolerance, aim={}))


def with_aim(monkeypatch: pytest.MonkeyPatch, **aim: float) -> None:
    """int8 that any vectors are good enough for, and that tries to reach an aim."""
    with_tolerance(monkeypatch, cosine_mean=0.5)
    recipe = RECIPES["int8"]
    monkeypatch.setitem(RECIPES, "int8", dataclasses.replace(recipe, aim={"embedding": aim}))
