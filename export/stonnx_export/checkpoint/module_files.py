"""The files of one module of a checkpoint, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.checkpoint.files import damage_named, optional_object, read_object
from stonnx_export.checkpoint.modules import (
    ACTIVATIONS,
    POOLING_MODES,
    CLIPModel,
    Code,
    Dense,
    HierarchicalTokenPooling,
    LayerNorm,
    LogitScore,
    Module,
    MultiVectorMask,
    Normalize,
    Pooling,
    QueryExpansion,
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
)
from stonnx_export.checkpoint.processing import text_arguments
from stonnx_export.checkpoint.weight_files import read_exactly, read_weights

# The advice for a checkpoint that is code as well as data.
TRUST_IT = (
    "Read that code. If you trust it, let the exporter run it: stonnx export MODEL --trust-remote-code, or "
    "export(..., trust_remote_code=True). The bundle itself never needs it."
)

# Name of the setting in older checkpoints -> pooling mode, in the order in which the results are concatenated.
_OLD_POOLING_SETTINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# PyLate's class of a layer, which sentence-transformers reads as its own.
_PYLATE_DENSE = "pylate.models.Dense.Dense"

# The keys of query_expansion, as sentence-transformers checks them.
_EXPANSION_KEYS = {"strategy", "length", "attend", "token"}

# The features that a module of the chain can work on.
_FEATURES = ("sentence_embedding", "token_embeddings")

# The feature that the modules of a CrossEncoder end with.
SCORES = "scores"

# Settings that treat some texts of a CLIP network in another way. No published checkpoint has them.
_REFUSED_CLIP_SETTINGS = ("query_length", "document_length", "query_expansion", "processing_kwargs")
# What sentence-transformers calls for each kind of input of a CLIP network.
_CLIP_MODALITIES = {"text": {"method": "get_text_features"}, "image": {"method": "get_image_features"}}

# The output to read from a network for texts: token embeddings, or the logits of a head.
_OUTPUTS = ("last_hidden_state", "logits")


def read_module(root: Path, reference: str, path: str, *, trusted: bool = False, first: bool = False) -> Module | None:
    """Read one module; the result is None if the module does nothing at inference.

    Args:
        root: The checkpoint.
        reference: The class, as modules.json names it: the paths of version 6, or ``sentence_transformers.models.X``.
        path: Its folder within the checkpoint.
        trusted: Whether the module may be code of the repository.
        first: Whether it is the module that reads texts.

    Raises:
        UnsupportedError: The module, or a setting of it, cannot become part of a graph.
        ExportError: Its files are missing or damaged.
    """
    package, _, name = reference.rpartition(".")
    if reference == _PYLATE_DENSE:
        package = "sentence_transformers"
    if not (package == "sentence_transformers" or package.startswith("sentence_transformers.")):
        if not trusted:
            raise UnsupportedError(
                f"The module {reference!r} is not part of sentence-transformers: it is code of the model repository, "
                f"or of another package. {TRUST_IT}"
            )
        folder = _folder(root, path)
        return dataclasses.replace(_read_transformer(folder), code=reference) if first else Code(reference)
    if name == "Dropout":
        return None
    reader = _READERS.get(name)
    if reader is None:
        known = ", ".join(sorted([*_READERS, "Dropout", "Router"]))
        raise UnsupportedError(f"The module {reference!r} cannot be exported. Modules that can: {known}.")
    folder = _folder(root, path)
    with damage_named(folder):
        return reader(folder)


def _folder(root: Path, path: str) -> Path:
    folder = root / path
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ExportError(f"The checkpoint names a folder outside itself: {path!r}.")
    return folder


def activation_name(reference: str | None) -> str:
    """The name of an activation given as the path of a torch class, such as ``torch.nn.modules.activation.Tanh``."""
    package, _, name = str(reference or "torch.nn.Identity").rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise UnsupportedError(f"The activation {reference!r} cannot be exported. Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of a Transformer module; empty if it has no file with settings."""
    file = transformer_file(folder)
    return read_object(file) if file is not None else {}


