"""Compares the images' half of a bundle with the original: the same pixels to the last bit, the same vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import ImageTower
from stonnx._engine.engine import Engine
from stonnx._errors import FidelityError
from stonnx._images.pixels import pixel_values
from stonnx_export.calibration.pictures import pictures
from stonnx_export.verify.figures import ToleranceError, check, measure, neighbours_overlap

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal


class ImageToleranceError(ToleranceError):
    """A figure of the vectors of images is outside its tolerance."""


@dataclass(frozen=True)
class ImageReference:
    """Images, the numbers that the original reads of each, and its vectors [images, dim]."""

    images: list[Any]
    pixels: list[npt.NDArray[np.float32]]
    vectors: npt.NDArray[np.float32]

    @classmethod
    def of(cls, original: ImageOriginal) -> ImageReference:
        """What an original gives."""
        images = pictures()
        pixels = original.pixels(images)
        return cls(images, pixels, original.outputs(pixels))


def verify_images(
    engine: Engine, original: ImageOriginal, reference: ImageReference, tolerance: Mapping[str, float], name: str
) -> ImageTower:
    """Compare the graph of images with the original, and refuse it if it is too far away.

    Args:
        engine: The bundle.
        original: The original that it was made from.
        reference: What the original gives.
        tolerance: Bounds, by the names of the report's figures.
        name: The program that runs the original, for the report.

    Returns:
        The manifest's entry for the graph, with the report.

    Raises:
        FidelityError: An image has other pixels than the original gives the network.
        ImageToleranceError: A vector is outside the tolerance.
    """
    images = reference.images
    processor = engine.images.spec.processor
    for number, (image, expected) in enumerate(zip(images, reference.pixels, strict=True)):
        if not np.array_equal(pixel_values(image, processor), expected):
            raise FidelityError(
                f"The pixels of the image {number} of {len(images)} ({getattr(image, 'mode', 'an array')}) differ from "
                "those of the original's image processor."
            )
    places = [*range(len(images))]
    batched = engine.images.vectors(images, places, batch_size=32)
    alone = np.concatenate([engine.images.vectors([image], [None], batch_size=32) for image in images])
    report = measure(reference.vectors, batched, alone, alone[None], tolerance, name)
    report = dataclasses.replace(report, neighbours_overlap=neighbours_overlap(reference.vectors, alone))
    try:
        check(report)
    except ToleranceError as error:
        raise ImageToleranceError(f"Vectors of images are too far away. {error}", report) from None
    called = original.results(images[:4])
    bound = tolerance.get("max_abs_difference")
    if called is not None and bound is not None:
        difference = float(np.abs(called - alone[:4]).max() / max(1.0, float(np.abs(called).max())))
        if not difference <= 10 * bound:
            raise FidelityError(
                f"encode of the original differs for images by {difference:.3g}, though its network does not."
            )
    return dataclasses.replace(engine.images.spec, fidelity=report)
