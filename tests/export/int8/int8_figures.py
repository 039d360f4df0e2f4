"""How alike the vectors of an int8 bundle and of its original have to be."""

from __future__ import annotations

import numpy as np

INVARIANT = 0.999999


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row; two rows of zeros are equal."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~wide.any(axis=1) & ~other.any(axis=1)
    return np.where(both_zero, 1.0, (wide * other).sum(axis=1) / np.maximum(norms, 1e-30))
