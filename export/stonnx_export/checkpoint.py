"""A checkpoint directory to a typed chain of modules: what has to become part of the graph.

Reads the layout that sentence-transformers writes (``modules.json``), with the module paths of version 6 and the older
``sentence_transformers.models``. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._errors import ExportError, ModelNotFoundError, UnsupportedError

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# Name of the setting in older checkpoints -> pooling mode, in the order in which the results are concatenated.
_OLD_POOLING_SETTINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# torch class of an activation -> the name under which heads.py builds it.
ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "Softplus": "softplus",
    "ELU": "elu",
}


@dataclass(frozen=True)
class Transformer:
    """The network itself: its texts are cut to ``max_seq_length`` tokens, or to what the tokenizer says if None."""

    max_seq_length: int | None


@dataclass(frozen=True)
class Pooling:
    """Token embeddings to one vector, the results of several modes concatenated."""

    modes: tuple[str, ...]
    include_prompt: bool


@dataclass(frozen=True)
class Dense:
    """activation(x W^T + b), and x (or x R^T) added to it where the layer is residual."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    activation: str
    residual: bool
    residual_weight: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalization of the sentence embedding."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    epsilon: float


@dataclass(frozen=True)
class Normalize:
    """Division by the L2 norm."""


Module = Transformer | Pooling | Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory says, apart from the weights of the network."""

    directory: Path
    architecture: str
    max_positions: int | None
    chain: tuple[Module, ...]
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    weights_sha256: str


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint directory.

    Raises:
        ModelNotFoundError: It is no checkpoint.
        UnsupportedError: It has a module, or a setting of one, that cannot become part of the graph; named.
        ExportError: One of its files is damaged.
    """
    config_file = directory / "config.json"
    modules_file = directory / "modules.json"
    if not modules_file.is_file() and not config_file.is_file():
        raise ModelNotFoundError(f"{directory} is no checkpoint: it has neither modules.json nor config.json.")
    if modules_file.is_file():
        rows = _read_json(modules_file)
        chain = tuple(module for row in rows if (module := _read_module(directory, row)) is not None)
        folder = directory / rows[0].get("path", "") if rows else directory
        config_file = folder / "config.json"
    else:
        # What sentence-transformers does with a plain transformers checkpoint.
        chain = (Transformer(None), Pooling(("mean",), True))
        folder = directory
    if not chain or not isinstance(chain[0], Transformer):
        raise UnsupportedError(f"{directory}: the first module is no Transformer. Only such models can be exported.")
    config = _read_json(config_file)
    settings_file = directory / "config_sentence_transformers.json"
    settings = _read_json(settings_file) if settings_file.is_file() else {}
    return Checkpoint(
        directory=directory,
        architecture=str(config.get("model_type", "unknown")),
        max_positions=_positions(config),
        chain=chain,
        prompts=settings.get("prompts") or {},
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
        truncate_dim=settings.get("truncate_dim"),
        weights_sha256=_hash_weights(directory),
    )


def _read_module(directory: Path, row: Mapping[str, Any]) -> Module | None:
    reference = str(row.get("type", ""))
    package, _, name = reference.rpartition(".")
    if not (package == "sentence_transformers" or package.startswith("sentence_transformers.")):
        raise UnsupportedError(
            f"The module {reference!r} is code of the model repository. stonnx never runs such code, so this model "
            "cannot be exported."
        )
    if name == "Dropout":  # does nothing at inference
        return None
    reader = _READERS.get(name)
    if reader is None:
        known = ", ".join(sorted([*_READERS, "Dropout"]))
        raise UnsupportedError(f"The module {reference!r} cannot be exported. Modules that can: {known}.")
    folder = directory / str(row.get("path", ""))
    if not folder.resolve().is_relative_to(directory.resolve()):
        raise ExportError(f"modules.json points outside the checkpoint: {row.get('path')!r}.")
    return reader(folder)


def _read_transformer(folder: Path) -> Transformer:
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        file = folder / f"sentence_{kind}_config.json"
        if file.is_file():
            return Transformer(_read_json(file).get("max_seq_length"))
    return Transformer(None)


def _read_pooling(folder: Path) -> Pooling:
    settings = _read_json(folder / "config.json")
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


def _read_dense(folder: Path) -> Dense:
    settings = _read_json(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedError(f"A Dense module with {key}={settings[key]!r} cannot be exported.")
    weights = _read_weights(folder)
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    return Dense(
        weight=weights["linear.weight"],
        bias=weights.get("linear.bias"),
        activation=activation_name(activation),
        residual=bool(settings.get("use_residual", False)),
        residual_weight=weights.get("residual.weight"),
    )


def activation_name(reference: str | None) -> str:
    """The name of an activation given as the path of a torch class, such as ``torch.nn.modules.activation.Tanh``."""
    package, _, name = str(reference or "torch.nn.Identity").rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise UnsupportedError(f"The activation {reference!r} cannot be exported. Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _read_layer_norm(folder: Path) -> LayerNorm:
    weights = _read_weights(folder)
    return LayerNorm(weights["norm.weight"], weights["norm.bias"], 1e-5)


def _read_normalize(folder: Path) -> Normalize:
    file = folder / "config.json"
    settings = _read_json(file) if file.is_file() else {}
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedError(f"A Normalize module with {key}={settings[key]!r} cannot be exported.")
    return Normalize()


_READERS: Mapping[str, Callable[[Path], Module]] = {
    "Transformer": _read_transformer,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
}


def _positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that fit into the network's table of positions."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    # These count positions from the padding id on, which the first of them never reach.
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta-xl"):
        return positions - int(config.get("pad_token_id", 1)) - 1
    return positions


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"The checkpoint lacks {path}.") from None
    except ValueError as error:
        raise ExportError(f"{path} is no readable JSON: {error}") from error


def _read_weights(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of a small module, as float32."""
    file = folder / "model.safetensors"
    if file.is_file():
        from safetensors.numpy import load_file

        return {name: np.asarray(array, dtype=np.float32) for name, array in load_file(str(file)).items()}
    file = folder / "pytorch_model.bin"
    if file.is_file():
        import torch

        state = torch.load(str(file), map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    raise ExportError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin.")


def _hash_weights(directory: Path) -> str:
    """One SHA-256 over all weight files and their names."""
    files = [file for pattern in ("*.safetensors", "*.bin", "*.onnx*") for file in directory.rglob(pattern)]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(directory).as_posix().encode())
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()
