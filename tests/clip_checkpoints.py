"""A CLIP checkpoint in the published structure: small widths, seeded weights, a tokenizer of CLIP's own kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stonnx_export import export
from tests.zoo.checkpoints import randomize
from tests.zoo.table import IMAGE_MODELS, ImageModelRow, Size
from tests.zoo.tokenizers import CORPUS

ROW = IMAGE_MODELS[0]
IMAGE_SIZE = ROW.image_size[1]


def preprocessor_of(row: ImageModelRow) -> dict[str, Any]:
    """The settings of a row's image processor, at the size that is built."""
    size = row.image_size[1]
    return {**row.processor, "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


PREPROCESSOR: Mapping[str, Any] = preprocessor_of(ROW)


def write_clip(
    directory: Path,
    *,
    row: ImageModelRow = ROW,
    preprocessor: Mapping[str, Any] | None = None,
    layout: str = "legacy",
    legacy_eos: bool = True,
    seed: int = 0,
) -> Path:
    """The checkpoint: ``legacy`` as clip-ViT-B-32 has it, ``6.x`` as version 6 saves it, ``plain`` without modules."""
    folder = directory / "0_CLIPModel" if layout == "legacy" else directory
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    config = CLIPConfig(
        text_config={
            **_sizes(row, row.text[1]),
            "vocab_size": len(tokenizer),
            "max_position_embeddings": row.positions,
            # Checkpoints of before 2023 say 2, and the network takes the highest id instead.
            "eos_token_id": 2 if legacy_eos else tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **_sizes(row, row.vision[1]),
            "image_size": row.image_size[1],
            "patch_size": row.patch_size[1],
        },
        projection_dim=row.projection[1],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        generator = torch.Generator().manual_seed(seed)
        for part in (model.text_model, model.vision_model, model.text_projection, model.visual_projection):
            randomize(part, generator)
        with torch.no_grad():
            # A patch has 768 numbers: their sum is to weigh as much as a position.
            model.vision_model.embeddings.patch_embedding.weight *= 0.04
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(preprocessor or preprocessor_of(row))))
    if layout != "plain":
        kind = {
            "legacy": "sentence_transformers.models.CLIPModel",
            "6.x": "sentence_transformers.base.modules.transformer.Transformer",
        }[layout]
        modules = [{"idx": 0, "name": "0", "path": folder.name if layout == "legacy" else "", "type": kind}]
        (directory / "modules.json").write_text(json.dumps(modules))
    if layout == "6.x":
        (directory / "sentence_bert_config.json").write_text(
            json.dumps(
                {
                    "transformer_task": "feature-extraction",
                    "modality_config": {
                        modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
                        for modality in ("text", "image")
                    },
                    "module_output_name": "sentence_embedding",
                }
            )
        )
    return directory


def clip_bundle(directory: Path) -> tuple[Path, Path]:
    """A checkpoint and its fp32 bundle, made once in a test run."""
    checkpoint, bundle = directory / "clip-checkpoint", directory / "clip-fp32"
    with WeakFileLock(directory / "clip.lock"):
        if not bundle.exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
            export(write_clip(checkpoint), bundle)
    return checkpoint, bundle


def _sizes(row: ImageModelRow, size: Size) -> dict[str, object]:
    return {
        **row.config,
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "intermediate_size": size.intermediate,
    }


def _tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer that is built as CLIP's: lower case, ``</w>`` at the end of words, padded with its end."""
    blank = CLIPTokenizer()
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    backend.normalizer = blank.backend_tokenizer.normalizer
    backend.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    # Given in this order, the letters at the end of words have the same numbers each time, and so have the merges.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        special_tokens=names,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    names += sorted(model["vocab"].keys() - set(names), key=model["vocab"].__getitem__)
    vocabulary = {name: index for index, name in enumerate(names)}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=ROW.positions)
