"""Adapters, such as LoRA: weights that change a model which lies elsewhere.

sentence-transformers loads the model and puts the adapter into it. The exporter does the same in a directory that has
both, so that the original is the unmerged model, and merges them only while the network is traced.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stonnx._bundle.manifest import Source
from stonnx._errors import ExportError, MissingDependencyError, ModelNotFoundError, UnsupportedError
from stonnx_export.checkpoint.files import damage_named, read_object

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# The kinds that add to the weights of a network. Others, such as prompt tuning, put tokens before every text.
_MERGEABLE = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR")
# The names of their weights have one of these.
_MARKS = ("lora_", "ia3_", "hada_", "lokr_")
_DORA = "lora_magnitude_vector"
# The files of the model that an adapter has no copy of: always, and if it has no tokenizer of its own.
_NETWORK_FILES = ("config.json", "model*.safetensors*", "pytorch_model*.bin*", "*.py")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
)


@contextmanager
def with_base(
    directory: Path, find: Callable[[str], Path], commit_of: Callable[[Path], str | None]
) -> Iterator[tuple[Path, Source | None]]:
    """A checkpoint together with the model that it is an adapter for, and where that model comes from.

    Args:
        directory: A checkpoint. If it is not an adapter, it stays as it is.
        find: Returns the directory of a model.
        commit_of: Returns the commit of such a directory.

    Raises:
        ModelNotFoundError: The model is missing.
        MissingDependencyError: The package peft is missing.
        UnsupportedError: It is an adapter of another kind, or for several models.
    """
    folders = [folder for folder in (directory, *_modules(directory)) if (folder / CONFIG).is_file()]
    if not folders:
        yield directory, None
        return
    names = {_base_name(folder) for folder in folders}
    if len(names) > 1:
        raise UnsupportedError(
            f"{directory} has adapters for {len(names)} models: {', '.join(sorted(names))}. One can be merged."
        )
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError(
            f"{directory} is an adapter, which the package peft merges into its model. Install it with: pip install "
            '"stonnx[cpu,export,adapters]"'
        )
    (name,) = names
    with tempfile.TemporaryDirectory(prefix="stonnx-adapter-") as scratch:
        whole = Path(scratch, directory.resolve().name or "adapter")
        shutil.copytree(directory, whole, copy_function=_link)
        base = directory if _has_network(directory) else _find(directory, name, find)
        for folder in folders:
            _complete(whole / folder.relative_to(directory), base)
        yield whole, Source(name, commit_of(base), None)


def check_adapter(model: torch.nn.Module, folder: Path, base: str) -> None:
    """Check that every weight of an adapter has found its place in the network.

    Raises:
        UnsupportedError: One has not: the adapter is for another model, or of a kind that transformers loads in part.
    """
    from peft import get_peft_model_state_dict

    networks = [module for module in model.modules() if getattr(module, "_hf_peft_config_loaded", False)]
    states = [get_peft_model_state_dict(network, save_embedding_layers=False) for network in networks]
    found = {name: value for state in states for name, value in state.items()}
    for name, weight in _weights(folder).items():
        if not any(mark in name for mark in _MARKS):
            continue
        places = [value for other, value in found.items() if name.endswith(f".{other}") or other == name]
        if not any(value.shape == weight.shape and torch.equal(value.float(), weight.float()) for value in places):
            if _DORA in name:
                raise UnsupportedError(
                    f"{folder.name} is a DoRA adapter (use_dora in {CONFIG}), and transformers "
                    f"{metadata.version('transformers')} does not load its weight {name!r}: sentence-transformers runs "
                    "without it, too. Merge the adapter with peft, PeftModel.merge_and_unload(), save the model that "
                    "this returns, and export that."
                )
            raise UnsupportedError(_not_for(folder, base, f"that model has no place for its weight {name!r}"))


def does_not_load(folder: Path, base: str, error: Exception) -> UnsupportedError:
    """The error for an adapter that sentence-transformers cannot put into its model."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return UnsupportedError(_not_for(folder, base, f"loading it ended in {type(error).__name__}: {reason:.300}"))


def _not_for(folder: Path, base: str, reason: str) -> str:
    return (
        f"{folder.name} is an adapter for another model than {base!r}, which its {CONFIG} names: {reason}. Set "
        "base_model_name_or_path in that file to the model that the adapter was trained on."
    )