def transformer_file(folder: Path) -> Path | None:
    """The first file with settings of a Transformer module, which is the one that sentence-transformers reads."""
    kinds = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    files = [folder / f"sentence_{kind}_config.json" for kind in kinds]
    return next((file for file in files if file.is_file() and read_object(file)), None)


def _read_transformer(folder: Path) -> Transformer:
    if optional_object(folder / "config.json").get("model_type") == "clip":
        return _read_clip(folder)
    settings = transformer_settings(folder)
    text_arguments(settings.get("processing_kwargs") or {}, transformer_file(folder), chat=False)
    text = (settings.get("modality_config") or {}).get("text", {})
    method, output = text.get("method", "forward"), text.get("method_output_name") or _OUTPUTS[0]
    if method != "forward" or output not in _OUTPUTS:
        raise UnsupportedError(
            f"{transformer_file(folder)} takes {output!r} of the network's method {method!r} for texts. Only "
            f"{' or '.join(_OUTPUTS)} of 'forward' can be exported."
        )
    place = f"{transformer_file(folder)}: "
    lengths = {name: settings.get(name) or None for name in ("query_length", "document_length")}
    for name, value in lengths.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ExportError(f"{place}{name} must be a number of tokens or null, found {value!r}.")
    return Transformer(
        settings.get("max_seq_length"),
        bool(settings.get("do_lower_case", False)),
        **lengths,
        query_expansion=query_expansion(settings.get("query_expansion") or None, place),
    )


def query_expansion(settings: Any, place: str) -> QueryExpansion | None:
    """The settings of the tokens that fill up queries, checked as sentence-transformers checks them.

    Raises:
        ExportError: A value is not allowed.
    """
    if settings is None:
        return None
    if not isinstance(settings, dict) or settings.keys() - _EXPANSION_KEYS:
        raise ExportError(
            f"{place}query_expansion must be null or an object with the keys {', '.join(sorted(_EXPANSION_KEYS))}, "
            f"found {settings!r}. sentence-transformers refuses that, too."
        )
    strategy, attend, length = settings.get("strategy"), settings.get("attend", False), settings.get("length")
    if strategy not in ("fixed", "min") or not isinstance(attend, bool):
        raise ExportError(
            f"{place}query_expansion must have the strategy 'fixed' or 'min', and true or false as attend, found "
            f"{settings!r}. sentence-transformers refuses that, too."
        )
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ExportError(
            f"{place}query_expansion needs length, the number of tokens of a query, a positive number; found "
            f"{length!r}. sentence-transformers refuses that, too."
        )
    return QueryExpansion(length, strategy == "fixed", attend, settings.get("token"))


def _read_clip(folder: Path) -> CLIPModel:
    """A CLIP network, which both its own module of older versions and a Transformer may hold."""
    kind = read_object(folder / "config.json").get("model_type")
    if kind != "clip":
        raise UnsupportedError(
            f"{folder} is a network of the type {kind!r} in a CLIPModel, which cannot be exported. The one that can: "
            "'clip', as in clip-ViT-B-32."
        )
    settings = transformer_settings(folder)
    refused = [name for name in _REFUSED_CLIP_SETTINGS if settings.get(name)]
    modalities = settings.get("modality_config") or _CLIP_MODALITIES
    methods = {modality: (entry or {}).get("method") for modality, entry in modalities.items()}
    if methods != {modality: entry["method"] for modality, entry in _CLIP_MODALITIES.items()}:
        refused.append("modality_config")
    if refused:
        raise UnsupportedError(
            f"{transformer_file(folder)} sets {', '.join(refused)}, which cannot be exported for a CLIP network. Its "
            "texts come from get_text_features and its images from get_image_features, all texts alike."
        )
    return CLIPModel(settings.get("max_seq_length"), bool(settings.get("do_lower_case", False)))


