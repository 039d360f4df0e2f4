"""The graph of images in 8 bits, in bfloat16 and in half precision, beside the original; with native kernels, too."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from huggingface_hub.utils import WeakFileLock

import stonnx
from stonnx import DeviceOptions, FidelityError, util
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import read_manifest
from stonnx._device.kernels import Library, find
from stonnx._engine.engine import Engine
from stonnx.cli.info import describe
from stonnx_export import export, recipes
from stonnx_export.calibration.pictures import calibration_pictures, pictures
from stonnx_export.int8.scales import Quantization
from stonnx_export.recheck import verify_bundle
from tests.clip_checkpoints import clip_bundle, write_clip

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

# The lowest cosine of an image to the original. That of the stock operators is what the exporter asks for.
CLOSE = {"int8": 0.98, "fp16": 0.9999}
KERNELS = find()


def photographs() -> list[Any]:
    """Those that come with scikit-learn, in parts."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    photos = [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return [photo[top : top + 200, left : left + 240] for photo in photos for top in (0, 220) for left in (0, 250, 390)]


@pytest.fixture(scope="module")
def checkpoint(shared_directory: Path) -> Path:
    return clip_bundle(shared_directory)[0]


def bundle_of(dtype: str, checkpoint: Path, directory: Path) -> Path:
    """A bundle of a recipe, made once in a test run."""
    target = directory / f"clip-{dtype}"
    with WeakFileLock(directory / f"clip-{dtype}.lock"):
        if not target.exists():
            export(checkpoint, target, dtype=dtype)
    return target


