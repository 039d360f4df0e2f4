"""Texts and images of a CLIP model: the same vectors as the original's, in any mixture."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

import stonnx
from stonnx import InvalidInputError, MissingDependencyError, UnsupportedError
from stonnx._bundle.manifest import read_manifest
from stonnx._errors import BundleFormatError, ProbeError, TextTooLongError
from tests.clip_checkpoints import clip_bundle

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

# The vectors have values up to 4: float32 in another order of summation.
CLOSE = {"rtol": 0, "atol": 2e-5}
TEXTS = ["a ferry leaves the harbour", "", "Rain!", "naïve café – 猫", " ".join(["apples"] * 120)]


def picture(width: int = 60, height: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(shared_directory: Path) -> tuple[Path, Path]:
    """(checkpoint, bundle), made once in a test run."""
    return clip_bundle(shared_directory)


@pytest.fixture(scope="module")
def model(clip: tuple[Path, Path]) -> stonnx.SentenceTransformer:
    return stonnx.SentenceTransformer(clip[1])


@pytest.fixture(scope="module")
def original(clip: tuple[Path, Path]) -> Any:
    return sentence_transformers.SentenceTransformer(str(clip[0]), device="cpu", local_files_only=True)


@pytest.fixture
def images(tmp_path: Path) -> list[Any]:
    """An image in every form."""
    file = tmp_path / "a.png"
    Image.fromarray(picture()).save(file)
    buffer = io.BytesIO()
    Image.fromarray(picture(seed=1)).save(buffer, format="png")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    grey = Image.fromarray(picture(300, 7, seed=2)).convert("L")
    return [str(file), uri, grey, picture(seed=3), {"image": Image.fromarray(picture(1, 90, seed=4))}]


def test_the_same_attributes(model: Any, original: Any) -> None:
    for name in ("modalities", "max_seq_length", "prompts", "similarity_fn_name"):
        assert getattr(model, name) == getattr(original, name)
    assert model.get_embedding_dimension() == original.get_embedding_dimension()
    for modality in ("text", "image", "audio", "message", ("image", "text")):
        assert model.supports(modality) == original.supports(modality)


def test_the_manifest_has_both_graphs(clip: tuple[Path, Path]) -> None:
    manifest = read_manifest(clip[1])
    assert manifest.graphs == ("model.onnx", "image-model.onnx")
    assert manifest.image is not None
    assert manifest.image.fidelity is not None
    assert manifest.image.fidelity.cosine_min > 0.99999
    assert manifest.image.processor.size == {"shortest_edge": 48}
    assert set(manifest.graphs) < set(manifest.files)
    assert "image-model.onnx" in (clip[1] / "README.md").read_text()


@pytest.mark.parametrize("prompt", [None, "a photo of "])
def test_texts(model: Any, original: Any, prompt: str | None) -> None:
    ours, theirs = (each.encode(TEXTS, prompt=prompt) for each in (model, original))
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_images_in_every_form(model: Any, original: Any, images: list[Any]) -> None:
    expected = original.encode(images)
    np.testing.assert_allclose(model.encode(images), expected, **CLOSE)
    np.testing.assert_allclose(model.encode(images, prompt="no effect "), expected, **CLOSE)
    np.testing.assert_allclose(model.encode(images, batch_size=1), expected, **CLOSE)
    for image, vector in zip(images, expected, strict=True):
        single = model.encode(image)
        assert single.shape == vector.shape
        np.testing.assert_allclose(single, vector, **CLOSE)


def test_many_images_run_in_batches(model: Any, original: Any) -> None:
    images = [Image.fromarray(picture(30 + seed, 40, seed)) for seed in range(23)]
    np.testing.assert_allclose(model.encode(images, batch_size=2), original.encode(images), **CLOSE)


def test_mixtures(model: Any, original: Any, images: list[Any]) -> None:
    """The original refuses them in one batch: each input gets the vector that it has by itself."""
    inputs = [TEXTS[0], images[0], images[2], TEXTS[3], images[3]]
    expected = np.concatenate([original.encode([item]) for item in inputs])
    np.testing.assert_allclose(model.encode(inputs), expected, **CLOSE)
    windows = list(model.encode_stream(iter(inputs)))
    np.testing.assert_allclose(np.concatenate(windows), expected, **CLOSE)


def test_tensors(model: Any, original: Any) -> None:
    import torch

    image = torch.from_numpy(picture())
    np.testing.assert_allclose(model.encode([image]), original.encode([image]), **CLOSE)


@pytest.mark.parametrize(
    "options",
    [{"normalize_embeddings": True}, {"truncate_dim": 8}, {"precision": "ubinary"}, {"convert_to_tensor": True}],
)
def test_options(model: Any, original: Any, images: list[Any], options: dict[str, Any]) -> None:
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = (getattr(each, method)(images[:3], **options) for each in (model, original))
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **CLOSE)


def test_similarity_of_texts_and_images(model: Any, original: Any, images: list[Any]) -> None:
    ours, theirs = (each.similarity(each.encode(TEXTS), each.encode(images)) for each in (model, original))
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=0, atol=1e-5)


def test_preprocess(model: Any, original: Any, images: list[Any]) -> None:
    ours, theirs = (each.preprocess(images) for each in (model, original))
    assert ours.keys() == theirs.keys()
    assert ours["modality"] == theirs["modality"] == "image"
    assert np.array_equal(ours["pixel_values"], theirs["pixel_values"].numpy())
    with pytest.raises(UnsupportedError, match="preprocess takes texts or images"):
        model.preprocess(["a", images[0]])


def test_output_values(model: Any, images: list[Any]) -> None:
    item = model.encode(TEXTS[0], output_value=None)
    np.testing.assert_allclose(item["sentence_embedding"], model.encode(TEXTS[0]), **CLOSE)
    with pytest.raises(UnsupportedError, match="has no token_embeddings"):
        model.encode(TEXTS, output_value="token_embeddings")
    with pytest.raises(UnsupportedError, match="input 1 is an image"):
        model.encode(["a", images[0]], output_value=None)


def test_a_pool(model: Any, images: list[Any], tmp_path: Path) -> None:
    """Texts and images in the processes of a pool, and a failing image, after which the pool goes on."""
    inputs = [TEXTS[0], *images, TEXTS[3]]
    expected = model.encode(inputs)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        for chunk_size in (None, 2):
            np.testing.assert_allclose(model.encode(inputs, pool=pool, chunk_size=chunk_size), expected, **CLOSE)
        with pytest.raises(InvalidInputError, match=r"Input 6, .*broken\.png'") as raised:
            model.encode([*inputs[:-1], str(broken), TEXTS[3]], pool=pool, chunk_size=1)
        assert raised.value.index == 6
        with pytest.raises(InvalidInputError, match=r"Input 1 is not an image but bytes"):
            model.encode(["a", {"image": b"bytes"}], pool=pool)
        np.testing.assert_allclose(model.encode(images[2], pool=pool), expected[3], **CLOSE)
    finally:
        model.stop_multi_process_pool(pool)


def test_a_list_of_devices(model: Any, images: list[Any]) -> None:
    inputs = ["a", images[0], images[2]]
    np.testing.assert_allclose(model.encode(inputs, device=["cpu"]), model.encode(inputs), **CLOSE)


def test_errors_have_the_index_of_the_call(model: Any, images: list[Any], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"Input 2, .*broken\.png', is not an image") as raised:
        model.encode(["a", images[0], str(broken)])
    assert raised.value.index == 2
    with pytest.raises(InvalidInputError, match="The input is an array") as raised:
        model.encode(np.zeros((3, 3)))
    assert raised.value.index is None
    with pytest.raises(TextTooLongError) as too_long:
        model.encode([images[0], "a", TEXTS[4]], too_long="error")
    assert too_long.value.index == 2


def test_without_pillow(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert model.encode(["texts need none"]).shape == (1, 32)
    with pytest.raises(MissingDependencyError, match=r'pip install "stonnx\[image\]"'):
        model.encode([picture()])


def test_an_image_for_a_model_of_texts(minilm: Any) -> None:
    for image in (Image.fromarray(picture()), {"image": "a.png"}):
        with pytest.raises(InvalidInputError, match=r"Input 1 is not a text.*reads both, as clip-ViT-B-32"):
            minilm.encode(["a", image])


def test_a_server_reads_texts_only(model: Any, images: list[Any]) -> None:
    """It never opens a path that somebody sends."""
    work = model.work()
    assert work.texts([images[0]]) == [images[0]]
    with pytest.raises(InvalidInputError, match="image as a data URI, and only texts are read here"):
        work.texts(["a", images[1]])


def test_a_pickled_model_reads_images(model: Any, images: list[Any]) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.encode(images), model.encode(images))
    again.trim()


def _changed(bundle: Path, directory: Path, change: dict[str, Any]) -> Path:
    shutil.copytree(bundle, directory)
    manifest = json.loads((directory / "stonnx.json").read_text())
    manifest["image"]["processor"] |= change
    (directory / "stonnx.json").write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize(
    "change",
    [
        {"crop": [32, 32]},
        {"crop": None},
        {"size": {"longest_edge": 48}},
        {"size": {"shortest_edge": 0}},
        {"resample": 9},
        {"std": [1.0, 0.0, 1.0]},
        {"mean": [0.5]},
        {"mean": None},
        {"transparency": "other"},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit(clip: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BundleFormatError, match=r"image\.processor"):
        stonnx.SentenceTransformer(_changed(clip[1], tmp_path / "bundle", change))


def test_the_probe_of_images(clip: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from stonnx._engine import probe

    model = stonnx.SentenceTransformer(clip[1])
    monkeypatch.setattr(probe, "is_remembered", lambda *_: False)
    pattern = probe.image_pattern
    monkeypatch.setattr(probe, "image_pattern", lambda tower: -pattern(tower))
    with pytest.raises(ProbeError, match="gives images other vectors on this machine"):
        model.encode([picture()])


def test_a_file_of_paths(model: Any, clip: tuple[Path, Path], images: list[Any], tmp_path: Path) -> None:
    """``stonnx encode`` reads the lines of a file as encode does: the path of an image is an image."""
    from stonnx.cli import main

    (tmp_path / "lines.txt").write_text(f"{images[0]}\na ferry\n{tmp_path / 'missing.png'}\n", encoding="utf-8")
    assert main(["encode", str(clip[1]), str(tmp_path / "lines.txt"), "-o", str(tmp_path / "vectors.npy")]) == 0
    expected = model.encode([images[0], "a ferry", str(tmp_path / "missing.png")])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, **CLOSE)