def _read_static_embedding(folder: Path) -> StaticEmbedding:
    weights = read_weights(folder)
    if "embedding.weight" in weights:
        return StaticEmbedding(weights["embedding.weight"])
    # The layout of model2vec: tokens may share a row, and each token may scale it.
    table = weights["embeddings"]
    if "mapping" in weights:
        table = table[weights["mapping"].astype(np.int64)]
    if "weights" in weights:
        table = table * weights["weights"][:, None]
    return StaticEmbedding(table)


def _read_sparse_static_embedding(folder: Path) -> SparseStaticEmbedding:
    settings = optional_object(folder / "config.json")
    idf = settings.get("path")
    if idf:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        weight = np.zeros(tokenizer.get_vocab_size(), dtype=np.float32)
        for token, value in read_object(folder / Path(idf).name).items():
            index = tokenizer.token_to_id(token)
            if index is not None:
                weight[index] = value
        return SparseStaticEmbedding(weight)
    return SparseStaticEmbedding(read_weights(folder)["weight"])


def _read_weighted_layer_pooling(folder: Path) -> WeightedLayerPooling:
    settings = read_object(folder / "config.json")
    weights = read_exactly(folder, {"layer_weights": (None,)})
    return WeightedLayerPooling(int(settings.get("layer_start", 4)), weights["layer_weights"])


def _read_pooling(folder: Path) -> Pooling:
    settings = read_object(folder / "config.json")
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_SETTINGS.items() if settings.get(key)] or ["mean"]
        unknown = [key for key in settings if key.startswith("pooling_mode") and settings[key]]
        unknown = [key for key in unknown if key not in _OLD_POOLING_SETTINGS]
    else:
        modes = [modes] if isinstance(modes, str) else list(modes)
        unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown:
        raise UnsupportedError(f"Pooling mode {unknown[0]!r} is not known. Known modes: {', '.join(POOLING_MODES)}.")
    return Pooling(tuple(modes), bool(settings.get("include_prompt", True)))


def _read_splade_pooling(folder: Path) -> SpladePooling:
    settings = read_object(folder / "config.json")
    strategy, activation = settings.get("pooling_strategy", "max"), settings.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise UnsupportedError(
            f"SpladePooling with pooling_strategy={strategy!r} and activation_function={activation!r} cannot be "
            "exported. Known: 'max' and 'sum', 'relu' and 'log1p_relu'."
        )
    return SpladePooling(strategy, activation == "log1p_relu")


def _read_sparse_auto_encoder(folder: Path) -> SparseAutoEncoder:
    settings, weights = read_object(folder / "config.json"), read_weights(folder)
    return SparseAutoEncoder(
        pre_bias=weights["pre_bias"],
        # The decoder shares the weight of the encoder, and files hold it under either name.
        weight=weights["encoder.weight"] if "encoder.weight" in weights else weights["decoder.linear.weight"],
        latent_bias=weights["latent_bias"],
        k=int(settings["k"]),
        normalize=bool(settings.get("normalize", False)),
    )


