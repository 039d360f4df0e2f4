"""The zoo is sound: its checkpoints load as published, are the same in every run, and let no error hide."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .checkpoints import build_checkpoint
from .parameters import parameter
from .rows import ROWS, row
from .table import TOKENIZERS, ModelRow
from .tokenizers import CORPUS

Model: TypeAlias = SentenceTransformer | SparseEncoder | CrossEncoder
Load: TypeAlias = Callable[[ModelRow], Model]

TEXTS = (
    "To reset a password, open the settings page, choose the security tab and write to info@example.org.",
    "Two students measured the speed of sound.",
    "Green tea.",
)
PAIRS = tuple(("How do I reset the password of my account?", text) for text in TEXTS)
LONG = " ".join(CORPUS)
CHANGED = 1e-2
DISTINCT = 2e-2

CLASSES: dict[str, type[Model]] = {
    "embedding": SentenceTransformer,
    "sparse": SparseEncoder,
    "rerank": CrossEncoder,
}
TRANSFORMER_ROWS = [candidate for candidate in ROWS if candidate.backbone.model_type != "model2vec"]
PAIR_ROWS = [candidate for candidate in ROWS if candidate.backbone.model_type in ("bert", "electra") and candidate.head]
# What a row's length comes to in sentence-transformers: said, inherited from the tokenizer, or from the config.
LENGTHS = {
    "all-MiniLM-L6-v2": 256,
    "paraphrase-MiniLM-L3-v2": 128,
    "paraphrase-multilingual-mpnet-base-v2": 128,
    "zoo/every-pooling": 512,
    "cross-encoder/nli-roberta-base": 512,
    "BAAI/bge-reranker-base": 512,
}
LENGTHS_OF_ROTARY_MODELS = {"Qwen/Qwen3-Embedding-0.6B": 32768, "nomic-ai/nomic-embed-text-v1.5": 8192}
# Structure that an exporter could lose: with any of these settings the embeddings must change. Some have one name in
# transformers 4.57 and another in 5.
STRUCTURE = [
    parameter("nomic-ai/modernbert-embed-base", {"local_attention": 4096}),
    parameter(
        "nomic-ai/modernbert-embed-base", {"layer_types": ["full_attention"] * 4, "global_attn_every_n_layers": 1}
    ),
    parameter("google/embeddinggemma-300m", {"sliding_window": 4096}),
    parameter("google/embeddinggemma-300m", {"use_bidirectional_attention": False}),
    parameter("google/embeddinggemma-300m", {"query_pre_attn_scalar": 256}),
    pytest.param(
        "Qwen/Qwen3-Embedding-0.6B",
        {"is_causal": False},
        marks=pytest.mark.needs("transformers", "5", "the setting is_causal"),
    ),
    parameter(
        "Qwen/Qwen3-Embedding-0.6B",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rope_theta": 100.0},
    ),
    parameter("nomic-ai/nomic-embed-text-v1.5", {"hidden_act": "gelu"}),
]


every_row = pytest.mark.parametrize("model_row", [parameter(candidate) for candidate in ROWS])
every_transformer = pytest.mark.parametrize("model_row", [parameter(candidate) for candidate in TRANSFORMER_ROWS])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def load(cache: Path) -> Load:
    loaded: dict[str, Model] = {}

    def load_once(model_row: ModelRow) -> Model:
        if model_row.name not in loaded:
            path = build_checkpoint(model_row, cache)
            loaded[model_row.name] = CLASSES[model_row.task](str(path), device="cpu")
        return loaded[model_row.name]

    return load_once


def _features(model_row: ModelRow, model: Model) -> dict[str, Tensor]:
    if model_row.task == "rerank":
        return model.preprocess(list(PAIRS))
    return model.preprocess(list(TEXTS), **({"task": "document"} if model_row.inference_free_query else {}))


@torch.inference_mode()
def _outputs(model: Model, features: dict[str, Tensor]) -> Tensor:
    """Sentence embeddings, sparse vectors or logits of the features, which stay untouched."""
    return model(dict(features))[_key(model)]


def _key(model: Model) -> str:
    return "scores" if isinstance(model, CrossEncoder) else "sentence_embedding"


def _distance(model_row: ModelRow, before: Tensor, after: Tensor) -> float:
    """How far the texts have moved: the least cosine distance, or the mean change of a reranker's logits.

    Sparse vectors are compared by dot product: half the squared relative distance is their cosine distance
    where the norm stays, and more where it does not.
    """
    if model_row.task == "rerank":
        return (before - after).abs().mean().item()
    if model_row.task == "sparse":
        return (0.5 * ((before - after).norm(dim=1) / before.norm(dim=1)) ** 2).min().item()
    return (1 - cosine_similarity(before, after)).min().item()


def _document_modules(model_row: ModelRow, model: Model) -> list[nn.Module]:
    return list(model[0].sub_modules["document"]) if model_row.inference_free_query else list(model)


@every_row
def test_loads_and_is_finite(model_row: ModelRow, load: Load, cache: Path) -> None:
    model = load(model_row)
    outputs = _outputs(model, _features(model_row, model))
    assert torch.isfinite(outputs).all()
    assert len(outputs) == len(TEXTS)
    path = build_checkpoint(model_row, cache)
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 5e6


@every_row
def test_different_texts_differ(model_row: ModelRow, load: Load) -> None:
    model = load(model_row)
    outputs = _outputs(model, _features(model_row, model))
    for first in range(len(TEXTS)):
        for second in range(first):
            assert _distance(model_row, outputs[first, None], outputs[second, None]) > DISTINCT


@every_row
def test_same_seed_same_files(model_row: ModelRow, cache: Path, tmp_path: Path) -> None:
    first, second = build_checkpoint(model_row, cache), build_checkpoint(model_row, tmp_path)
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(second) for file in second.rglob("*") if file.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_another_seed_other_weights(cache: Path) -> None:
    model_row = row("all-mpnet-base-v2")
    weights = [build_checkpoint(model_row, cache, seed=seed) / "model.safetensors" for seed in (0, 1)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_concurrent_builds_leave_one_complete_checkpoint(tmp_path: Path) -> None:
    model_row = row("all-MiniLM-L6-v2")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: build_checkpoint(model_row, tmp_path), range(4)))
    assert list(tmp_path.iterdir()) == list(paths)
    assert SentenceTransformer(str(paths.pop()), device="cpu").encode("one").shape == (96,)


@every_transformer
def test_wrong_pooling_shows(model_row: ModelRow, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pooling mode; for a reranker, a head that reads the second token instead of the first."""
    model = load(model_row)
    features = _features(model_row, model)
    right = _outputs(model, features)
    if model_row.task == "rerank":
        # A head reads what its encoder gives, or what the whole network does; DeBERTa's encoder gives more than that.
        encoders = [module for name, module in model.named_modules() if name.endswith(".encoder")]
        is_read = encoders and model_row.backbone.model_type != "deberta-v2"
        encoder = encoders[0] if is_read else model.model.base_model

        def shift(_module: nn.Module, _inputs: object, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            outputs["last_hidden_state"] = outputs["last_hidden_state"].roll(-1, dims=1)
            return outputs

        hook = encoder.register_forward_hook(shift)
        wrong = [_outputs(model, features)]
        hook.remove()
    else:
        wrong = []
        pooling = _document_modules(model_row, model)[1]
        if hasattr(pooling, "pooling_strategy"):
            others: list[tuple[str, object]] = [("pooling_strategy", "sum")]
            others.append(
                ("activation_function", {"relu": "log1p_relu", "log1p_relu": "relu"}[pooling.activation_function])
            )
        elif isinstance(pooling.pooling_mode, tuple):
            others = [("pooling_mode", pooling.pooling_mode[::-1]), ("include_prompt", True)]
            features = model.preprocess(list(TEXTS), prompt=model_row.prompts["query"])
            right = _outputs(model, features)
        else:
            modes = {"cls", "mean", "max", "lasttoken"} - {pooling.pooling_mode}
            others = [("pooling_mode", mode) for mode in sorted(modes)]
        for attribute, value in others:
            with monkeypatch.context() as patch:
                patch.setattr(pooling, attribute, value)
                wrong.append(_outputs(model, features))
    for outputs in wrong:
        assert _distance(model_row, right, outputs) > CHANGED


@every_transformer
def test_attended_padding_shows(model_row: ModelRow, load: Load) -> None:
    """The transformer alone is given a mask of ones; pooling keeps the true mask."""
    model = load(model_row)
    features = _features(model_row, model)
    padded = (features["attention_mask"] == 0).any(dim=1)
    assert padded.tolist() == [False, True, True]
    right = _outputs(model, features)
    transformer, *others = _document_modules(model_row, model)
    with torch.inference_mode():
        wrong = transformer(dict(features, attention_mask=torch.ones_like(features["attention_mask"])))
        wrong["attention_mask"] = features["attention_mask"]
        for module in others:
            wrong = module(wrong)
    wrong = wrong[_key(model)]
    assert _distance(model_row, right[padded], wrong[padded]) > CHANGED


@every_transformer
def test_wrong_positions_show(model_row: ModelRow, load: Load) -> None:
    """Absolute positions off by one; without absolute positions, the words in reverse order."""
    model = load(model_row)
    features = _features(model_row, model)
    right = _outputs(model, features)
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    if tables:
        with _rolled(tables[0].weight):
            wrong = _outputs(model, features)
    else:
        ids = _reversed(features["input_ids"], features["attention_mask"])
        wrong = _outputs(model, dict(features, input_ids=ids))
    assert _distance(model_row, right, wrong) > CHANGED


@contextmanager
@torch.no_grad()
def _rolled(weight: Tensor) -> Iterator[None]:
    """Each row of an embedding table in its neighbour's place."""
    original = weight.clone()
    weight.copy_(original.roll(1, dims=0))
    yield
    weight.copy_(original)


def _reversed(ids: Tensor, mask: Tensor) -> Tensor:
    turned = ids.clone()
    for line, attended in zip(turned, mask, strict=True):
        inner = attended.nonzero().squeeze(1)[1:-1]
        line[inner] = line[inner.flip(0)]
    return turned


def test_relative_positions_show(load: Load) -> None:
    model_row = row("all-mpnet-base-v2")
    model = load(model_row)
    features = _features(model_row, model)
    right = _outputs(model, features)
    with _rolled(model[0].model.encoder.relative_attention_bias.weight):
        assert _distance(model_row, right, _outputs(model, features)) > CHANGED


@pytest.mark.parametrize("model_row", [parameter(candidate) for candidate in PAIR_ROWS])
def test_dropped_token_types_show(model_row: ModelRow, load: Load) -> None:
    model = load(model_row)
    features = _features(model_row, model)
    wrong = _outputs(model, dict(features, token_type_ids=torch.zeros_like(features["token_type_ids"])))
    assert _distance(model_row, _outputs(model, features), wrong) > CHANGED


@pytest.mark.parametrize(("name", "settings"), STRUCTURE)
def test_lost_structure_shows(name: str, settings: dict[str, object], load: Load, cache: Path, tmp_path: Path) -> None:
    model_row = row(name)
    changed = shutil.copytree(build_checkpoint(model_row, cache), tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | settings))
    right, wrong = load(model_row), SentenceTransformer(str(changed), device="cpu")
    features = _features(model_row, right)
    assert _distance(model_row, _outputs(right, features)[:1], _outputs(wrong, features)[:1]) > CHANGED


