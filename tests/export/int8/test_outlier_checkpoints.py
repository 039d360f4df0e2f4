"""int8 of an encoder like all-mpnet-base-v2 that has the outliers of trained ones, in its stock form."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from int8_figures import cosines
from outlier_checkpoints import add_outliers
from sentence_transformers import SentenceTransformer
from zoo import build_checkpoint, row
from zoo.table import Size

import stonnx
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx_export import export
from stonnx_export.texts import sentences

MEAN, LOWEST = 0.999, 0.994


# As wide as the published model, and with sharp attention: 8 bits lose 0.9924 of one word where nothing is refined.
NARROW, WIDE = Size(3, 256, 8, 1024), Size(4, 768, 12, 3072)


@pytest.fixture(scope="module", params=[NARROW, pytest.param(WIDE, marks=pytest.mark.slow)], ids=["narrow", "wide"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = row("all-mpnet-base-v2")
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, built=request.param))
    folder = tmp_path_factory.mktemp("outliers")
    copy = shutil.copytree(build_checkpoint(model, folder / "built"), folder / "with-outliers")
    add_outliers(copy, 10.0)
    return copy


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("bundle") / "int8", dtype="int8")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_the_report(manifest: Manifest) -> None:
    """On odd texts too."""
    assert manifest.fidelity is not None
    assert manifest.fidelity.cosine_mean >= MEAN
    assert manifest.fidelity.cosine_min >= LOWEST
    refined = manifest.routes["default"].outputs[0].shape[-1] == WIDE.hidden
    assert bool(manifest.halved) == refined
    assert manifest.kept == ()


def test_sentences(checkpoint: Path, bundle: Path) -> None:
    texts = sentences()
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(texts)
    found = cosines(expected, stonnx.SentenceTransformer(bundle, device="cpu").encode(texts))
    assert found.mean() >= MEAN
    assert found.min() >= LOWEST
    # What the vectors have in common, the large channels most of all, could hide the rest.
    common = expected.mean(axis=0)
    apart = cosines(expected - common, stonnx.SentenceTransformer(bundle, device="cpu").encode(texts) - common)
    assert np.median(apart) >= 0.99
