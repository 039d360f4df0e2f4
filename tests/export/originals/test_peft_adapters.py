"""Adapters: merged into their model at the export, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export, pipeline

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.needs("sentence-transformers", "6", "adapters in every class")

TEXTS = ["", "He drove to the stadium in the rain.", "flute " * 60]
PAIRS = [("who plays", text) for text in TEXTS]
# Class of the model -> the network that it is built on, its type, and where it is adapted.
KINDS = {
    "SentenceTransformer": (AutoModel, "bert", ["query", "value"]),
    "SparseEncoder": (AutoModelForMaskedLM, "bert", ["query", "dense"]),
    "CrossEncoder": (AutoModelForSequenceClassification, "bert", ["query", "value"]),
}
Adapt = Callable[..., tuple[Path, Path]]


def move(network: torch.nn.Module) -> None:
    """Weights of an adapter, which begins without any effect."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def save_adapter(checkpoint: Path, network: torch.nn.Module, base: Path, **settings: Any) -> None:
    """An adapter for a network in place of the network in a checkpoint."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | settings)
    peft.inject_adapter_in_model(config, network)
    move(network)
    state = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    weights = {f"base_model.model.{name}": value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, checkpoint / "adapter_model.safetensors")
    config.base_model_name_or_path = str(base)
    config.save_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "config.json").unlink()


@pytest.fixture
def adapt(build_small: Any, tmp_path: Path) -> Adapt:
    """``adapt(kind, **settings)``: an adapter as sentence-transformers saves it, and its model."""

    def build(kind: str, **settings: Any) -> tuple[Path, Path]:
        auto, model_type, targets = KINDS[kind]
        base = build_small(model_type, auto=auto, **({"num_labels": 1} if kind == "CrossEncoder" else {}))
        base = base.rename(tmp_path / "base")
        model = getattr(sentence_transformers, kind)(str(base), device="cpu")
        adapter = tmp_path / "adapter"
        model.save_pretrained(str(adapter), create_model_card=False)
        save_adapter(adapter, model[0].model, base, **{"target_modules": targets} | settings)
        return adapter, base

    return build


def run(model: Any) -> np.ndarray:
    if hasattr(model, "predict"):
        return np.concatenate([np.atleast_1d(model.predict([pair])) for pair in PAIRS])
    options = {"convert_to_sparse_tensor": False} if type(model).__name__ == "SparseEncoder" else {}
    return np.concatenate([np.asarray(model.encode([text], **options)) for text in TEXTS])


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_gives_what_the_original_gives(kind: str, adapt: Adapt, tmp_path: Path) -> None:
    adapter, base = adapt(kind)
    assert not list(adapter.glob("model*"))
    bundle = export(adapter, tmp_path / "bundle")
    expected = run(getattr(sentence_transformers, kind)(str(adapter), device="cpu"))
    found = run(getattr(stonnx, kind)(bundle))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = run(getattr(sentence_transformers, kind)(str(base), device="cpu"))
    assert np.abs(plain - expected).max() > 1e-2
    manifest = read_manifest(bundle)
    assert manifest.source.base is not None
    assert manifest.source.base.name == str(base)
    assert manifest.architecture == "bert"
    assert not any("lora" in name for name in manifest.kept)
    assert f"merged into `{base}`" in (bundle / "README.md").read_text()


def test_both_revisions_are_in_the_manifest(adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, base = adapt("SentenceTransformer")
    places = {"acme/base": "b" * 40, "acme/adapter": "a" * 40}
    for name, (source, commit) in zip(places, ((base, "b" * 40), (adapter, "a" * 40)), strict=True):
        shutil.copytree(source, tmp_path / name / "snapshots" / commit)
    file = tmp_path / "acme/adapter/snapshots" / ("a" * 40) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "acme/base"}))
    # As a download from the Hub.
    from stonnx_export.originals import load

    for module in (load, pipeline):
        monkeypatch.setattr(
            module, "find_checkpoint", lambda name, *_, **__: tmp_path / name / "snapshots" / places[name]
        )
    source = read_manifest(export("acme/adapter", tmp_path / "bundle")).source
    assert (source.name, source.revision) == ("acme/adapter", "a" * 40)
    assert source.base is not None
    assert (source.base.name, source.base.revision) == ("acme/base", "b" * 40)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("targets", "tied"), [(["q_proj", "lm_head"], False), (["embed_tokens"], True)])
def test_a_causal_reranker_with_an_adapter(build_small: Any, tmp_path: Path, targets: list[str], tied: bool) -> None:
    """Of a table that the head shares, the adapter changes what the tokens are and not what the head is."""
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    settings = {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": tied}
    base = build_small("qwen3", auto=AutoModelForCausalLM, **settings).rename(tmp_path / "base")
    transformer = Transformer(str(base), transformer_task="text-generation")
    model = sentence_transformers.CrossEncoder(modules=[transformer, LogitScore(7, 8)], device="cpu")
    model.save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    save_adapter(tmp_path / "adapter", transformer.model, base, target_modules=targets)
    bundle = export(tmp_path / "adapter", tmp_path / "bundle")
    expected = run(sentence_transformers.CrossEncoder(str(tmp_path / "adapter"), device="cpu"))
    np.testing.assert_allclose(run(stonnx.CrossEncoder(bundle)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "bias": "lora_only"},
        {"modules_to_save": ["classifier"]},
        {"rank_pattern": {"query": 8}, "alpha_pattern": {"value": 3}, "target_modules": "all-linear"},
    ],
)
def test_kinds_of_lora(adapt: Adapt, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter, _ = adapt("CrossEncoder", **settings)
    expected = run(sentence_transformers.CrossEncoder(str(adapter), device="cpu"))
    np.testing.assert_allclose(run(stonnx.CrossEncoder(export(adapter, tmp_path / "bundle"))), expected, atol=1e-4)


def test_dora_is_merged_whole_or_refused(adapt: Adapt, tmp_path: Path) -> None:
    """transformers 5.24 leaves the magnitudes of DoRA out; versions that load them give a merged model."""
    adapter, _ = adapt("SentenceTransformer", use_dora=True)
    message, bundle = "", tmp_path / "bundle"
    try:
        export(adapter, bundle)
    except stonnx.UnsupportedError as error:
        message = str(error)
    refused = bool(re.search(r"is a DoRA adapter .*merge_and_unload\(\)", message))
    assert refused != bundle.exists(), message
    if not refused:
        expected = run(sentence_transformers.SentenceTransformer(str(adapter), device="cpu"))
        np.testing.assert_allclose(run(stonnx.SentenceTransformer(bundle)), expected, atol=1e-4)


@pytest.mark.parametrize("change", ["shape", "name", "target"])
def test_an_adapter_for_another_model_is_refused(change: str, adapt: Adapt, tmp_path: Path) -> None:
    adapter, base = adapt("SentenceTransformer")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(str(file))
    if change == "shape":
        weights = {name: torch.cat([value, value], dim=-1) for name, value in weights.items()}
    elif change == "name":
        weights = {name.replace("layer.0", "layer.7"): value for name, value in weights.items()}
    else:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
    save_file(weights, str(file))
    with pytest.raises(stonnx.UnsupportedError, match=rf"adapter is an adapter for another model than '{base}'"):
        export(adapter, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_adapter_whose_model_is_missing(adapt: Adapt, tmp_path: Path) -> None:
    adapter, base = adapt("SentenceTransformer")
    shutil.rmtree(base)
    with pytest.raises(stonnx.ModelNotFoundError, match=rf"adapter for the model '{base}', which is missing"):
        export(adapter, tmp_path / "bundle")


def test_other_kinds_of_adapters_are_refused(adapt: Adapt, tmp_path: Path) -> None:
    adapter, _ = adapt("SentenceTransformer")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(stonnx.UnsupportedError, match=r"of the kind PROMPT_TUNING, which cannot be merged"):
        export(adapter, tmp_path / "bundle")


def test_an_adapter_is_not_exported_from_onnx(adapt: Adapt, tmp_path: Path) -> None:
    adapter, _ = adapt("SentenceTransformer")
    with pytest.raises(stonnx.UnsupportedError, match="--source torch"):
        export(adapter, tmp_path / "bundle", source="onnx")


def test_without_peft_the_error_says_how_to_get_it(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = adapt("SentenceTransformer")
    from stonnx_export.originals import adapter as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    whole = module.with_base(adapter, Path, lambda _: None)
    with pytest.raises(stonnx.MissingDependencyError, match=r"stonnx\[cpu,export,adapters\]"), whole:
        pass