@pytest.mark.parametrize(("name", "length"), [parameter(*item) for item in LENGTHS.items()])
def test_long_texts_end_at_the_expected_length(name: str, length: int, load: Load) -> None:
    model = load(row(name))
    assert model.max_seq_length == length
    assert model.preprocess([LONG])["input_ids"].shape == (1, length)
    assert model.preprocess(["short"])["input_ids"].shape[1] < 10


@pytest.mark.parametrize(("name", "length"), [parameter(*item) for item in LENGTHS_OF_ROTARY_MODELS.items()])
def test_lengths_of_rotary_models_come_from_the_config(name: str, length: int, load: Load) -> None:
    assert load(row(name)).max_seq_length == length


@every_transformer
def test_tokenizer_is_of_the_published_kind(model_row: ModelRow, load: Load) -> None:
    tokenizer = load(model_row).tokenizer
    facts = TOKENIZERS[model_row.backbone.tokenizer]
    for name, token in facts.special_tokens.items():
        assert getattr(tokenizer, name) == token
        assert token in tokenizer.get_vocab()
    assert tokenizer.padding_side == facts.padding_side
    if facts.pad_id < len(tokenizer):
        assert tokenizer.pad_token_id == facts.pad_id
    expected = model_row.backbone.tokenizer_class or facts.tokenizer_class
    # transformers 4.57 has a class in Rust for each, 5 has one for all that no longer differ.
    assert type(tokenizer).__name__ in (expected, f"{expected}Fast", "TokenizersBackend", "BertTokenizer")


