"""The facts of a bundle about a graph, for the device that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from stonnx._bundle.manifest import ImageTower, Kernels, Manifest, Route, TensorSpec


@dataclass(frozen=True)
class GraphFacts:
    """The facts of a bundle about a graph that devices need."""

    precision: str = ""
    sha256: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    max_seq_length: int | None = None
    kernels: Kernels | None = None

    @classmethod
    def of(cls, manifest: Manifest, route: Route) -> GraphFacts:
        """The facts about the graph of a route."""
        return cls(
            manifest.precision,
            manifest.files[route.graph].sha256,
            route.inputs,
            route.tokenizer.max_seq_length,
            manifest.kernels,
        )

    @classmethod
    def of_images(cls, manifest: Manifest, tower: ImageTower) -> GraphFacts:
        """The facts about the graph of images."""
        return cls(tower.precision, manifest.files[tower.graph].sha256, tower.inputs, kernels=tower.kernels)
