"""Images to the numbers that a network reads, exactly as transformers' CLIPImageProcessor does it with pillow.

The only file that knows ``PIL``. Every step has the arithmetic of the original, rounding included: first a copy in
RGB, then the resize by pillow on whole numbers, the crop, the scale in double precision, the normalization in float32.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import ImageProcessor
from stonnx._errors import InvalidInputError, MissingDependencyError
from stonnx._images.inputs import is_data_uri, is_pillow, is_tensor, is_url

if TYPE_CHECKING:
    from PIL.Image import Image

_Bytes = npt.NDArray[np.uint8]
_CHANNELS = (1, 3, 4)
_ALLOWED = (
    "Allowed are a path, a data URI, a PIL image, or an array of whole numbers from 0 to 255 with the shape "
    "[height, width, channels] or [channels, height, width] and 1, 3 or 4 channels"
)


def require_pillow() -> None:
    """Raise MissingDependencyError unless pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'Images need pillow, which is not installed. Install it with: pip install "stonnx[image]"'
        ) from error


def pixel_values(image: Any, processor: ImageProcessor, index: int | None = None) -> npt.NDArray[np.float32]:
    """The numbers that the network reads of an image: float32 [3, height, width].

    Args:
        image: A path, a data URI, a PIL image, an array or a tensor.
        processor: The settings of the checkpoint.
        index: The image's index among the inputs, for messages. None: it is the only one.

    Raises:
        InvalidInputError: It is not an image, or not one that can be read.
        MissingDependencyError: pillow is not installed.
    """
    require_pillow()
    name = "The input" if index is None else f"Input {index}"
    pixels = _read(image, processor, name, index)
    if processor.size is not None:
        pixels = _resized(pixels, _target(pixels.shape[1:], processor.size), processor.resample)
    if processor.crop is not None:
        pixels = _cropped(pixels, *processor.crop)
    result: npt.NDArray[Any] = pixels
    if processor.rescale_factor is not None:
        result = (pixels.astype(np.float64) * processor.rescale_factor).astype(np.float32)
    result = result.astype(np.float32)
    if processor.mean is not None and processor.std is not None:
        mean, std = np.array(processor.mean, dtype=np.float32), np.array(processor.std, dtype=np.float32)
        result = ((result.T - mean) / std).T
    return np.ascontiguousarray(result)


def sendable(image: Any, index: int | None = None) -> Any:
    """An image that can go to another process, which reads it: a PIL image has its pixels.

    Raises:
        InvalidInputError: It is not an image, or one of pillow that cannot be read.
    """
    name = "The input" if index is None else f"Input {index}"
    if is_pillow(image):
        try:
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise InvalidInputError(f"{name} is a PIL image that pillow cannot read: {error}.", index) from error
    elif not isinstance(image, str | os.PathLike | np.ndarray) and not is_tensor(image):
        raise _no_image(image, name, index)
    return image


def _no_image(image: Any, name: str, index: int | None) -> InvalidInputError:
    return InvalidInputError(f"{name} is not an image but {type(image).__name__} ({image!r:.60}). {_ALLOWED}.", index)


