"""Every pixel is that of transformers' CLIPImageProcessor on pillow, to the last bit."""

from __future__ import annotations

import base64
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import InvalidInputError, MissingDependencyError
from stonnx._bundle.manifest import ImageProcessor
from stonnx._images.pixels import pixel_values

PIL = pytest.importorskip("PIL.Image", reason="pillow is not installed")

CLIP = ImageProcessor(
    size={"shortest_edge": 24},
    resample=3,
    crop=(24, 24),
    rescale_factor=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    transparency="white",
)
PROCESSORS = {
    "clip": CLIP,
    "square": dataclasses.replace(CLIP, size={"height": 24, "width": 30}, resample=2, crop=None),
    "small crop": dataclasses.replace(CLIP, size={"shortest_edge": 40}, crop=(24, 18)),
    "crop beyond the image": dataclasses.replace(CLIP, size={"shortest_edge": 17}, crop=(24, 31)),
    "no resize": dataclasses.replace(CLIP, size=None),
    "no scale": dataclasses.replace(CLIP, rescale_factor=None, resample=0),
    "no normalization": dataclasses.replace(CLIP, mean=None, std=None, resample=1),
}
SIZES = [(1, 1), (1, 60), (900, 2), (37, 53), (24, 24), (25, 24), (300, 200), (201, 333)]
MODES = ["RGB", "L", "RGBA", "P", "LA", "PA", "1", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def original(processor: ImageProcessor) -> Any:
    pytest.importorskip("transformers")
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip", reason="transformers 5 has it")
    settings: dict[str, Any] = {
        "do_resize": processor.size is not None,
        "size": dict(processor.size or {"shortest_edge": 24}),
        "resample": processor.resample,
        "do_center_crop": processor.crop is not None,
        "do_rescale": processor.rescale_factor is not None,
        "do_normalize": processor.mean is not None,
        "image_mean": list(CLIP.mean or ()),
        "image_std": list(CLIP.std or ()),
    }
    if processor.crop is not None:
        settings["crop_size"] = dict(zip(("height", "width"), processor.crop, strict=True))
    return pil.CLIPImageProcessorPil(**settings)


def expected(image: Any, processor: ImageProcessor) -> np.ndarray:
    pixels = original(processor)(images=[image], return_tensors="np")["pixel_values"][0]
    return np.asarray(pixels).astype(np.float32)


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("size", SIZES, ids=[f"{width}x{height}" for width, height in SIZES])
def test_sizes(size: tuple[int, int], processor: ImageProcessor) -> None:
    image = PIL.fromarray(picture(*size))
    assert np.array_equal(pixel_values(image, processor), expected(image, processor))


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    image = PIL.fromarray(picture(50, 40))
    image = image.convert("RGBA").convert("P").convert("PA") if mode == "PA" else image
    image = PIL.fromarray(picture(50, 40)[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    assert np.array_equal(pixel_values(image, CLIP), expected(image, CLIP))


def test_transparency() -> None:
    glass = PIL.fromarray(np.concatenate([picture(50, 40), picture(50, 40, 1)[..., :1]], axis=2))
    palette = PIL.fromarray(picture(50, 40)).convert("P")
    palette.info["transparency"] = 3
    for image in (glass, palette):
        assert np.array_equal(pixel_values(image, CLIP), expected(image, CLIP))
    dropped = dataclasses.replace(CLIP, transparency="dropped")
    assert np.array_equal(pixel_values(glass, dropped), pixel_values(glass.convert("RGB"), CLIP))
    with pytest.raises(InvalidInputError, match="reads no transparent arrays"):
        pixel_values(np.asarray(glass), dropped)


@pytest.mark.parametrize(
    "array",
    [
        picture(50, 40),
        np.moveaxis(picture(50, 40), -1, 0),
        picture(50, 40)[..., :1],
        picture(50, 40)[None, ..., 0],
        np.concatenate([picture(50, 40), picture(50, 40, 1)[..., :1]], axis=2),
        picture(50, 40).astype(np.int64),
        picture(3, 40),
        picture(40, 3),
        picture(50, 40)[::-1, ::-2],
    ],
    ids=["last", "first", "grey", "grey first", "transparent", "int64", "3 wide", "3 high", "view"],
)
def test_arrays(array: np.ndarray) -> None:
    assert np.array_equal(pixel_values(array, CLIP), expected(array, CLIP))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_files_and_data_uris(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    PIL.fromarray(picture(50, 40)).save(file)
    uri = f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    # The original leaves a file of several frames open.
    wanted = expected(uri, CLIP)
    for source in (str(file), file, uri):
        assert np.array_equal(pixel_values(source, CLIP), wanted)


def test_the_orientation_of_a_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    image = PIL.fromarray(picture(50, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    assert np.array_equal(pixel_values(file, CLIP), expected(str(file), CLIP))
    # That of an open image does not, in the original either.
    with PIL.open(file) as opened:
        assert np.array_equal(pixel_values(opened, CLIP), expected(opened, CLIP))
        assert not np.array_equal(pixel_values(opened, CLIP), pixel_values(file, CLIP))


def test_a_transparent_file(tmp_path: Path) -> None:
    file = tmp_path / "glass.png"
    PIL.fromarray(np.concatenate([picture(50, 40), picture(50, 40, 1)[..., :1]], axis=2)).save(file)
    assert np.array_equal(pixel_values(file, CLIP), expected(str(file), CLIP))


def _png() -> bytes:
    buffer = io.BytesIO()
    PIL.fromarray(picture(50, 40)).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify"),
        (b"not an image at all", "cannot identify"),
        (_png()[:200], "truncated|broken|Truncated"),
    ],
    ids=["empty", "text", "cut"],
)
def test_files_that_are_not_images(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=f"is not an image that pillow can read: .*({message})") as raised:
        pixel_values(file, CLIP, 7)
    assert raised.value.index == 7
    assert str(raised.value).startswith("Input 7, '")


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.png"
    PIL.fromarray(picture(50, 40)).save(file)
    monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InvalidInputError, match="decompression bomb"):
        pixel_values(file, CLIP)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Path("missing.png"), "the path 'missing.png', and there is no such file"),
        ("https://example.org/a.png", "downloads no images"),
        ("data:image/png;base64,????", "base64 is damaged"),
        ("data:image/png,abc", "must be in base64"),
        ("data:image/png;base64,AAAA", "cannot identify"),
        (np.zeros((4, 5)), r"array of float64 with the shape \[4, 5\], which is not an image"),
        (np.zeros((5, 6, 7), np.uint8), r"\[5, 6, 7\], which is not an image"),
        (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\], which is not an image"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"holds many images. Pass list\(array\)"),
        (np.zeros((4, 5, 3), np.float32), r"array \* 255"),
        (np.full((4, 5, 3), 300), "numbers from 300 to 300"),
        (np.full((4, 5, 3), -1), "numbers from -1 to -1"),
        (PIL.new("RGB", (0, 5)), "0 x 5 pixels"),
        (b"bytes", "not an image but bytes"),
    ],
)
def test_bad_images(image: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as raised:
        pixel_values(image, CLIP, 3)
    assert raised.value.index == 3
    assert str(raised.value).startswith("Input 3")


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "stonnx\[image\]"'):
        pixel_values(picture(5, 4), CLIP)
