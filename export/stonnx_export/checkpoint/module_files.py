"""The files of one module of a checkpoint, read and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stonnx._errors import ExportError, MissingDependencyError, StonnxError, UnsupportedError
from stonnx_export.checkpoint.modules import (
    ACTIVATIONS,
    POOLING_MODES,
    Code,
    Dense,
    FloatArray,
    LayerNorm,
    LogitScore,
    Module,
    Normalize,
    Pooling,
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
)
from stonnx_export.checkpoint.processing import text_arguments

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

# Settings of a Transformer that change texts beyond max_seq_length and do_lower_case: a limit for each task, and tokens
# appended to queries. They are refused: a bundle's tokenizer treats all texts alike.
_REFUSED_TRANSFORMER_SETTINGS = ("query_length", "document_length", "query_expansion")


# The feature that the modules of a CrossEncoder end with.
SCORES = "scores"

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


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise ExportError if a file has an unexpected shape: each library has errors of its own for that."""
    try:
        yield
    except StonnxError:
        raise
    except Exception as error:
        raise ExportError(
            f"{path} is damaged: {type(error).__name__}: {error}. Download the checkpoint again."
        ) from error


def activation_name(reference: str | None) -> str:
    """The name of an activation given as the path of a torch class, such as ``torch.nn.modules.activation.Tanh``."""
    package, _, name = str(reference or "torch.nn.Identity").rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise UnsupportedError(f"The activation {reference!r} cannot be exported. Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def read_json(path: Path) -> Any:
    """A JSON file of the checkpoint."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"The checkpoint lacks {path}.") from None
    except ValueError as error:
        raise ExportError(f"{path} is not readable JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the checkpoint that holds an object, as settings do."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not JSON object.")
    return value


def transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of a Transformer module; empty if it has no file with settings."""
    file = _transformer_file(folder)
    return read_object(file) if file is not None else {}


def _transformer_file(folder: Path) -> Path | None:
    """The first file with settings, which is the one that sentence-transformers reads."""
    kinds = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    files = [folder / f"sentence_{kind}_config.json" for kind in kinds]
    return next((file for file in files if file.is_file() and read_object(file)), None)


def _read_transformer(folder: Path) -> Transformer:
    settings = transformer_settings(folder)
    text_arguments(settings.get("processing_kwargs") or {}, _transformer_file(folder), chat=False)
    refused = [name for name in _REFUSED_TRANSFORMER_SETTINGS if settings.get(name)]
    if refused:
        raise UnsupportedError(
            f"{_transformer_file(folder)} sets {', '.join(refused)}, which gives queries and documents vectors of "
            "their own. That cannot be exported. If the model may do without, take it out of that file or set it to "
            "null."
        )
    text = (settings.get("modality_config") or {}).get("text", {})
    method, output = text.get("method", "forward"), text.get("method_output_name") or _OUTPUTS[0]
    if method != "forward" or output not in _OUTPUTS:
        raise UnsupportedError(
            f"{_transformer_file(folder)} takes {output!r} of the network's method {method!r} for texts. What can be "
            f"exported is {' or '.join(_OUTPUTS)} of 'forward'."
        )
    return Transformer(settings.get("max_seq_length"), bool(settings.get("do_lower_case", False)))


def _read_static_embedding(folder: Path) -> StaticEmbedding:
    weights = _read_weights(folder)
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
    return SparseStaticEmbedding(_read_weights(folder)["weight"])


def _read_weighted_layer_pooling(folder: Path) -> WeightedLayerPooling:
    settings = read_object(folder / "config.json")
    weights = _read_exactly(folder, {"layer_weights": (None,)})
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
    settings, weights = read_object(folder / "config.json"), _read_weights(folder)
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
    _refuse_other_features("Dense", {**settings, "module_output_name": None} if output == SCORES else settings)
    activation = activation_name(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    inputs, outputs = settings.get("in_features"), settings.get("out_features")
    residual = bool(settings.get("use_residual", False))
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": (outputs, inputs)}
    if settings.get("bias", True):
        shapes["linear.bias"] = (outputs,)
    if residual and inputs != outputs:
        shapes["residual.weight"] = (outputs, inputs)
    weights = _read_exactly(folder, shapes)
    return Dense(
        weight=weights["linear.weight"],
        bias=weights.get("linear.bias"),
        activation=activation,
        residual=residual,
        residual_weight=weights.get("residual.weight"),
        output=SCORES if output == SCORES else None,
    )


def _read_layer_norm(folder: Path) -> LayerNorm:
    weights = _read_exactly(folder, {"norm.weight": (None,), "norm.bias": (None,)})
    return LayerNorm(weights["norm.weight"], weights["norm.bias"], 1e-5)


def _read_normalize(folder: Path) -> Normalize:
    _refuse_other_features("Normalize", optional_object(folder / "config.json"))
    return Normalize()


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
}


def _refuse_other_features(name: str, settings: Mapping[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedError(f"A {name} module with {key}={settings[key]!r} cannot be exported.")


def optional_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; an empty one if there is no such file."""
    return read_object(path) if path.is_file() else {}


def _read_exactly(folder: Path, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, FloatArray]:
    """The weights of a module that has exactly these, as sentence-transformers requires.

    None stands for a size that the settings leave out: any number fits it.
    """
    weights = _read_weights(folder)
    missing = [name for name in shapes if name not in weights]
    more = [name for name in weights if name not in shapes]
    if missing or more:
        problem = (
            f"lacks {', '.join(missing)}" if missing else f"has weights that no such module has: {', '.join(more)}"
        )
        raise ExportError(f"{folder} {problem}. sentence-transformers refuses it, too. Download the checkpoint again.")
    wrong = [
        name
        for name, shape in shapes.items()
        if len(shape) != weights[name].ndim
        or any(size not in (None, found) for size, found in zip(shape, weights[name].shape, strict=True))
    ]
    if wrong:
        raise ExportError(
            f"{folder}: {wrong[0]} has the shape {list(weights[wrong[0]].shape)}, and its config.json says "
            f"{list(shapes[wrong[0]])}. Download the checkpoint again."
        )
    return weights


def _read_weights(folder: Path) -> dict[str, FloatArray]:
    """The weights of a small module, as float32."""
    file = folder / "model.safetensors"
    if file.is_file():
        from safetensors.numpy import load_file

        with damage_named(file):
            return {name: np.asarray(array, dtype=np.float32) for name, array in load_file(str(file)).items()}
    file = folder / "pytorch_model.bin"
    if file.is_file():
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError(
                f"{folder} has its weights as pytorch_model.bin only, which PyTorch has to read. Install it with: pip "
                "install torch   Or use a version of the checkpoint with model.safetensors in that folder."
            ) from error
        with damage_named(file):
            state = torch.load(str(file), map_location="cpu", weights_only=True)
            return {name: tensor.float().numpy() for name, tensor in state.items()}
    raise ExportError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin.")
