"""Compares the images' half of a bundle with the original: the same pixels to the last bit, the same vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stonnx._bundle.manifest import Fidelity
from stonnx._engine.engine import Engine
from stonnx._errors import FidelityError
from stonnx._images.pixels import pixel_values
from stonnx_export.verify.figures import check, measure

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal

# Width and height of images that are compared: one pixel, thin, small, large, and of odd sizes.
_SIZES = ((1, 1), (1, 90), (700, 3), (37, 53), (224, 224), (225, 300), (640, 480), (501, 333))
_MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")


def pictures() -> list[Any]:
    """Images of many sizes and kinds, as PIL images and arrays, the same in every run."""
    import PIL.Image

    plain = [_picture(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
    images: list[Any] = [PIL.Image.fromarray(picture) for picture in plain]
    images += [PIL.Image.fromarray(_picture(120, 90, 50 + seed)).convert(mode) for seed, mode in enumerate(_MODES)]
    glass = np.concatenate([_picture(80, 60, 70), _picture(80, 60, 71)[..., :1]], axis=2)
    images.append(PIL.Image.fromarray(glass))
    return [*images, _picture(90, 70, 72), np.moveaxis(_picture(90, 70, 73), -1, 0), _picture(90, 70, 74)[..., :1]]


def _picture(width: int, height: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours with noise on them, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / random.uniform(3, 40) + columns / random.uniform(3, 40) + n) for n in range(3)]
    smooth = 127 + 90 * np.stack(waves, axis=-1)
    return np.clip(smooth + random.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)


def verify_images(engine: Engine, original: ImageOriginal, tolerance: Mapping[str, float], name: str) -> Fidelity:
    """Compare the graph of images with the original, and refuse it if it is too far away.

    Args:
        engine: The bundle.
        original: The original that it was made from.
        tolerance: Bounds, by the names of the report's figures.
        name: The program that runs the original, for the report.

    Raises:
        FidelityError: An image has other pixels than the original gives the network.
        ToleranceError: A vector is outside the tolerance.
    """
    images = pictures()
    processor = engine.images.spec.processor
    pixels = original.pixels(images)
    for number, (image, expected) in enumerate(zip(images, pixels, strict=True)):
        if not np.array_equal(pixel_values(image, processor), expected):
            raise FidelityError(
                f"The pixels of the image {number} of {len(images)} ({getattr(image, 'mode', 'an array')}) differ from "
                "those of the original's image processor."
            )
    places = [*range(len(images))]
    batched = engine.images.vectors(images, places, batch_size=32)
    alone = np.concatenate([engine.images.vectors([image], [None], batch_size=32) for image in images])
    report = measure(original.outputs(pixels), batched, alone, alone[None], tolerance, name)
    check(report)
    called = original.results(images[:4])
    bound = tolerance.get("max_abs_difference")
    if called is not None and bound is not None:
        difference = float(np.abs(called - alone[:4]).max() / max(1.0, float(np.abs(called).max())))
        if not difference <= 10 * bound:
            raise FidelityError(
                f"encode of the original differs for images by {difference:.3g}, though its network does not."
            )
    return report
