"""Recipes: what precision a bundle has, which passes make it, and how far from the original it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from stonnx._bundle import Task
from stonnx_export.passes import PassResult, attention_lengths, shapes, splade_chunks

# A pass rewrites a model in place and says how often it fired and why it declined.
Pass = Callable[[ir.Model], PassResult]


@dataclass(frozen=True)
class Recipe:
    """A named way to make a bundle.

    ``tolerance`` bounds what verification may find for each task: ``cosine_min`` from below, ``max_abs_difference`` and
    ``batch_invariance`` from above.
    """

    name: str
    precision: str
    passes: tuple[Pass, ...]
    tolerance: Mapping[Task, Mapping[str, float]]
    requires_cpu_features: tuple[str, ...] = ()


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fp32",
            precision="float32",
            passes=(shapes.run, attention_lengths.run, splade_chunks.run),
            tolerance={
                "embedding": {"cosine_min": 0.99999, "max_abs_difference": 1e-5, "batch_invariance": 1e-6},
                # Not normalized: differences of sums that are large themselves.
                "sparse": {"cosine_min": 0.99999, "max_abs_difference": 1e-4, "batch_invariance": 1e-5},
                "rerank": {"cosine_min": 0.99999, "max_abs_difference": 1e-4, "batch_invariance": 1e-5},
            },
        ),
    )
}
