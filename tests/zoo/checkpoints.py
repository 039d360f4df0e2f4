"""From a row of the table to a checkpoint directory: true structure, small sizes, seeded weights that hide no error."""

from __future__ import annotations

import json
import math
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SparseStaticEmbedding, SpladePooling
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedModel,
)

from . import table
from .building import built_once
from .table import TOKENIZERS, ModelRow
from .tokenizers import build_tokenizer, save_tokenizer

# The standard deviation of a parameter by its name, first match wins; a linear layer's is divided by sqrt(inputs).
# Queries and keys are scaled so that attention is far from uniform, positions weigh as much as words.
_EMBEDDING_SCALES = (
    (re.compile(r"relative_attention_bias"), 2.0),
    (re.compile(r"token_type_embeddings"), 0.7),
    (re.compile(r"embeddings|embed_tokens"), 1.0),
)
_LINEAR_SCALES = (
    (re.compile(r"\b(q|k|q_lin|k_lin|query|key|q_proj|k_proj|Wqkv)\.weight"), 1.8),
    (re.compile(r"classifier|out_proj"), 2.0),
    (re.compile(r""), 1.2),
)
_BIAS_SCALE = 0.15
_NORM_SCALE = 0.3
# Queries and keys that pass a norm of their own are sharpened there.
_HEAD_NORM = re.compile(r"\b[qk]_norm\.weight")
_HEAD_NORM_SHIFT = 0.8

_MOBILEBERT_QUERIES = 0.004

_INTERMEDIATE_NAMES = {"distilbert": "hidden_dim", "t5": "d_ff", "mt5": "d_ff"}
_LEGACY_CLASSES = {
    Transformer: "sentence_transformers.models.Transformer",
    Pooling: "sentence_transformers.models.Pooling",
    Dense: "sentence_transformers.models.Dense",
    LayerNorm: "sentence_transformers.models.LayerNorm",
    Normalize: "sentence_transformers.models.Normalize",
    SpladePooling: "sentence_transformers.sparse_encoder.models.SpladePooling",
    SparseAutoEncoder: "sentence_transformers.sparse_encoder.models.SparseAutoEncoder",
}
_LEGACY_MLM = "sentence_transformers.sparse_encoder.models.MLMTransformer"
_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_MODEL_TYPES = {"embedding": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}
_NLI_LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}


def build_checkpoint(row: ModelRow, directory: Path, *, seed: int = 0) -> Path:
    """The row's checkpoint below `directory`, built there if it is not there yet."""
    return built_once(directory, f"{row.slug}-{seed}", seed, lambda scratch: _write(row, scratch, seed))


def _write(row: ModelRow, directory: Path, seed: int) -> None:
    if row.backbone.model_type == "model2vec":
        _write_static(row, directory, seed)
    elif row.layout == "6.x":
        with tempfile.TemporaryDirectory() as plain:
            write_backbone(row, Path(plain), seed)
            _save_pretrained(row, Path(plain), directory, seed)
    else:
        write_backbone(row, directory, seed)
        _write_legacy(row, directory, seed)


