"""Architectures that nothing in the exporter names: one that works as it is, and one that has to be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixture_types import Build, TracedOnce
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling
from transformers import AutoModel

import stonnx
from stonnx_export import export

TEXTS = ["", "He drove to the stadium in the rain.", "flute", "Сегодня утром в парке было тихо. " * 4]


def test_one_that_works(build_small: Build, tmp_path: Path) -> None:
    """DeBERTa's attention is of its own kind: content to position and back, with positions in buckets."""
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    checkpoint = build_small(
        "deberta-v2", position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, **attention
    )
    bundle = export(checkpoint, tmp_path / "bundle")
    original = SentenceTransformer(str(checkpoint), device="cpu")
    expected = np.concatenate([original.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(stonnx.SentenceTransformer(bundle).encode(TEXTS), expected, atol=1e-5)


def test_one_that_cannot_be_traced(build_small: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Longformer cuts a text into windows, and computes how many there are."""
    checkpoint = build_small("longformer", attention_window=8, pad_token_id=0)
    capfd.readouterr()
    with pytest.raises(
        stonnx.UnsupportedError, match=r"(?s)type .longformer. cannot be exported.*--source onnx"
    ) as raised:
        export(checkpoint, tmp_path / "bundle")
    message = str(raised.value)
    assert "ended in GuardOnDataDependent" in message
    assert message.count("\n") == 1
    assert "aten" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("row", [0.0, 1.0])
def test_one_that_reads_padding(build_small: Build, tmp_path: Path, row: float) -> None:
    """MobileBERT reads the words beside each one, and padding is one of them unless its row is zero."""
    checkpoint = build_small(
        "mobilebert", embedding_size=32, intra_bottleneck_size=32, num_feedforward_networks=1, pad_token_id=0
    )
    model = AutoModel.from_pretrained(checkpoint)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = row
    model.save_pretrained(checkpoint)
    if not row:
        export(checkpoint, tmp_path / "bundle")
        return
    with pytest.raises(stonnx.FidelityError, match=r"reads the padding.*MobileBERT.*Set that row to zero"):
        export(checkpoint, tmp_path / "bundle")


def test_hidden_states_of_all_layers(build_small: Build, tmp_path: Path) -> None:
    """WeightedLayerPooling is fed by every layer, which no other module asks of a network."""
    checkpoint = build_small("bert", num_hidden_layers=3, output_hidden_states=True)
    weights = torch.nn.Parameter(torch.tensor([0.2, 0.5, 0.3]))
    layers = WeightedLayerPooling(32, num_hidden_layers=3, layer_start=1, layer_weights=weights)
    model = SentenceTransformer(modules=[Transformer(str(checkpoint)), layers, Pooling(32, "mean")], device="cpu")
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    ours = stonnx.SentenceTransformer(export(tmp_path / "saved", tmp_path / "bundle"))
    expected = np.concatenate([model.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    last = SentenceTransformer(modules=[model[0], Pooling(32, "mean")], device="cpu").encode(TEXTS)
    assert np.abs(last - expected).max() > 0.01


def test_layers_are_named_by_their_modules(tiny_original: TracedOnce) -> None:
    """So that a report can name those that lose most."""
    products = [node for node in tiny_original.graph("default").graph if node.op_type == "MatMul"]
    assert [product.outputs[0].name for product in products][:7] == [
        "encoder.layer.0.attention.self.query/MatMul",
        "encoder.layer.0.attention.self.key/MatMul",
        "encoder.layer.0.attention.self.value/MatMul",
        "encoder.layer.0.attention.output.dense/MatMul",
        "encoder.layer.0.intermediate.dense/MatMul",
        "encoder.layer.0.output.dense/MatMul",
        "encoder.layer.1.attention.self.query/MatMul",
    ]
