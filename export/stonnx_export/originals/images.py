"""The images' half of an original that reads texts and images: its network, its processor, its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from stonnx._bundle.manifest import ImageProcessor
from stonnx._errors import UnsupportedError
from stonnx._images.pixels import pixel_values
from stonnx_export.originals.trace import trace_images

_FloatArray = npt.NDArray[np.float32]

# The processor that stonnx follows, and the ends of its name in versions of transformers: on pillow and torchvision.
_PROCESSOR = "CLIPImageProcessor"
_VARIANTS = ("", "Pil", "Fast")
# Settings that change pixels in ways that no CLIP checkpoint uses. They are refused unless they are off.
_REFUSED = ("do_pad", "do_flip_channel_order", "do_reduce_labels")


class ImageOriginal:
    """Images in the original.

    Args:
        modules: The modules of the original; the first has the network and the processor.
        model: The original as a whole.
        where: The checkpoint, for messages.
    """

    def __init__(self, modules: Sequence[Any], model: Any, where: str) -> None:
        self._modules, self._model = modules, model
        found = modules[0].processor.image_processor
        settings = _settings(found, where)
        # With torchvision, transformers resizes in another way, and its vectors differ a little from those on pillow.
        self._on_pillow = _on_pillow(found, settings)
        self._as_called = self._on_pillow is found
        self.size = int(modules[0].model.config.vision_config.image_size)
        self.patches = (self.size // int(modules[0].model.config.vision_config.patch_size)) ** 2
        self.processor = self._read(settings, where)

    def _read(self, settings: Mapping[str, Any], where: str) -> ImageProcessor:
        import PIL.Image  # an extra: most exports read no images

        normalize = settings["do_normalize"]
        common: dict[str, Any] = {
            "size": _size(settings["size"], where) if settings["do_resize"] else None,
            "resample": int(settings["resample"]),
            "crop": (
                (int(settings["crop_size"]["height"]), int(settings["crop_size"]["width"]))
                if settings["do_center_crop"]
                else None
            ),
            "rescale_factor": float(settings["rescale_factor"]) if settings["do_rescale"] else None,
            "mean": _channels(settings["image_mean"]) if normalize else None,
            "std": _channels(settings["image_std"]) if normalize else None,
        }
        # transformers 5 puts transparent images on white, and 4 drops their transparency.
        glass = PIL.Image.new("RGBA", (self.size, self.size), (200, 100, 0, 60))
        expected = self.pixels([glass])[0]
        if expected.shape != (3, self.size, self.size):
            raise UnsupportedError(
                f"{where}: its image processor gives {list(expected.shape[1:])} pixels, and its network reads "
                f"{[self.size] * 2}. Correct size and crop_size in its preprocessor_config.json."
            )
        for transparency in ("white", "dropped"):
            processor = ImageProcessor(**common, transparency=transparency)
            if np.array_equal(pixel_values(glass, processor), expected):
                return processor
        raise UnsupportedError(
            f"{where}: its image processor {type(self._on_pillow).__name__} gives other numbers for an image than its "
            "settings say, so stonnx cannot follow it. Known: that of transformers 4.57 and 5."
        )

    def graph(self) -> ir.Model:
        """The network for images as a graph: ``pixel_values`` [batch, 3, size, size] enter, a vector leaves."""
        return trace_images(self._modules[0].model, self.size)

    def pixels(self, images: Sequence[Any]) -> list[_FloatArray]:
        """The numbers that the original's processor on pillow makes of PIL images and arrays."""
        return [
            np.asarray(self._on_pillow(images=[image], return_tensors="np")["pixel_values"][0]).astype(np.float32)
            for image in images
        ]

    def outputs(self, pixels: Sequence[_FloatArray]) -> _FloatArray:
        """The vectors of images, computed one at a time: [images, dim]."""
        rows = []
        with torch.inference_mode():
            for image in pixels:
                found = self._modules[0].model.get_image_features(pixel_values=torch.from_numpy(image[None]))
                vector = found if isinstance(found, torch.Tensor) else found.pooler_output
                features: dict[str, Any] = {"sentence_embedding": vector}
                for module in self._modules[1:]:
                    features = module(features)
                rows.append(features["sentence_embedding"][0].numpy())
        return np.stack(rows)

    def results(self, images: Sequence[Any]) -> _FloatArray | None:
        """The results of ``encode`` for images; None if it resizes with torchvision here."""
        if not self._as_called:
            return None
        with torch.inference_mode():
            rows = [self._model.encode([image], show_progress_bar=False) for image in images]
        return np.concatenate(rows).astype(np.float32)


def _settings(processor: Any, where: str) -> dict[str, Any]:
    name = type(processor).__name__
    own = type(processor).__module__.startswith("transformers.")
    if not own or name not in [f"{_PROCESSOR}{variant}" for variant in _VARIANTS]:
        raise UnsupportedError(
            f"{where} has the image processor {name}, which cannot be exported. The one that can: {_PROCESSOR} of "
            "transformers."
        )
    names = (
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
    )
    settings = {setting: getattr(processor, setting, None) for setting in names}
    refused = [setting for setting in _REFUSED if getattr(processor, setting, None)]
    if not settings["do_convert_rgb"]:
        refused.append("do_convert_rgb=False")
    if refused:
        raise UnsupportedError(
            f"{where}: its image processor has the setting {refused[0]}, which cannot be exported. Take it out of its "
            "preprocessor_config.json if the model may do without."
        )
    for setting in ("size", "crop_size"):
        value = settings[setting]
        settings[setting] = {key: edge for key, edge in dict(value or {}).items() if edge is not None}
    return settings


def _on_pillow(processor: Any, settings: Mapping[str, Any]) -> Any:
    """The processor itself if it works with pillow, otherwise the one that does, with the same settings."""
    if not type(processor).__name__.endswith("Fast") and getattr(processor, "backend", "pil") == "pil":
        return processor
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as OnPillow
    except ImportError:  # transformers 4
        from transformers import CLIPImageProcessor as OnPillow
    return OnPillow(**{**settings, "resample": int(settings["resample"])})


def _size(size: Mapping[str, int], where: str) -> dict[str, int]:
    if size.keys() not in ({"shortest_edge"}, {"height", "width"}):
        raise UnsupportedError(
            f"{where}: its image processor resizes to {dict(size)}, which cannot be exported. Known: shortest_edge, or "
            "height and width."
        )
    return {key: int(edge) for key, edge in size.items()}


def _channels(values: Any) -> tuple[float, ...]:
    """A number for each channel."""
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