def _read(image: Any, processor: ImageProcessor, name: str, index: int | None) -> _Bytes:
    """The image in RGB: uint8 [3, height, width]."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(image, str | os.PathLike):
        place = image if isinstance(image, str) else os.fspath(image)
        # A path is named in full, a data URI is not.
        is_data = isinstance(place, str) and is_data_uri(place)
        shown = repr(place[:40] + "..." if is_data else place)
        if isinstance(place, str) and is_url(place):
            raise InvalidInputError(
                f"{name} is the URL {shown}, and stonnx downloads no images. Download it first, and pass its path.",
                index,
            )
        try:
            source = _decoded(place) if is_data else place
            with PIL.Image.open(source) as opened:
                # The camera's orientation counts for files only, and transparency does not: as in the original.
                upright: Image = PIL.ImageOps.exif_transpose(opened)
                rgb = upright.convert("RGB")
        except FileNotFoundError:
            raise InvalidInputError(f"{name} is the path {shown}, and there is no such file.", index) from None
        except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
            raise InvalidInputError(
                f"{name}, {shown}, is not an image that pillow can read: {error}. Formats that it reads: "
                "python -m PIL --report",
                index,
            ) from error
        return _of_pillow(rgb, processor, name, index)
    if is_pillow(image):
        return _of_pillow(image, processor, name, index)
    if is_tensor(image):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _of_array(image, processor, name, index)
    raise _no_image(image, name, index)


def _decoded(uri: str) -> io.BytesIO:
    head, _, data = uri.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("a data URI of an image must be in base64: data:image/png;base64,...")
    try:
        return io.BytesIO(base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise ValueError(f"its base64 is damaged ({error})") from error


def _of_pillow(image: Image, processor: ImageProcessor, name: str, index: int | None) -> _Bytes:
    import PIL.Image

    if 0 in image.size:
        raise InvalidInputError(f"{name} is an image of {image.width} x {image.height} pixels: it has none.", index)
    try:
        transparent = "A" in image.getbands() or image.info.get("transparency") is not None
        if transparent and processor.transparency == "white":
            over = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
        return np.moveaxis(np.array(image.convert("RGB")), -1, 0)
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # pillow reads a file when its pixels are asked for
        raise InvalidInputError(f"{name} is a PIL image that pillow cannot read: {error}.", index) from error


def _of_array(array: npt.NDArray[Any], processor: ImageProcessor, name: str, index: int | None) -> _Bytes:
    found = f"an array of {array.dtype} with the shape {list(array.shape)}"
    if array.ndim == 4:
        raise InvalidInputError(f"{name} is {found}, which holds many images. Pass list(array).", index)
    if array.ndim != 3 or not array.size or not {array.shape[0], array.shape[-1]} & {*_CHANNELS}:
        raise InvalidInputError(f"{name} is {found}, which is not an image. {_ALLOWED}.", index)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{name} is {found}. {_ALLOWED}. Convert numbers from 0 to 1 with: (array * 255).round().astype('uint8')",
            index,
        )
    if array.min() < 0 or array.max() > 255:
        raise InvalidInputError(
            f"{name} is {found} and has numbers from {array.min()} to {array.max()}. {_ALLOWED}.", index
        )
    # The first dimension wins if either could be the channels.
    planes = array if array.shape[0] in _CHANNELS else np.moveaxis(array, -1, 0)
    planes = planes.astype(np.uint8)
    if len(planes) == 1:
        return np.repeat(planes, 3, axis=0)
    if len(planes) == 3:
        return planes
    if processor.transparency != "white":
        raise InvalidInputError(
            f"{name} is {found}, and the checkpoint's processor reads no transparent arrays. Pass a PIL image, or an "
            "array of 3 channels.",
            index,
        )
    alpha = planes[3:4] / 255
    opaque: _Bytes = np.round(alpha * planes[:3] + (1 - alpha) * 255).astype(np.uint8)
    return opaque


def _target(found: tuple[int, ...], size: Any) -> tuple[int, int]:
    """The height and the width to resize to."""
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    height, width = found
    short, long = min(height, width), max(height, width)
    edge = size["shortest_edge"]
    other = int(edge * long / short)
    return (other, edge) if width <= height else (edge, other)


def _resized(pixels: _Bytes, target: tuple[int, int], resample: int) -> _Bytes:
    import PIL.Image

    image = PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    height, width = target
    return np.moveaxis(np.array(image.resize((width, height), resample=PIL.Image.Resampling(resample))), -1, 0)


def _cropped(pixels: _Bytes, height: int, width: int) -> _Bytes:
    """The middle, with black around it if the image is smaller."""
    rows, columns = pixels.shape[1:]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + height, left : left + width]
    tall, wide = max(height, rows), max(width, columns)
    above, before = math.ceil((tall - rows) / 2), math.ceil((wide - columns) / 2)
    padded = np.zeros((len(pixels), tall, wide), dtype=pixels.dtype)
    padded[:, above : above + rows, before : before + columns] = pixels
    top, left = top + above, left + before
    return padded[:, max(0, top) : min(tall, top + height), max(0, left) : min(wide, left + width)]
