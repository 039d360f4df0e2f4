"""Checkpoints of late interaction in every layout: true structure, small sizes, seeded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from tokenizers import AddedToken
from torch import nn
from transformers import AutoTokenizer

from . import checkpoints
from .building import built_once
from .late_interaction import LateRow
from .table import BERT, ModelRow


def build_late_checkpoint(late: LateRow, directory: Path, *, seed: int = 0) -> Path:
    """The row's checkpoint below `directory`, built there if it is not there yet."""
    return built_once(directory, f"{late.slug}-{seed}", seed, lambda scratch: _write(late, scratch, seed))


def build_routed_checkpoint(
    directory: Path,
    *,
    inside: Literal["dense", "networks", "everything"] = "dense",
    names: tuple[str, str] = ("query", "document"),
    width: int = 24,
    pooled: bool = False,
    seed: int = 0,
) -> Path:
    """A checkpoint at `directory` whose queries and documents pass other modules, in a Router.

    `inside` says which modules the routes have of their own: the projection, the network too, or all. `width` and
    `pooled` are about the second route.
    """
    plain = directory.with_name(f"{directory.name}-plain")
    checkpoints.write_backbone(ModelRow("zoo/routed", BERT, "legacy"), plain, seed)
    expansion = {"strategy": "fixed", "length": 16, "attend": False, "token": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [Transformer(str(plain), query_expansion=expansion), Transformer(str(plain), document_length=40)]
        if inside == "dense":
            networks = [Transformer(str(plain), query_expansion=expansion, document_length=40)]
        size = networks[0].get_embedding_dimension()
        options = {"bias": False, "activation_function": nn.Identity(), "module_input_name": "token_embeddings"}
        routes: list[list[nn.Module]] = [[Dense(size, columns, **options)] for columns in (24, width)]
    ends: list[list[nn.Module]] = [
        [MultiVectorMask(skiplist_words=words), Normalize(module_input_name="token_embeddings")]
        for words in ([], [".", ","])
    ]
    if inside != "dense":
        routes = [[network, *route] for network, route in zip(networks, routes, strict=True)]
    if inside == "everything":
        routes = [route + end for route, end in zip(routes, ends, strict=True)]
    if pooled:
        routes[1].append(HierarchicalTokenPooling(2.0))
    router = Router(dict(zip(names, routes, strict=True)), default_route=names[1])
    before, after = networks if inside == "dense" else [], [] if inside == "everything" else ends[1]
    model = MultiVectorEncoder(modules=[*before, router, *after], device="cpu", prompts={"query": "q: "})
    model.save_pretrained(str(directory), create_model_card=False)
    return directory


def _write(late: LateRow, directory: Path, seed: int) -> None:
    plain = ModelRow(late.name, late.backbone, "legacy")
    checkpoints.write_backbone(plain, directory, seed)
    if late.settings.get("query_expansion"):  # published decoders put their expansion after a query
        _update(directory / "tokenizer_config.json", padding_side="right")
    _add_markers(late, directory)
    layers = _layers(late, plain, seed)
    match late.layout:
        case "native":
            _write_native(late, directory, layers)
        case "stanford":
            _write_stanford(late, directory, layers)
        case _:
            _write_pylate(late, directory, layers)


def _add_markers(late: LateRow, directory: Path) -> None:
    """Put the markers into the vocabulary, in place of rare words, and make the network's table no larger."""
    if not late.markers:
        return
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    # Stanford's are words of BERT's vocabulary that nobody uses; PyLate's are added tokens.
    tokenizer.add_tokens([AddedToken(marker, normalized=True) for marker in late.markers])
    tokenizer.save_pretrained(str(directory))
    weights = load_file(str(directory / "model.safetensors"))
    size = len(tokenizer)
    for name, weight in weights.items():
        if weight.shape[0] < size and ("word_embeddings" in name or "tok_embeddings" in name):
            more = torch.randn(size - weight.shape[0], weight.shape[1], generator=torch.Generator().manual_seed(1))
            weights[name] = torch.cat([weight, more])
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    _update(directory / "config.json", vocab_size=size)


def _layers(late: LateRow, plain: ModelRow, seed: int) -> list[Dense]:
    published, built = late.backbone.published.hidden, late.backbone.built.hidden
    layers, width = [], built
    for dimensions in late.dimensions:
        layer = Dense(
            width,
            max(24, dimensions * built // published),
            bias=False,
            activation_function=nn.Identity(),
            module_input_name="token_embeddings",
            use_residual=late.residual,
        )
        checkpoints.randomize(layer, checkpoints.generator(plain, seed + 1 + len(layers)))
        layers.append(layer)
        width = layer.out_features
    return layers


def _write_native(late: LateRow, directory: Path, layers: list[Dense]) -> None:
    modules: list[nn.Module] = [
        Transformer(str(directory), **late.settings),
        *layers,
        MultiVectorMask(**late.mask),
        Normalize(module_input_name="token_embeddings"),
    ]
    if late.pooling:
        modules.append(HierarchicalTokenPooling(**late.pooling))
    model = MultiVectorEncoder(modules=modules, device="cpu", prompts=dict(late.prompts))
    for file in directory.iterdir():
        file.unlink()
    model.save_pretrained(str(directory), create_model_card=False)


def _write_pylate(late: LateRow, directory: Path, layers: list[Dense]) -> None:
    entries = [("", "sentence_transformers.models.Transformer")]
    for number, layer in enumerate(layers, start=1):
        folder = directory / f"{number}_Dense"
        folder.mkdir()
        layer.save(str(folder))
        config = json.loads((folder / "config.json").read_text())
        del config["module_input_name"], config["module_output_name"]
        (folder / "config.json").write_text(json.dumps(config))
        entries.append((folder.name, "pylate.models.Dense.Dense"))
    (directory / "modules.json").write_text(
        json.dumps([{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(entries)])
    )
    settings = {**({"model_type": "ColBERT"} if late.layout == "pylate" else {}), **late.settings}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 299, "do_lower_case": False}))


def _write_stanford(late: LateRow, directory: Path, layers: list[Dense]) -> None:
    """The projection among the weights of the network, whose names begin with `bert.`."""
    weights = load_file(str(directory / "model.safetensors"))
    weights = {f"bert.{name}": weight for name, weight in weights.items()}
    weights["linear.weight"] = layers[0].linear.weight.detach().clone()
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    _update(directory / "config.json", architectures=["HF_ColBERT"])
    (directory / "artifact.metadata").write_text(json.dumps(dict(late.settings)))


def _update(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
