"""A ``MultiVectorEncoder`` with a Router: queries and documents pass other modules, as in the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

from sentence_transformers import MultiVectorEncoder as Original
from zoo.late_checkpoints import build_routed_checkpoint

from stonnx import InvalidArgumentError, MultiVectorEncoder, UnsupportedError
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


@pytest.fixture(scope="module")
def without_default(tmp_path_factory: pytest.TempPathFactory) -> tuple[MultiVectorEncoder, Original]:
    """Ours and the original's model with the routes query and document, neither of which is the default one."""
    directory = tmp_path_factory.mktemp("routes")
    checkpoint = build_routed_checkpoint(directory / "checkpoint")
    (file,) = checkpoint.rglob("router_config.json")
    config = json.loads(file.read_text())
    config["parameters"] |= {"default_route": None, "allow_empty_key": False}
    file.write_text(json.dumps(config))
    return MultiVectorEncoder(export(checkpoint, directory / "bundle")), Original(str(checkpoint), device="cpu")


def test_a_call_without_a_task(without_default: tuple[MultiVectorEncoder, Original]) -> None:
    ours, theirs = without_default
    with pytest.raises(ValueError, match="Could not determine route for task=None") as expected:
        theirs.encode(TEXTS)
    for call in (ours.encode, ours.preprocess, ours.count_tokens):
        with pytest.raises(InvalidArgumentError) as raised:
            call(TEXTS)
        assert str(raised.value).startswith(str(expected.value))
    assert sorted(ours.get_model_kwargs()) == sorted(theirs.get_model_kwargs()) == ["modality", "task"]


@pytest.mark.parametrize("task", ["query", "document"])
def test_inputs_that_name_their_task(without_default: tuple[MultiVectorEncoder, Original], task: str) -> None:
    ours, theirs = without_default
    found, expected = ours.encode({task: TEXTS[2]}), theirs.encode(TEXTS[2], task=task).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    several = ours.encode([{task: text} for text in TEXTS], modality="text")
    for mine, other in zip(several, ours.encode(TEXTS, task=task), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_tasks_and_modalities_that_are_refused(without_default: tuple[MultiVectorEncoder, Original]) -> None:
    ours, _ = without_default
    with pytest.raises(InvalidArgumentError, match="You cannot pass a list of dictionaries with different task types"):
        ours.encode([{"query": "a"}, {"document": "b"}])
    with pytest.raises(InvalidArgumentError, match="task must be one of 'query', 'document', got 'title'"):
        ours.encode([{"title": "a"}])
    with pytest.raises(UnsupportedError, match="modality='image' asks for another route"):
        ours.encode(TEXTS, task="query", modality="image")
