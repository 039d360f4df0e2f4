"""Finds and names code of a model repository that a checkpoint needs, and refuses it unless the caller trusts it.

If nobody allows that code, transformers silently loads its own class of the same ``model_type``. That is another
network, with random weights if the names differ. So the exporter refuses a checkpoint that names such code before
it loads anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._errors import UnsupportedError
from stonnx._tasks import Task
from stonnx_export.checkpoint.files import optional_object
from stonnx_export.checkpoint.module_files import TRUST_IT, transformer_settings
from stonnx_export.checkpoint.modules import Module, SpladePooling

# The task in the settings of a Transformer module -> the class of transformers that loads its network.
_AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
}
# Architectures that transformers took over from these repositories. Its own class succeeds the published one; the
# repositories keep their ``auto_map`` for older versions.
_TAKEN_OVER = {"nomic_bert": "nomic-ai/nomic-bert-2048--", "eurobert": "EuroBERT/"}
# Files that may name a tokenizer or a processor around one, and the names that transformers looks for in them.
_TOKENIZER_FILES = {
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "processor_config.json": ("AutoProcessor",),
    "preprocessor_config.json": ("AutoProcessor",),
    "config.json": ("AutoProcessor",),
}


@dataclass(frozen=True)
class CodeReference:
    """A class of a repository's own code, and the setting that names it."""

    file: Path
    key: str
    name: str


@dataclass(frozen=True)
class Trust:
    """The caller lets the exporter run code of the checkpoint's repository."""

    # Whether code that lies in yet another repository must be in the cache already.
    local_files_only: bool = False


def auto_class(folder: Path, chain: tuple[Module, ...], task: Task) -> str:
    """The class of transformers with which sentence-transformers loads the network of a chain."""
    written = transformer_settings(folder).get("transformer_task")
    if written in _AUTO_CLASSES:
        return _AUTO_CLASSES[written]
    if task == "rerank":
        causal = _architecture(optional_object(folder / "config.json")).endswith("ForCausalLM")
        return "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
    masked = any(isinstance(module, SpladePooling) for module in chain)
    return "AutoModelForMaskedLM" if masked else "AutoModel"


def network_code(folder: Path, loader: str) -> tuple[CodeReference, ...]:
    """The repository's classes for the network in a folder and its configuration, if ``loader`` looks for them."""
    file = folder / "config.json"
    config = optional_object(file)
    repository = _TAKEN_OVER.get(str(config.get("model_type")))
    found = tuple(_references(file, config, (loader, "AutoConfig")))
    if repository is not None and all(reference.name.startswith(repository) for reference in found):
        return ()
    return found


def tokenizer_code(folder: Path) -> tuple[CodeReference, ...]:
    """The repository's classes for the tokenizer in a folder."""
    return tuple(
        reference
        for name, keys in _TOKENIZER_FILES.items()
        for reference in _references(folder / name, optional_object(folder / name), keys)
    )


def refuse_network_code(references: tuple[CodeReference, ...], *, has_onnx: bool) -> None:
    """Raise UnsupportedError if a network is code of its repository."""
    if not references:
        return
    first = references[0]
    kind = optional_object(first.file).get("model_type", "unknown")
    other = " The checkpoint's ONNX file needs no such code: --source onnx" if has_onnx else ""
    raise UnsupportedError(
        f"{first.file} says that the network is code of the model repository: {_listed(references)}. Without that "
        f"code, transformers would load its own class of the model type {kind!r}, which is another model. {TRUST_IT} "
        f"If transformers' own class is the one that you want, take auto_map out of that file.{other}"
    )


def refuse_tokenizer_code(references: tuple[CodeReference, ...], *, can_run: bool) -> None:
    """Raise UnsupportedError if a tokenizer is code of its repository. ``can_run``: the source could run it."""
    if not references:
        return
    remedy = TRUST_IT if can_run else "An ONNX file is exported without running code: use --source torch."
    raise UnsupportedError(
        f"{references[0].file} says that the tokenizer is code of the model repository: {_listed(references)}. Without "
        f"that code, texts could get other token ids. {remedy} If tokenizer.json says all that the tokenizer does, "
        "take auto_map out of that file."
    )


def _references(file: Path, settings: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[CodeReference]:
    names = settings.get("auto_map")
    if isinstance(names, list):  # the old form, for tokenizers only
        names = {"AutoTokenizer": names} if file.name == "tokenizer_config.json" else {}
    if not isinstance(names, dict):
        return
    for key in keys:
        value = names.get(key)
        # A tokenizer has two classes, of which either may be missing.
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield CodeReference(file, key, name)


def _listed(references: tuple[CodeReference, ...]) -> str:
    return ", ".join(f"{reference.name!r} for {reference.key}" for reference in references)


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])
