"""Inputs of a modality that a model does not read: stonnx gives the original's reason, besides its own advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from toy_bundles import pair_graph, rows_bundle, sparse_graph, toy_table, write_bundle

import stonnx

pytestmark = pytest.mark.needs("sentence-transformers", "6.2", "these words")

IMAGE, AUDIO = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros(16000, dtype=np.float32)
MESSAGE = {"role": "user", "content": "hi"}
BOTH = {"text": "a cat", "image": IMAGE}

# What a model reads, and inputs that it does not read.
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "an image": (["text"], [IMAGE]),
    "a video": (["text"], [np.zeros((2, 8, 8, 3))]),
    "a tensor": (["text"], [torch.zeros(3, 8, 8)]),
    "a dict of an image": (["text"], [{"image": "cat.png"}]),
    "a text with an image": (["text"], [BOTH]),
    "a text with an image, which are read": (["text", "image"], [BOTH]),
    "a text and an image, which are read": (["text", "image"], ["a", IMAGE]),
    "a text and a combination, which are read": (["text", "image"], ["a", BOTH]),
    "a text and an image": (["text"], ["a", IMAGE]),
    "a combination and a text": (["text"], [BOTH, {"text": "a dog"}]),
    "three kinds": (["text"], ["a", AUDIO, IMAGE]),
    "sound": (["text"], [{"array": AUDIO, "sampling_rate": 16000}]),
    "a message": (["text"], [MESSAGE]),
    "messages": (["text", "image"], [MESSAGE, {"role": "assistant", "content": "yo"}]),
    "a message and an image": (["text"], [MESSAGE, IMAGE]),
    "a message and a text": (["text"], [MESSAGE, "a"]),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """A case, for which both libraries have models that read these modalities."""
    modalities, inputs = request.param
    for package in (stonnx, sentence_transformers):
        for name in ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "CrossEncoder"):
            monkeypatch.setattr(getattr(package, name), "modalities", property(lambda model: modalities))
    return modalities, inputs


def test_dense_vectors(minilm: Any, minilm_original: Any, case: tuple[list[Any], list[Any]]) -> None:
    _, inputs = case
    for call in ("preprocess", "encode", "encode_query"):
        # A list that begins with a message is one input of `encode`.
        given = [inputs] if call != "preprocess" and inputs[0] is MESSAGE else inputs
        with pytest.raises(ValueError, match="modalit") as expected:
            getattr(minilm_original, call)(given)
        with pytest.raises(stonnx.InvalidInputError) as raised:
            getattr(minilm, call)(given)
        assert str(raised.value).endswith(str(expected.value))
        assert str(raised.value).startswith(f"Input {raised.value.index} is not a text but")


def other_models(directory: Path) -> list[Any]:
    sparse: dict[str, Any] = {"task": "sparse", "embedding_dimension": 12, "similarity_fn_name": "dot"}
    pairs: dict[str, Any] = {"task": "rerank", "num_labels": 1, "activation": "sigmoid"}
    scores = pair_graph(toy_table(1, 1), np.zeros(1, dtype=np.float32), "Sigmoid")
    return [
        stonnx.SparseEncoder(write_bundle(directory / "sparse", {"default": sparse_graph(toy_table(12, 0))}, **sparse)),
        stonnx.MultiVectorEncoder(rows_bundle(directory / "rows")),
        stonnx.CrossEncoder(write_bundle(directory / "pairs", {"default": scores}, **pairs)),
    ]


def test_other_models(tmp_path: Path) -> None:
    """They name themselves, as in the original."""
    for model in other_models(tmp_path):
        name = type(model).__name__
        original = getattr(sentence_transformers, name)(modules=[torch.nn.Identity()], device="cpu")
        original[0].modalities = ["text"]
        with pytest.raises(ValueError, match=f"not supported by this {name} model") as expected:
            original.preprocess([IMAGE])
        with pytest.raises(stonnx.InvalidInputError) as raised:
            model.preprocess([IMAGE])
        assert str(raised.value).endswith(str(expected.value))
        if name != "CrossEncoder":  # to predict, it is a list of something that is not a pair
            with pytest.raises(stonnx.InvalidInputError) as raised:
                model.encode([IMAGE])
            assert str(raised.value).endswith(str(expected.value))


MODALITIES = [
    ["text"],
    ["text", "image"],
    ["text", "message"],
    ["text", ("image", "text")],
    ["text", "image", "message"],
    ["text", "image", "audio", "video", "message"],
]


@pytest.mark.parametrize("modalities", MODALITIES, ids=str)
def test_what_a_model_supports(
    minilm: Any, minilm_original: Any, monkeypatch: pytest.MonkeyPatch, modalities: list[Any]
) -> None:
    for model in (minilm, minilm_original):
        monkeypatch.setattr(type(model), "modalities", property(lambda model: modalities))
    several = [("image", "text"), ("audio", "text"), ("audio", "image", "text"), ("video", "audio")]
    for modality in ("text", "image", "audio", "video", "message", *several):
        assert minilm.supports(modality) == minilm_original.supports(modality)