def _read_dense(folder: Path) -> Dense:
    settings = read_object(folder / "config.json")
    output = settings.get("module_output_name")
    tokens = _of_tokens("Dense", {**settings, "module_output_name": None} if output == SCORES else settings)
    activation = activation_name(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    inputs, outputs = settings.get("in_features"), settings.get("out_features")
    residual = bool(settings.get("use_residual", False))
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": (outputs, inputs)}
    if settings.get("bias", True):
        shapes["linear.bias"] = (outputs,)
    if residual and inputs != outputs:
        shapes["residual.weight"] = (outputs, inputs)
    weights = read_exactly(folder, shapes)
    return Dense(
        weight=weights["linear.weight"],
        bias=weights.get("linear.bias"),
        activation=activation,
        residual=residual,
        residual_weight=weights.get("residual.weight"),
        output=SCORES if output == SCORES else None,
        tokens=tokens,
    )


def _read_layer_norm(folder: Path) -> LayerNorm:
    weights = read_exactly(folder, {"norm.weight": (None,), "norm.bias": (None,)})
    return LayerNorm(weights["norm.weight"], weights["norm.bias"], 1e-5)


def _read_normalize(folder: Path) -> Normalize:
    return Normalize(bool(_of_tokens("Normalize", optional_object(folder / "config.json"))))


def _read_multi_vector_mask(folder: Path) -> MultiVectorMask:
    settings = optional_object(folder / "config.json")
    return MultiVectorMask(
        tuple(settings.get("skiplist_words") or ()),
        _tasks(settings.get("skiplist_tasks")),
        tuple(settings.get("keep_only_token_ids") or ()),
    )


def _read_hierarchical_token_pooling(folder: Path) -> HierarchicalTokenPooling:
    settings = optional_object(folder / "config.json")
    factor, protected = settings.get("pool_factor", 1.0), settings.get("num_protected_tokens", 1)
    if factor < 1 or protected < 0:
        raise ExportError(
            f"{folder}: pool_factor must be 1 or more, and num_protected_tokens 0 or more; found {factor} and "
            f"{protected}. sentence-transformers refuses that, too."
        )
    # Files from before that setting were made without it.
    normalizes = bool(settings.get("normalize_embeddings", False))
    return HierarchicalTokenPooling(float(factor), int(protected), normalizes, _tasks(settings.get("tasks")))


def _tasks(names: Any) -> tuple[str, ...]:
    """The tasks that a module is for: documents, unless it says others."""
    return ("document",) if names is None else (names,) if isinstance(names, str) else tuple(names)


def _read_logit_score(folder: Path) -> LogitScore:
    settings = read_object(folder / "config.json")
    name = settings.get("module_input_name", "causal_logits")
    true, false = settings.get("true_token_id"), settings.get("false_token_id")
    if name != "causal_logits" or not isinstance(true, int) or not isinstance(false, int | None):
        raise UnsupportedError(
            f"{folder} has a LogitScore module with module_input_name={name!r}, true_token_id={true!r} and "
            f"false_token_id={false!r}, which cannot be exported. Allowed are 'causal_logits', the id of a token, and "
            "the id of another token or null."
        )
    return LogitScore(true, false)


_READERS: Mapping[str, Callable[[Path], Module]] = {
    "Transformer": _read_transformer,
    "MLMTransformer": _read_transformer,
    "CLIPModel": _read_clip,
    "StaticEmbedding": _read_static_embedding,
    "SparseStaticEmbedding": _read_sparse_static_embedding,
    "WeightedLayerPooling": _read_weighted_layer_pooling,
    "Pooling": _read_pooling,
    "SpladePooling": _read_splade_pooling,
    "SparseAutoEncoder": _read_sparse_auto_encoder,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "LogitScore": _read_logit_score,
    "MultiVectorMask": _read_multi_vector_mask,
    "HierarchicalTokenPooling": _read_hierarchical_token_pooling,
}


def _of_tokens(name: str, settings: Mapping[str, Any]) -> bool | None:
    """Whether a module works on the vector of each token; None if its settings do not say so."""
    feature, output = (settings.get(key) for key in ("module_input_name", "module_output_name"))
    if feature not in (None, *_FEATURES):
        raise UnsupportedError(f"A {name} module with module_input_name={feature!r} cannot be exported.")
    if output not in (None, feature or _FEATURES[0]):
        key = "module_output_name" if feature in (None, _FEATURES[0]) else "module_input_name"
        raise UnsupportedError(
            f"A {name} module with {key}={settings[key]!r} cannot be exported: it reads one feature and writes another."
        )
    return None if feature is None else feature == _FEATURES[1]
