"""A ``MultiVectorEncoder`` with a Router: queries and documents pass other modules, as in the original."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

from sentence_transformers import MultiVectorEncoder as Original
from zoo.late_checkpoints import build_routed_checkpoint

from stonnx import MultiVectorEncoder
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export

TEXTS = ["What is the capital of Portugal?", "", "a. b, c.", "word " * 100]


@pytest.mark.parametrize("inside", ["dense", "networks", "everything"])
def test_vectors_are_those_of_the_original(inside: Literal["dense", "networks", "everything"], tmp_path: Path) -> None:
    checkpoint = build_routed_checkpoint(tmp_path / "checkpoint", inside=inside)
    bundle = export(checkpoint, tmp_path / "bundle")
    ours, theirs = MultiVectorEncoder(bundle, threads=1), Original(str(checkpoint), device="cpu")
    assert read_manifest(bundle).task == "multivector"
    found = {}
    for method in ("encode", "encode_query", "encode_document"):
        found[method] = getattr(ours, method)(TEXTS)
        expected = getattr(theirs, method)(TEXTS, convert_to_numpy=True)
        assert [rows.shape for rows in found[method]] == [rows.shape for rows in expected]
        for mine, other in zip(found[method], expected, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)
    # The routes are not the same.
    assert len(found["encode_query"][1]) == 16
    assert not np.allclose(found["encode_query"][0][0], found["encode_document"][0][0], atol=0.01)
    scores = ours.similarity(found["encode_query"], found["encode_document"])
    expected_scores = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)).numpy()
    np.testing.assert_allclose(scores, expected_scores, atol=1e-3)
    features = ours.encode_query(TEXTS[:1], output_value=None)[0]
    assert features["token_embeddings"].shape == (16, 24)
