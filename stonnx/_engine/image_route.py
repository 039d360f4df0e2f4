"""The graph that reads images, for a bundle that has one beside that of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._bundle.bundle import Bundle
from stonnx._bundle.consistency import check_image_graph
from stonnx._bundle.manifest import ImageTower
from stonnx._device.session import RunControl
from stonnx._engine.graph_session import GraphSession
from stonnx._engine.runner import Runner
from stonnx._images.pixels import pixel_values, require_pillow
from stonnx._limits import Limits
from stonnx._text.batching import tokens_per_batch_unit

INPUT = "pixel_values"


class ImageRoute:
    """The graph of images, loaded. Many threads may call all methods at once."""

    def __init__(
        self, bundle: Bundle, tower: ImageTower, load: Callable[[int | None], GraphSession], limits: Limits, output: str
    ) -> None:
        self.spec = tower
        self._output = output
        shapes = {spec.name: spec.shape for spec in tower.outputs}
        self._runner = Runner(load, bundle.graph_bytes(tower.graph), limits, shapes)
        check_image_graph(tower, self.session.required, self.session.output_shapes, bundle.directory / tower.graph)

    @property
    def session(self) -> GraphSession:
        """The session that knows the device."""
        return self._runner.session

    def vectors(
        self,
        images: Sequence[Any],
        places: Sequence[int | None],
        batch_size: int,
        advance: Callable[[int], Any] = lambda count: None,
    ) -> npt.NDArray[np.float32]:
        """The vectors of images, in their order: float32 [images, dim].

        Args:
            images: At least one, as :func:`stonnx._images.pixels.pixel_values` takes them.
            places: The index of each among the inputs, for messages.
            batch_size: As for texts: an image counts as its patches.
            advance: Called with the number of images of each run.

        Raises:
            InvalidInputError: One is not an image.
            RunError: A run failed.
        """
        require_pillow()
        unit = tokens_per_batch_unit(self.session.device)
        count = max(1, batch_size * unit // self.spec.tokens)

        # While a run goes on in another thread, the next images are read in this one.
        def batches() -> Iterator[npt.NDArray[np.float32]]:
            for start in range(0, len(images), count):
                some = slice(start, start + count)
                yield np.stack(
                    [
                        pixel_values(image, self.spec.processor, place)
                        for image, place in zip(images[some], places[some], strict=True)
                    ]
                )

        rows = []
        workers = self._runner.workers(len(images) * self.spec.tokens) if len(images) > count else 1
        for result in self._runner.map(lambda pixels, control: self.run(pixels, control, workers), batches(), workers):
            advance(len(result))
            rows.append(result)
        return np.concatenate(rows)

    def run(
        self, pixels: npt.NDArray[np.float32], control: RunControl | None = None, workers: int = 1
    ) -> npt.NDArray[np.float32]:
        """The vectors [images, dim] of numbers [images, 3, height, width], computed together."""
        tokens = len(pixels) * self.spec.tokens
        outputs = self._runner.run([self._output], {INPUT: pixels}, tokens, alone=workers == 1, control=control)
        vectors: npt.NDArray[np.float32] = outputs.arrays[0]
        return vectors

    def trim(self) -> None:
        """Give back unused memory."""
        self._runner.trim()