@pytest.mark.parametrize("model_row", [parameter(candidate) for candidate in ROWS if candidate.task == "sparse"])
def test_sparse_vectors_are_sparse(model_row: ModelRow, load: Load) -> None:
    model = load(model_row)
    active = (_outputs(model, _features(model_row, model)) > 0).float().mean(dim=1)
    assert active.min() > 0.005
    assert active.max() < 0.25


def test_special_tokens_weigh_in_the_inference_free_query(load: Load) -> None:
    model = load(row("opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill"))
    query = model.encode_query(list(TEXTS)).to_dense()
    assert (query[:, [model.tokenizer.cls_token_id, model.tokenizer.sep_token_id]] == 0).all()
    assert (model[0].sub_modules["query"][0].weight > 0).all()
    assert not torch.allclose(query, model.encode_document(list(TEXTS)).to_dense())


@pytest.mark.parametrize("model_row", [parameter(candidate) for candidate in ROWS if candidate.head])
def test_reranker_heads_are_as_published(model_row: ModelRow, load: Load) -> None:
    assert model_row.head is not None
    model = load(model_row)
    assert model.num_labels == model_row.head.labels
    assert type(model.activation_fn).__name__ == model_row.head.activation


@every_row
def test_the_layout_is_the_one_of_the_row(model_row: ModelRow, cache: Path) -> None:
    modules = build_checkpoint(model_row, cache) / "modules.json"
    if model_row.layout == "legacy" and model_row.task == "rerank":
        assert not modules.exists()
        return
    types = [module["type"] for module in json.loads(modules.read_text())]
    assert all((".models." in kind) == (model_row.layout == "legacy") for kind in types)


def test_layouts_are_both_covered() -> None:
    assert sum(model_row.layout == "6.x" for model_row in ROWS) >= len(ROWS) // 3
