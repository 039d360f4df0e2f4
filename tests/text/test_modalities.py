"""What inputs are by their form: text, image, audio, video or chat message, as in the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions know fewer modalities")

from sentence_transformers.base.modality import infer_modality

from stonnx._text.modalities import modality_of

MESSAGE, SOUND = {"role": "user", "content": "hi"}, np.zeros(16000, dtype=np.float32)


@pytest.mark.parametrize(
    "item",
    [
        *(
            "a",
            ("a", "b"),
            ["a", "b"],
            MESSAGE,
            [MESSAGE],
            [MESSAGE, MESSAGE],
            {"text": "a", "image": 1},
            {"image": 1},
            {"audio": 1},
        ),
        *({"text": "a", "audio": SOUND}, {"array": SOUND}, {"array": SOUND, "sampling_rate": 1}, {}, {"title": "a"}),
        *({"array": 1, "video_metadata": {}}, {"text": "a", "title": "b"}, ("a",), ["a", 1], ("a", "b", "c"), None, 1),
        *(np.zeros(shape) for shape in ((), (1,), (1, 1), (1, 1, 3), (1,) * 4, (1,) * 5, (1,) * 6)),
        *(torch.zeros(1), torch.zeros(1, 1, 3), torch.tensor(1.0)),
    ],
    ids=lambda item: f"{type(item).__name__} {np.shape(item)}" if hasattr(item, "ndim") else repr(item)[:40],
)
def test_the_modality_of_an_input(item: Any) -> None:
    try:
        expected = infer_modality(item, supported_modalities=["text"])
    except ValueError:
        expected = None
    assert modality_of(item) == expected


def test_arrays_of_texts_have_none() -> None:
    """They are refused because of their type; sound would be a wrong guess."""
    for array in (np.array([b"a", b"b"]), np.array(["a"], dtype=object), np.array("a")):
        assert modality_of(array) is None
