"""Recipes: the precision of a bundle, the passes that make it, and how far from the original it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from stonnx._tasks import Task
from stonnx_export.calibration.measure import Sample
from stonnx_export.fp16.lowering import to_float16
from stonnx_export.kernels.bfloat16 import HalfWeights
from stonnx_export.kernels.mixed import MixedQuantization
from stonnx_export.kernels.products import WeightKind
from stonnx_export.passes import (
    PassResult,
    attention_biases,
    attention_lengths,
    first_token,
    fuse_attention,
    fuse_rms_norm,
    patches,
    plain_attention,
    quick_gelu,
    residual_biases,
    shapes,
    splade_chunks,
)

# A pass rewrites a model in place and says how often it fired and why it declined.
Pass = Callable[[ir.Model], PassResult]
# A lowering is also given texts or images, which show how large values are.
Lowering = Callable[[ir.Model, Sequence[Sample]], PassResult]


@dataclass(frozen=True)
class Recipe:
    """A named way to make a bundle.

    ``tolerance`` bounds the figures of verification for each task, by their names in
    :class:`stonnx._bundle.manifest.Fidelity`.
    """

    name: str
    precision: str
    # Passes over the whole graph, after the heads are grafted on the network.
    passes: tuple[Pass, ...]
    tolerance: Mapping[Task, Mapping[str, float]]
    # The lowest cosine between a text's vector here and on any other machine.
    probe_cosine: float
    # Passes over the network alone, before that.
    network_passes: tuple[Pass, ...] = ()
    # Gives the network a lower precision, after its passes.
    lowering: Lowering | None = None
    # Gives weights, products and tables a lower precision, after all passes.
    precision_of_weights: type[MixedQuantization] | type[HalfWeights] | None = None
    # Figures that the exporter tries to reach for each task, within the tolerance, at the cost of some speed.
    aim: Mapping[Task, Mapping[str, float]] = field(default_factory=dict)
    # Which blocks of the graph become operators for native kernels at the end, by how their weights are stored (see
    # kernels/outline.py).
    outline: frozenset[WeightKind] = frozenset()
    requires_cpu_features: tuple[str, ...] = ()


# Every bundle gets these passes: their changes are exact in real numbers.
_EXACT: tuple[Pass, ...] = (
    shapes.run,
    patches.run,
    fuse_attention.run,
    attention_lengths.run,
    attention_biases.run,
    quick_gelu.run,
)
_OUTPUTS: tuple[Pass, ...] = (first_token.run, splade_chunks.run)
# A text's vector does not depend on other texts. Only rounding in another order of summation may change it.
_INVARIANT = 0.999999
# The bounds of a text's vectors of tokens in 16 bits. Other tasks have 0.9999 for the worst of about 170 texts. Here
# ten thousand rows are compared, and each is one of many terms of a score: 99 of 100 rows must have that, and their
# mean, which a few lost rows would lower. docs/kernels.md has the reasons.
_ROWS_OF_16_BITS = {"cosine_mean": 0.9999, "cosine_p1": 0.9999, "neighbours_overlap": 0.98, "rank_correlation": 0.999}


def _bounds(
    common: Mapping[str, float],
    *,
    embedding: Mapping[str, float],
    sparse: Mapping[str, float],
    rerank: Mapping[str, float],
    multivector: Mapping[str, float],
) -> Mapping[Task, Mapping[str, float]]:
    of_task = {"embedding": embedding, "sparse": sparse, "rerank": rerank, "multivector": multivector}
    return {task: {**common, **bounds} for task, bounds in of_task.items()}


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fp32",
            precision="float32",
            passes=(*_EXACT, *_OUTPUTS),
            outline=frozenset({"Float"}),
            probe_cosine=0.9999,
            tolerance=_bounds(
                {"cosine_min": 0.99999, "spearman_drop": 0.01},
                embedding={"max_abs_difference": 1e-5, "batch_invariance": 1e-6},
                # Sparse vectors are not normalized: these are differences of sums that are large themselves.
                sparse={"max_abs_difference": 1e-4, "batch_invariance": 1e-5},
                rerank={"max_abs_difference": 1e-4, "batch_invariance": 1e-5},
                multivector={"max_abs_difference": 1e-5, "batch_invariance": 1e-5, "rank_correlation": 0.9999},
            ),
        ),
        Recipe(
            name="fp16",
            precision="float16",
            network_passes=(shapes.run, fuse_attention.run, attention_lengths.run, plain_attention.run),
            passes=(splade_chunks.run,),
            lowering=to_float16,
            probe_cosine=0.999,
            tolerance=_bounds(
                {"invariance_cosine": 0.9999, "spearman_drop": 0.05},
                embedding={"cosine_min": 0.9999, "neighbours_overlap": 0.98},
                sparse={"cosine_min": 0.9999, "active_overlap": 0.98},
                rerank={"cosine_min": 0.9999, "rank_correlation": 0.999},
                multivector=_ROWS_OF_16_BITS,
            ),
        ),
        Recipe(
            name="bf16",
            precision="bfloat16",
            # For CPUs with kernels that multiply bfloat16. The passes are those of int8, except for the biases.
            passes=(*_EXACT, fuse_rms_norm.run, *_OUTPUTS, first_token.or_all),
            precision_of_weights=HalfWeights,
            outline=frozenset({"BFloat16"}),
            probe_cosine=0.9999,
            # These bounds cover only the rounding of the weights, which the stock operators have too.
            tolerance=_bounds(
                {"invariance_cosine": _INVARIANT, "spearman_drop": 0.05},
                embedding={"cosine_min": 0.9999, "neighbours_overlap": 0.98},
                sparse={"cosine_min": 0.9999, "active_overlap": 0.98},
                rerank={"cosine_min": 0.9999, "rank_correlation": 0.999},
                multivector=_ROWS_OF_16_BITS,
            ),
        ),
        Recipe(
            name="int8",
            precision="int8",
            # Callers who do not ask for tokens save the last layer of these: on the CPU, for which int8 is made.
            passes=(*_EXACT, fuse_rms_norm.run, residual_biases.run, *_OUTPUTS, first_token.or_all),
            precision_of_weights=MixedQuantization,
            outline=frozenset({"Int8", "BFloat16"}),
            # The worst of about 170 texts is to have 0.996, so that one of many more has 0.994.
            aim={"embedding": {"cosine_mean": 0.999, "cosine_min": 0.996}},
            # Kernels that differ in the last bit leave 0.9998 of all-MiniLM-L6-v2, products that saturate 0.983.
            probe_cosine=0.99,
            tolerance=_bounds(
                {"invariance_cosine": _INVARIANT, "spearman_drop": 0.5},
                embedding={"cosine_mean": 0.998, "cosine_min": 0.98, "neighbours_overlap": 0.9},
                sparse={"cosine_mean": 0.998, "cosine_min": 0.98, "active_overlap": 0.95},
                rerank={"cosine_min": 0.99, "rank_correlation": 0.98},
                # Single tokens lose more than whole texts, and MaxSim adds them up.
                multivector={"cosine_mean": 0.995, "neighbours_overlap": 0.9, "rank_correlation": 0.98},
            ),
        ),
    )
}