@contextmanager
def merged(network: torch.nn.Module) -> Iterator[None]:
    """Within the block, a network has its adapters in its weights, and no other trace of them.

    Raises:
        UnsupportedError: An adapter cannot be merged.
    """
    if not getattr(network, "_hf_peft_config_loaded", False):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers = [
        (network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)
        for name, module in network.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    ]
    done: list[Any] = []
    try:
        for parent, name, module in layers:
            if isinstance(module, ModulesToSaveWrapper):
                plain = module.modules_to_save[module.active_adapters[0]]
                done.append((parent, name, module, {}))
            else:
                plain = module.get_base_layer()
                done.append((parent, name, module, dict(plain.named_parameters())))
                # A weight may be shared: a head may have the table of tokens, without the adapter of the table. So the
                # layer gets weights of its own. Merging gives them new memory. The graph of the network is made of
                # that, so it must not change later.
                _set(plain, {key: torch.nn.Parameter(value.data, False) for key, value in plain.named_parameters()})
                module.merge(safe_merge=True)
            setattr(parent, name, plain)
    except Exception as error:  # of peft, for adapters that depend on the text
        _restore(done)
        raise UnsupportedError(
            f"This adapter cannot be merged into its model: {type(error).__name__}: {error}"
        ) from error
    try:
        yield
    finally:
        _restore(done)


def _restore(done: list[Any]) -> None:
    for parent, name, module, weights in reversed(done):
        setattr(parent, name, module)
        if weights:
            _set(module.get_base_layer(), weights)
            module.merged_adapters.clear()


def _set(layer: torch.nn.Module, weights: Mapping[str, torch.nn.Parameter]) -> None:
    for name, weight in weights.items():
        owner, _, own = name.rpartition(".")
        setattr(layer.get_submodule(owner), own, weight)


def _modules(directory: Path) -> list[Path]:
    """The folders of modules. A trainer's snapshots, which it calls checkpoint-NUMBER, are none."""
    return [
        folder
        for folder in sorted(directory.iterdir())
        if folder.is_dir() and not folder.name.startswith(("checkpoint-", "."))
    ]


def _base_name(folder: Path) -> str:
    """The name of the model that an adapter is for."""
    settings = read_object(folder / CONFIG)
    name, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    if kind not in _MERGEABLE:
        raise UnsupportedError(
            f"{folder} is an adapter of the kind {kind}, which cannot be merged into the weights of its model. Kinds "
            f"that can: {', '.join(_MERGEABLE)}."
        )
    if not isinstance(name, str) or not name:
        raise ExportError(
            f"{folder / CONFIG} does not say which model the adapter is for. Set base_model_name_or_path in it."
        )
    return name


def _find(directory: Path, name: str, find: Callable[[str], Path]) -> Path:
    try:
        base = find(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{directory} is an adapter for the model {name!r}, which is missing: {error} If it lies elsewhere, "
            f"correct base_model_name_or_path in {CONFIG}."
        ) from error
    if (base / CONFIG).is_file() or not (base / "config.json").is_file():
        raise UnsupportedError(
            f"{directory} is an adapter for {name!r}, which is not a model with a config.json and weights of its own. "
            "Merge the two first, or correct base_model_name_or_path in its adapter_config.json."
        )
    return base


def _has_network(directory: Path) -> bool:
    """Whether a model has its adapter in its own directory."""
    weights = [file for pattern in _NETWORK_FILES[1:3] for file in directory.glob(pattern)]
    return bool(weights) and (directory / "config.json").is_file()


def _complete(folder: Path, base: Path) -> None:
    """Put the files of the model beside those of an adapter, which has the last word."""
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    patterns = _NETWORK_FILES if has_tokenizer else (*_NETWORK_FILES, *_TOKENIZER_FILES)
    for file in {file for pattern in patterns for file in base.glob(pattern) if file.is_file()}:
        if not (folder / file.name).exists():
            _link(str(file), str(folder / file.name))
    settings = read_object(folder / CONFIG)
    (folder / CONFIG).unlink()
    settings["base_model_name_or_path"] = str(base.resolve())
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.symlink(os.path.realpath(source), target)
    except OSError:  # a system without links, or without leave to make them
        shutil.copyfile(source, target)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter by their names."""
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ExportError(f"{folder} is an adapter without weights: it has neither of {', '.join(_WEIGHTS)}.")
    with damage_named(file):
        if file.suffix == ".bin":
            loaded: dict[str, torch.Tensor] = torch.load(str(file), map_location="cpu", weights_only=True)
            return loaded
        from safetensors.torch import load_file

        weights: dict[str, torch.Tensor] = load_file(str(file))
        return weights
