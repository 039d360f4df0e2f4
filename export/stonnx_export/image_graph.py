"""The half of an export that reads images, from the network to the report: the same stages as for texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import ImageTower, Scalar
from stonnx._engine.engine import Engine
from stonnx_export.calibration.measure import Sample
from stonnx_export.calibration.pictures import calibration_pictures
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.graph.save import check_finite
from stonnx_export.heads import graft
from stonnx_export.kernels import outline
from stonnx_export.lower_precision import LowerPrecision
from stonnx_export.passes import PassResult
from stonnx_export.recipes import Recipe
from stonnx_export.stages import Advance
from stonnx_export.verify.images import ImageReference, verify_images
from stonnx_export.write.bundle import write_image_tower
from stonnx_export.write.finish import count, finish

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal


class ImageGraph:
    """The graph of images of an export.

    Args:
        original: The original, whose network is read.
        checkpoint: The checkpoint.
        recipe: The recipe, which is the same for texts.
    """

    def __init__(self, original: ImageOriginal, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._original, self._checkpoint, self._recipe = original, checkpoint, recipe
        self._graph = original.graph()
        self._results: list[PassResult] = []
        self._lowered: LowerPrecision | None = None
        self._reference: ImageReference | None = None

    def build(self) -> None:
        """Put the heads on the network, and rewrite the graph."""
        graph, recipe = self._graph, self._recipe
        self._results = [rewrite(graph) for rewrite in recipe.network_passes]
        if recipe.lowering is not None:
            self._results.append(recipe.lowering(graph, self._samples()))
        graft.graft(graph, self._checkpoint.chain, task=self._checkpoint.task)
        check_finite(graph)
        self._results += [rewrite(graph) for rewrite in recipe.passes]
        finish(graph)

    def calibrate(self, advance: Advance) -> None:
        """Prepare the precision of weights that the recipe gives."""
        if self._recipe.precision_of_weights is not None:
            self._lowered = self._recipe.precision_of_weights(self._graph, self._samples(), advance=advance)

    def write(self, directory: Path) -> ImageTower:
        """Write the graph. Returns its entry in the manifest."""
        graph, more = self._graph, list[PassResult]()
        safe: dict[str, Scalar] = {}
        if self._lowered is not None:
            graph, more, safe = self._lowered.apply()
            graph.graph.sort()
        outlined = outline.run(graph, self._recipe.outline)
        kept = [name for result in self._results for name in result.kept]
        return write_image_tower(
            graph,
            self._original,
            directory,
            precision=self._recipe.precision,
            saturation_safe=safe,
            kept=(*kept, *(self._lowered.kept if self._lowered is not None else ())),
            kernels=outline.kernels([outlined]),
            rewrites=count([*self._results, *more, outlined.result]),
        )

    def verify(self, engine: Engine, name: str) -> ImageTower:
        """Compare the graph with the original. Returns its entry in the manifest, with the report.

        Raises:
            FidelityError, ImageToleranceError: As for :func:`stonnx_export.verify.images.verify_images`.
        """
        if self._reference is None:
            self._reference = ImageReference.of(self._original)
        tolerance = self._recipe.tolerance[self._checkpoint.task]
        return verify_images(engine, self._original, self._reference, tolerance, name)

    @property
    def lowered(self) -> dict[str, LowerPrecision]:
        """The form of a lower precision, if there is one, under the name that stands for it in messages."""
        return {} if self._lowered is None else {"images": self._lowered}

    def _samples(self) -> list[Sample]:
        images: list[npt.NDArray[np.float32]] = self._original.pixels(calibration_pictures(self._original.patches + 1))
        return [*images]
