"""Images to verify bundles with, and to calibrate them with: made up, and the same in every run.

They are waves, slopes, noise of every scale as photographs have it, plain noise and drawn shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
# Width and height of images that are compared: one pixel, thin, small, large, and of odd sizes.
_SIZES = ((1, 1), (1, 90), (700, 3), (37, 53), (224, 224), (225, 300), (640, 480), (501, 333))
_MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")
# So many more of each kind, and the first of their seeds, apart from those of calibration.
_OF_EACH_KIND, _FIRST_SEED, _FIRST_CALIBRATION_SEED = 9, 100, 1000
# Tokens to calibrate with, as texts have, and the bounds of the number of images.
_TOKENS, _FEWEST, _MOST = 4096, 16, 64


def pictures() -> list[Any]:
    """Images of many sizes and kinds, as PIL images and arrays: 64."""
    import PIL.Image

    plain = [_waves(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
    images: list[Any] = [PIL.Image.fromarray(picture) for picture in plain]
    images += [PIL.Image.fromarray(_waves(120, 90, 50 + seed)).convert(mode) for seed, mode in enumerate(_MODES)]
    glass = np.concatenate([_waves(80, 60, 70), _waves(80, 60, 71)[..., :1]], axis=2)
    images.append(PIL.Image.fromarray(glass))
    images += [_waves(90, 70, 72), np.moveaxis(_waves(90, 70, 73), -1, 0), _waves(90, 70, 74)[..., :1]]
    seeds = range(_FIRST_SEED, _FIRST_SEED + _OF_EACH_KIND * len(_KINDS))
    return [*images, *(PIL.Image.fromarray(_of_kind(seed)) for seed in seeds)]


def calibration_pictures(tokens: int) -> list[Any]:
    """PIL images whose values have the ranges of most images. None of them is among :func:`pictures`.

    Args:
        tokens: The network's tokens of an image. Fewer images are needed if each has many.
    """
    import PIL.Image

    count = min(max(_FEWEST, _TOKENS // tokens), _MOST)
    return [PIL.Image.fromarray(_of_kind(_FIRST_CALIBRATION_SEED + number)) for number in range(count)]


def _of_kind(seed: int) -> _Bytes:
    random = np.random.default_rng(seed)
    width, height = (int(size) for size in random.integers(120, 320, 2))
    return _KINDS[seed % len(_KINDS)](width, height, seed)


def _waves(width: int, height: int, seed: int) -> _Bytes:
    """Smooth colours with noise on them, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / random.uniform(3, 40) + columns / random.uniform(3, 40) + n) for n in range(3)]
    smooth = 127 + 90 * np.stack(waves, axis=-1)
    return _bytes(smooth + random.normal(0, 25, smooth.shape))


def _slopes(width: int, height: int, seed: int) -> _Bytes:
    """Each channel rises from one corner to another."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    slopes = [random.uniform(-1, 1) * rows + random.uniform(-1, 1) * columns for _ in range(3)]
    return _bytes(random.uniform(40, 215, 3) + 127 * np.stack(slopes, axis=-1))


def _clouds(width: int, height: int, seed: int) -> _Bytes:
    """Noise whose parts are as strong as they are large, as in photographs."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    # The channels of photographs go together.
    grey, *colours = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) / frequency) for _ in range(4)]
    grey, *colours = [part[:height, :width] / part.std() for part in (grey, *colours)]
    channels = [grey[:, : width - width % 2] + 0.4 * colour[:, : width - width % 2] for colour in colours]
    return _bytes(random.uniform(80, 170) + 50 * np.stack(channels, axis=-1))


def _noise(width: int, height: int, seed: int) -> _Bytes:
    """Every pixel by itself."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _shapes(width: int, height: int, seed: int) -> _Bytes:
    """Rectangles, ellipses and lines of one colour each, on a ground."""
    import PIL.Image
    import PIL.ImageDraw

    random = np.random.default_rng(seed)

    def colour() -> tuple[int, ...]:
        return tuple(random.integers(0, 256, 3).tolist())

    image = PIL.Image.new("RGB", (width, height), colour())
    draw = PIL.ImageDraw.Draw(image)
    for number in range(int(random.integers(3, 12))):
        (left, right), (top, bottom) = np.sort(random.integers(0, (width, height), (2, 2)), axis=0).T.tolist()
        (draw.rectangle, draw.ellipse, draw.line)[number % 3]((left, top, right, bottom), fill=colour())
    return np.asarray(image)


_KINDS: Sequence[Callable[[int, int, int], _Bytes]] = (_waves, _slopes, _clouds, _noise, _shapes)


def _bytes(values: npt.NDArray[np.float64]) -> _Bytes:
    return np.clip(values, 0, 255).astype(np.uint8)