def write_backbone(row: ModelRow, directory: Path, seed: int) -> None:
    """Write the transformers part: config.json, model.safetensors and the tokenizer."""
    backbone, size = row.backbone, row.backbone.built
    tokenizer = build_tokenizer(backbone.tokenizer)
    intermediate = _INTERMEDIATE_NAMES.get(backbone.model_type, "intermediate_size")
    settings: dict[str, object] = {
        "vocab_size": tokenizer.get_vocab_size(),
        **({"max_position_embeddings": backbone.positions} if backbone.positions else {}),
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        intermediate: size.intermediate,
        **_token_ids(row),
        **backbone.config,
        **backbone.built_config,
    }
    if row.head is not None:
        settings["num_labels"] = row.head.labels
        if row.head.labels == len(_NLI_LABELS):
            settings["id2label"] = _NLI_LABELS
            settings["label2id"] = {label: index for index, label in _NLI_LABELS.items()}
        if row.head.recorded_in == "sentence_transformers":
            settings["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        elif row.head.recorded_in is not None and row.layout == "legacy":
            settings[row.head.recorded_in] = "torch.nn.modules.linear.Identity"
    config = AutoConfig.for_model(backbone.model_type, **settings)
    model = _auto_class(row).from_config(config)
    randomize(model, generator(row, seed))
    model.save_pretrained(directory)
    save_tokenizer(row, directory)


def _token_ids(row: ModelRow) -> dict[str, int]:
    """The padding id, and the other ids that the model's config class names by default."""
    special = dict(TOKENIZERS[row.backbone.tokenizer].special_tokens)
    special.setdefault("bos_token", special.get("cls_token", ""))
    special.setdefault("eos_token", special.get("sep_token", ""))
    defaults = AutoConfig.for_model(row.backbone.model_type)
    known = [name for name in special if special[name]]
    named = [name for name in known if name == "pad_token" or getattr(defaults, f"{name}_id", None) is not None]
    vocabulary = build_tokenizer(row.backbone.tokenizer).get_vocab()
    return {f"{name}_id": vocabulary[special[name]] for name in named}


def _auto_class(row: ModelRow) -> type[AutoModel]:
    if row.task == "rerank":
        return AutoModelForCausalLM if row.head and row.head.answers else AutoModelForSequenceClassification
    if row.backbone.model_type in ("t5", "mt5"):
        return AutoModelForTextEncoding
    return AutoModelForMaskedLM if _is_splade(row) else AutoModel


def _is_splade(row: ModelRow) -> bool:
    return any(isinstance(module, table.SpladePooling) for module in row.chain)


def generator(row: ModelRow, seed: int) -> torch.Generator:
    """The random numbers of a row."""
    return torch.Generator().manual_seed(zlib.crc32(row.name.encode()) + seed)


@torch.no_grad()
def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Replace the matrices and move the vectors (biases, norms) away from their initial zeros and ones."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter += (_BIAS_SCALE if name.endswith("bias") else _NORM_SCALE) * noise
            parameter += _HEAD_NORM_SHIFT if _HEAD_NORM.search(name) else 0.0
            continue
        parameter.copy_(_deviation(name, inputs=parameter.shape[-1]) * noise)
    if isinstance(model, PreTrainedModel):
        _fit_vocabulary(model)


def _deviation(name: str, *, inputs: int) -> float:
    """The standard deviation of a matrix."""
    for pattern, scale in _EMBEDDING_SCALES:
        if pattern.search(name):
            return scale
    gain = next(scale for pattern, scale in _LINEAR_SCALES if pattern.search(name))
    return gain / math.sqrt(inputs)


def _fit_vocabulary(model: PreTrainedModel) -> None:
    """Gemma multiplies its embeddings by sqrt(hidden); logits over a vocabulary are to be sparse after a ReLU.

    MobileBERT reads the words beside each one: padding has the zeros that transformers gives it, which a text alone has
    at its ends. It has no norms that keep values small, so its attention needs smaller queries.
    """
    words = model.get_input_embeddings()
    if model.config.model_type == "mobilebert":
        words.weight[words.padding_idx] = 0.0
        for name, parameter in model.named_parameters():
            if name.endswith("query.weight"):
                parameter *= _MOBILEBERT_QUERIES
    words.weight /= getattr(words, "embed_scale", 1.0)
    head = model.get_output_embeddings()
    if head is not None and head.bias is not None:
        head.bias -= 2.5 * math.sqrt(words.weight.shape[1])


def _modules(row: ModelRow, seed: int) -> list[nn.Module]:
    """The modules after the transformer, at the built size."""
    published, built = row.backbone.published.hidden, row.backbone.built.hidden
    noise = generator(row, seed + 1)
    modules: list[nn.Module] = []
    width = built
    for spec in row.chain:
        match spec:
            case table.Pooling(modes=modes, include_prompt=include_prompt):
                module: nn.Module = Pooling(width, modes, include_prompt)
                width *= len(modes)
            case table.Dense(out_features=out_features, activation=activation, bias=bias):
                module = Dense(width, out_features * built // published, bias, getattr(nn, activation)())
                width = module.out_features
            case table.LayerNorm():
                module = LayerNorm(width)
            case table.Normalize():
                module = Normalize()
            case table.SpladePooling(strategy=strategy, activation=activation):
                module = SpladePooling(strategy, activation)
            case table.SparseAutoEncoder(hidden_dim=hidden_dim, k=k, k_aux=k_aux):
                latents, active, spare = (value * built // published for value in (hidden_dim, k, k_aux))
                module = SparseAutoEncoder(width, latents, active, spare)
        randomize(module, noise)
        modules.append(module)
    return modules


def _save_pretrained(row: ModelRow, plain: Path, directory: Path, seed: int) -> None:
    """The 6.x layout, written by the library itself."""
    if row.task == "rerank":
        assert row.head is not None
        activation = getattr(nn, row.head.activation)()
        options = {"device": "cpu", "activation_fn": activation, "default_prompt_name": row.default_prompt_name}
        if row.chat_template:
            model = CrossEncoder(modules=_chat_modules(row, plain), prompts=dict(row.prompts), **options)
        else:
            model = CrossEncoder(str(plain), max_length=row.max_seq_length, **options)
        model.save_pretrained(str(directory), create_model_card=False)
        return
    transformer = Transformer(
        str(plain),
        transformer_task="fill-mask" if _is_splade(row) else "feature-extraction",
        max_seq_length=row.max_seq_length,
        do_lower_case=row.do_lower_case,
    )
    model_class = SparseEncoder if row.task == "sparse" else SentenceTransformer
    model_class(
        modules=[transformer, *_modules(row, seed)],
        device="cpu",
        prompts=dict(row.prompts),
        default_prompt_name=row.default_prompt_name,
        similarity_fn_name=row.similarity,
    ).save_pretrained(str(directory), create_model_card=False)


def _chat_modules(row: ModelRow, plain: Path) -> list[nn.Module]:
    """A causal language model with its score, or a classifier that reads messages too."""
    assert row.head is not None
    transformer = Transformer(
        str(plain),
        transformer_task="text-generation" if row.head.answers else "sequence-classification",
        max_seq_length=row.max_seq_length,
        processing_kwargs={"chat_template": {"add_generation_prompt": True}} if row.add_generation_prompt else None,
    )
    vocabulary = transformer.tokenizer.get_vocab()
    answers = [vocabulary[answer] for answer in row.head.answers]
    return [transformer, *([LogitScore(*answers)] if answers else [])]


def _write_legacy(row: ModelRow, directory: Path, seed: int) -> None:
    """The layout of the checkpoints that were published before version 5.4."""
    if row.task == "rerank":
        return
    if row.max_seq_length is not None:
        _dump(
            directory / "sentence_bert_config.json",
            {"max_seq_length": row.max_seq_length, "do_lower_case": row.do_lower_case},
        )
    _write_model_config(row, directory)
    modules = _modules(row, seed)
    transformer = _LEGACY_MLM if _is_splade(row) else _LEGACY_CLASSES[Transformer]
    if row.inference_free_query:
        _write_router(row, directory, transformer, modules, seed)
        return
    entries = [("", transformer)]
    for index, (spec, module) in enumerate(zip(row.chain, modules, strict=True), start=1):
        folder = f"{index}_{type(module).__name__}"
        _write_legacy_module(spec, module, directory / folder)
        entries.append((folder, _LEGACY_CLASSES[type(module)]))
    _write_modules_json(directory, entries)


def _write_legacy_module(spec: table.Module, module: nn.Module, directory: Path) -> None:
    """A module's weights by its own `save`, its config with the keys of old. Normalize had no folder in git."""
    if isinstance(spec, table.Normalize):
        return
    directory.mkdir()
    module.save(str(directory))
    config: dict[str, object] = json.loads((directory / "config.json").read_text())
    match spec:
        case table.Pooling():
            config = {"word_embedding_dimension": module.embedding_dimension} | {
                flag: mode in spec.modes for mode, flag in _POOLING_FLAGS.items()
            }
            if not spec.include_prompt:
                config["include_prompt"] = False
        case table.Dense():
            config = {key: config[key] for key in ("in_features", "out_features", "bias", "activation_function")}
        case table.SpladePooling():
            config["word_embedding_dimension"] = config.pop("embedding_dimension")
    _dump(directory / "config.json", config)


def _write_router(row: ModelRow, directory: Path, transformer: str, modules: Sequence[nn.Module], seed: int) -> None:
    """An inference-free query route beside the document route, whose transformer lies in the root under the id ""."""
    query = "query_0_SparseStaticEmbedding"
    (directory / query).mkdir()
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    weight = torch.rand(len(tokenizer), generator=generator(row, seed + 2)) * 5 + 0.5
    SparseStaticEmbedding(tokenizer, weight, frozen=True).save(str(directory / query))
    types = {query: "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding", "": transformer}
    route = [""]
    for index, (spec, module) in enumerate(zip(row.chain, modules, strict=True), start=1):
        folder = f"document_{index}_{type(module).__name__}"
        _write_legacy_module(spec, module, directory / folder)
        types[folder] = _LEGACY_CLASSES[type(module)]
        route.append(folder)
    _dump(
        directory / "router_config.json",
        {
            "types": types,
            "structure": {"query": [query], "document": route},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
    )
    _write_modules_json(directory, [("", "sentence_transformers.models.Router")])


def _write_static(row: ModelRow, directory: Path, seed: int) -> None:
    """model2vec's own layout: a table named `embeddings`, and "." as the path of the first module."""
    tokenizer = build_tokenizer(row.backbone.tokenizer)
    size = (tokenizer.get_vocab_size(), row.backbone.built.hidden)
    save_file({"embeddings": torch.randn(size, generator=generator(row, seed))}, str(directory / "model.safetensors"))
    save_tokenizer(row, directory)
    _dump(
        directory / "config.json",
        {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "apply_zipf": True,
            "hidden_dim": size[1],
            "seq_length": 1000000,
            "normalize": True,
        },
    )
    _write_model_config(row, directory)
    _write_modules_json(
        directory,
        [(".", "sentence_transformers.models.StaticEmbedding"), ("1_Normalize", _LEGACY_CLASSES[Normalize])],
    )


def _write_model_config(row: ModelRow, directory: Path) -> None:
    config: dict[str, object] = {"__version__": {"sentence_transformers": "5.1.0"}}
    if row.task != "embedding":
        config["model_type"] = _MODEL_TYPES[row.task]
    if row.prompts:
        config["prompts"] = dict(row.prompts)
        config["default_prompt_name"] = row.default_prompt_name
    if row.similarity != "cosine" or row.prompts:
        config["similarity_fn_name"] = row.similarity
    _dump(directory / "config_sentence_transformers.json", config)


def _write_modules_json(directory: Path, entries: Sequence[tuple[str, str]]) -> None:
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(entries)
    ]
    _dump(directory / "modules.json", modules)


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))