@pytest.fixture(scope="module", params=["int8", "fp16"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path, shared_directory: Path) -> Path:
    return bundle_of(request.param, checkpoint, shared_directory)


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(util.pairwise_cos_sim(one, other))


def test_the_manifest_says_what_both_graphs_are(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    tower = manifest.image
    assert tower is not None
    assert tower.fidelity is not None
    assert tower.precision == manifest.precision
    assert tower.fidelity.texts == len(pictures()) == 64
    assert tower.fidelity.tolerance == recipes.RECIPES[manifest.recipe].tolerance["embedding"]
    assert tower.fidelity.neighbours_overlap is not None
    # The products of both layers, and that of the patches.
    assert tower.rewrites.get("quantize_products", 13) == 13
    assert bool(tower.saturation_safe) == (manifest.precision == "int8")
    if manifest.precision == "int8":
        assert tower.kernels is not None
        assert tower.kernels.blocks == {"AttentionInt8": 2, "FeedForwardInt8": 2}
        assert not tower.kernels.stock
    shown = dict(describe(manifest))
    assert shown["graph (images)"] == f"image-model.onnx, opset 24, {manifest.precision}"
    assert "48 x 48 pixels" in shown["  images"]
    assert "image-model.onnx" in shown["  sizes"]


@pytest.mark.parametrize("kind", ["made up", "photographs"])
def test_images_are_close_to_the_original(bundle: Path, original: Any, kind: str) -> None:
    images = (
        [image for image in pictures() if not isinstance(image, np.ndarray)] if kind == "made up" else photographs()
    )
    dtype = read_manifest(bundle).recipe
    model = stonnx.SentenceTransformer(bundle)
    found = model.encode(images)
    assert cosines(found, original.encode(images)).min() > CLOSE[dtype]
    alone = np.stack([model.encode(image) for image in images[:6]])
    assert cosines(found[:6], alone).min() > 0.999999
    if dtype == "int8" and isinstance(KERNELS, Library):
        assert model._engine.images.session.kernels == model.info.kernels == KERNELS.variant
        stock = Engine(open_bundle(bundle), device="cpu", kernels=False)
        places = [*range(len(images))]
        assert cosines(found, stock.images.vectors(images, places, 32)).min() > 0.99


def test_texts_find_images_as_in_the_original(bundle: Path, original: Any) -> None:
    model, images = stonnx.SentenceTransformer(bundle), photographs()
    texts = ["a temple", "a red flower", "water", "the sky above a roof"]
    both = model.encode([*texts, *images])
    similarity = model.similarity(both[:4], both[4:])
    expected = original.similarity(original.encode(texts), original.encode(images))
    np.testing.assert_allclose(similarity, np.asarray(expected), rtol=0, atol=0.03)


def test_both_forms_of_8_bits(checkpoint: Path, shared_directory: Path) -> None:
    """CPUs that would saturate run the other form, which passes its own probe."""
    bundle = open_bundle(bundle_of("int8", checkpoint, shared_directory))
    images, places = calibration_pictures(512), [*range(16)]
    full, safe = (
        Engine(bundle, device="cpu", form=form, kernels=False).images for form in ("full-range", "saturation-safe")
    )
    assert (full.session.form, safe.session.form) == ("full-range", "saturation-safe")
    one, other = (route.vectors(images, places, 32) for route in (full, safe))
    assert not np.array_equal(one, other)
    assert cosines(one, other).min() > 0.97


def test_kernels_that_fail_the_probe_are_not_used(
    checkpoint: Path, shared_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(KERNELS, Library):
        pytest.skip("native kernels are not installed")
    from stonnx._engine import probe

    bundle = bundle_of("int8", checkpoint, shared_directory)
    kind: Any = type(stonnx.SentenceTransformer(bundle)._engine.images)
    run = kind.run
    monkeypatch.setattr(probe, "is_remembered", lambda *_: False)
    monkeypatch.setattr(probe, "remember", lambda *_: None)
    monkeypatch.setattr(kind, "run", lambda self, *rest: (-1 if self.session.kernels else 1) * run(self, *rest))
    model = stonnx.SentenceTransformer(bundle)
    session = model._engine.images.session
    assert session.kernels == ""
    assert "gives images other vectors" in session.fallbacks[-1]


def test_bfloat16_on_a_float32_bundle(checkpoint: Path, shared_directory: Path, original: Any) -> None:
    if not isinstance(KERNELS, Library) or not KERNELS.bfloat16:
        pytest.skip("no native kernels here multiply bfloat16")
    bundle = clip_bundle(shared_directory)[1]
    model = stonnx.SentenceTransformer(bundle, device="cpu", device_options=DeviceOptions(bfloat16=True))
    images = calibration_pictures(512)
    found, exact = model.encode(images), stonnx.SentenceTransformer(bundle).encode(images)
    assert model._engine.images.session.kernels
    assert not np.array_equal(found, exact)
    assert cosines(found, original.encode(images)).min() > 0.998


def test_a_graph_of_images_that_is_too_far_away_keeps_layers_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the graph of images is changed then."""
    checkpoint, kept = write_clip(tmp_path / "checkpoint"), []
    keep_more = Quantization.keep_more

    def noticed(self: Quantization, *rest: Any) -> bool:
        kept.append("vision" if any("vision_model" in name for name in self._names) else "text")
        return keep_more(self, *rest)

    from stonnx_export.verify import images

    measure = images.measure

    def far(*arguments: Any) -> Any:
        report = measure(*arguments)
        return dataclasses.replace(report, cosine_min=0.5) if len(kept) < wanted else report

    monkeypatch.setattr(Quantization, "keep_more", noticed)
    monkeypatch.setattr(images, "measure", far)
    wanted = 2
    manifest = read_manifest(export(checkpoint, tmp_path / "some", dtype="int8"))
    assert kept == ["vision"] * 2
    assert manifest.image is not None
    assert manifest.image.kept
    assert not manifest.kept
    wanted = 100
    with pytest.raises(FidelityError, match=r"Vectors of images are too far away.*lowest cosine 0\.5.*Nothing was"):
        export(checkpoint, tmp_path / "none", dtype="int8")
    assert not (tmp_path / "none").exists()


def test_verify_has_the_bounds_of_the_recipe(
    bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stonnx_export import recheck

    bounds = []
    monkeypatch.setattr(
        recheck, "verify_images", lambda engine, original, reference, tolerance, name: bounds.append(tolerance)
    )
    verify_bundle(bundle, checkpoint)
    assert bounds == [recipes.RECIPES[read_manifest(bundle).recipe].tolerance["embedding"]]


def test_a_copy_without_the_graph_of_images(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "image-model.onnx").unlink()
    with pytest.raises(stonnx.BundleError, match=r"image-model\.onnx"):
        stonnx.SentenceTransformer(copy)
