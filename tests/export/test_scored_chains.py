"""CrossEncoders that are a chain of modules: a network, a pooling, and layers that end with scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling, Transformer

import stonnx
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint

pytestmark = pytest.mark.needs("sentence-transformers", "6", "modules of a CrossEncoder")

PAIRS = [("who plays", "A man is playing a large flute."), ("", "rain " * 80), ("a", "")]


@pytest.fixture
def save(build_small: Any, tmp_path: Path) -> Any:
    def build(head: Sequence[torch.nn.Module], **options: Any) -> Path:
        transformer = Transformer(str(build_small("bert", num_hidden_layers=2)))
        with torch.no_grad():
            for module in head:
                for parameter in module.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        model = sentence_transformers.CrossEncoder(modules=[transformer, *head], device="cpu", **options)
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        return tmp_path / "saved"

    return build


@pytest.mark.parametrize(
    ("labels", "options"),
    [(1, {}), (3, {}), (1, {"activation_fn": torch.nn.Identity(), "prompts": {"ask": "find: "}})],
)
def test_scores_equal_the_original(save: Any, tmp_path: Path, labels: int, options: dict[str, Any]) -> None:
    head = [
        Pooling(32, "cls"),
        Dense(32, 16, activation_function=torch.nn.GELU()),
        LayerNorm(16),
        Dense(16, labels, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    checkpoint = save(head, **options)
    ours = stonnx.CrossEncoder(export(checkpoint, tmp_path / "bundle"))
    original = sentence_transformers.CrossEncoder(str(checkpoint), device="cpu")
    call = {"prompt_name": "ask"} if options else {}
    expected = np.stack([original.predict([pair], **call)[0] for pair in PAIRS])
    np.testing.assert_allclose(ours.predict(PAIRS, **call), expected, atol=1e-5)
    assert ours.num_labels == original.num_labels == labels
    assert [module.type for module in ours.manifest.modules] == [
        *("Transformer", "Pooling", "Dense", "LayerNorm", "Dense"),
    ]


def test_a_chain_without_scores_is_refused(save: Any) -> None:
    checkpoint = save([Pooling(32, "cls"), Dense(32, 1)])
    with pytest.raises(stonnx.UnsupportedError, match=r"last module, Dense, gives no scores.*module_output_name"):
        read_checkpoint(checkpoint)
