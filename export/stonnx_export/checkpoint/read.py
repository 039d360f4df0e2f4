"""Turns a checkpoint directory into a typed chain of modules, all of which become part of the graph.

Reads the layouts that sentence-transformers writes (``modules.json``, ``router_config.json``), with the module paths of
version 6 and the older ones, and plain transformers checkpoints. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._errors import ExportError, ModelNotFoundError, UnsupportedError
from stonnx._tasks import TASKS, Task
from stonnx_export.checkpoint.files import damage_named, optional_object, read_json, read_object
from stonnx_export.checkpoint.late_interaction import is_late_interaction, read_late_interaction, refuse_expansion
from stonnx_export.checkpoint.module_files import SCORES, activation_name, read_module
from stonnx_export.checkpoint.modules import (
    CLIPModel,
    Code,
    Dense,
    LogitScore,
    Module,
    Pooling,
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
    StaticEmbedding,
    Transformer,
    is_code,
)
from stonnx_export.checkpoint.repository_code import (
    CodeReference,
    Trust,
    auto_class,
    network_code,
    tokenizer_code,
)
from stonnx_export.checkpoint.routers import Routes, is_router, read_router
from stonnx_export.checkpoint.settings import raw_settings, read_settings

_FIRST_MODULES = (Transformer, StaticEmbedding, SparseStaticEmbedding)
# The tokens by which a plain causal language model answers.
_ANSWERS = ("yes", "no")
_TASK_OF_MODEL_TYPE: dict[str, Task] = {row.class_name: row.name for row in TASKS.values()}
_TASK_OF_MODEL_TYPE["ColBERT"] = "multivector"  # PyLate's
# A CLIP network's positions for texts unless its configuration says something else.
_CLIP_POSITIONS = 77


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint directory, apart from the weights of the network."""

    directory: Path
    task: Task
    architecture: str
    max_positions: int | None
    # One chain for each route; a model without a Router has the route "default".
    routes: Mapping[str, tuple[Module, ...]]
    # The folder of the first module of each route. Its tokenizer and its network lie there.
    folders: Mapping[str, Path]
    default_route: str
    # Whether a text needs a task: the model has routes and no default among them. Then `default_route` is the first.
    needs_task: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    max_active_dims: int | None
    # Rerankers only.
    num_labels: int | None
    labels: tuple[str, ...]
    activation: str | None
    weights_sha256: str
    # Classes of the repository's own code that the network and the tokenizer need, and whether they may be run.
    network_code: tuple[CodeReference, ...] = ()
    tokenizer_code: tuple[CodeReference, ...] = ()
    trust: Trust | None = None
    # Adapters only: the model that the checkpoint changes. Its files are in the directory, too.
    base: str | None = None

    @property
    def code(self) -> tuple[str, ...]:
        """The repository's own classes that an export from PyTorch runs."""
        references = [reference.name for reference in (*self.network_code, *self.tokenizer_code)]
        for chain in self.routes.values():
            references += [module.reference for module in chain if isinstance(module, Code)]
            references += [module.code for module in chain if isinstance(module, Transformer) and module.code]
        return tuple(dict.fromkeys(references))

    @property
    def most_active_dims(self) -> int | None:
        """The number of values that a SparseAutoEncoder gives; None if the model has none."""
        autoencoders = (m for chain in self.routes.values() for m in chain if isinstance(m, SparseAutoEncoder))
        return next((module.k for module in autoencoders), None)

    @property
    def chain(self) -> tuple[Module, ...]:
        """The modules of the default route."""
        return self.routes[self.default_route]


def read_checkpoint(directory: Path, task: Task | None = None, trust: Trust | None = None) -> Checkpoint:
    """Read a checkpoint directory.

    Args:
        directory: The checkpoint.
        task: The task of the model. None: the one that the checkpoint names.
        trust: Modules may be code of the repository. None: they may not.

    Raises:
        ModelNotFoundError: It is not a checkpoint.
        UnsupportedError: A module, or a setting of one, cannot become part of the graph. The message names it.
        ExportError: One of its files is damaged.
    """
    if not any((directory / name).is_file() for name in ("modules.json", "config.json")):
        raise ModelNotFoundError(f"{directory} is not a checkpoint: it has neither modules.json nor config.json.")
    raw = raw_settings(directory)
    found = _read_routes(directory, trust is not None)
    routes, default_route, folders = found.chains, found.default or next(iter(found.chains)), found.folders
    networks = [route for route, chain in routes.items() if isinstance(chain[0], Transformer)]
    folder = folders[networks[0] if networks else default_route]
    is_native = networks and not is_code(routes[networks[0]][:1])
    config = read_object(folder / "config.json") if is_native else optional_object(folder / "config.json")
    task = _checked_task(directory, task, raw, config, routes)
    settings = read_settings(directory, task)
    if task == "multivector":
        found_late = read_late_interaction(directory, folders, raw, settings.prompts, routes)
        routes = found_late.chains
        settings = dataclasses.replace(settings, prompts=found_late.prompts)
    else:
        refuse_expansion(routes, folders)
    if task != "multivector" and not (directory / "modules.json").is_file() and task != "embedding":
        # sentence-transformers adds a pooling to plain transformers checkpoints, if the task has one.
        routes = {DEFAULT_ROUTE: (Transformer(), *_added_modules(directory, task, config))}
    if settings.max_active_dims is not None:
        routes = {name: _with_active_dims(chain, settings.max_active_dims) for name, chain in routes.items()}
    loaders = {folders[route]: auto_class(folders[route], routes[route], task) for route in networks}
    labels = _labels(config) if TASKS[task].gives_labels else ()
    if TASKS[task].gives_labels and len(routes[default_route]) > 1 and not is_code(routes[default_route]):
        labels = _labels_of_head(directory, routes[default_route])
    num_labels = len(labels) if TASKS[task].gives_labels else None
    return Checkpoint(
        directory=directory,
        task=task,
        architecture=str(config.get("model_type", "static")),
        max_positions=_positions(config),
        routes=routes,
        folders=folders,
        default_route=default_route,
        needs_task=found.default is None,
        prompts=settings.prompts,
        default_prompt_name=settings.default_prompt_name,
        similarity_fn_name=settings.similarity_fn_name,
        truncate_dim=settings.truncate_dim,
        max_active_dims=settings.max_active_dims,
        num_labels=num_labels,
        labels=labels,
        activation=_activation(raw, config, num_labels) if TASKS[task].gives_labels else None,
        weights_sha256=_hash_weights(directory),
        network_code=tuple(code for place, loader in loaders.items() for code in network_code(place, loader)),
        tokenizer_code=tuple(code for place in loaders for code in tokenizer_code(place)),
        trust=trust,
    )


def _added_modules(directory: Path, task: Task, config: Mapping[str, Any]) -> tuple[Module, ...]:
    """The modules that sentence-transformers adds to a plain transformers checkpoint for a task with a head."""
    if not TASKS[task].gives_labels:
        return (SpladePooling("max", twice=False),)
    if not _architecture(config).endswith("ForCausalLM"):
        return ()
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ExportError(
            f"{directory} has no tokenizer.json. Make it once, where transformers is installed: "
            "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        )
    with damage_named(file):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        true, false = (tokenizer.token_to_id(name) for name in _ANSWERS)
    if true is None or false is None:
        missing = " and ".join(repr(name) for name, index in zip(_ANSWERS, (true, false), strict=True) if index is None)
        raise UnsupportedError(
            f"{directory} is a causal language model ({_architecture(config)}), and its vocabulary lacks {missing}. As "
            "a CrossEncoder without modules.json it would score a pair by its next token, 'yes' or 'no'. Save it with "
            "the tokens that it was trained for, by sentence-transformers: CrossEncoder(modules=[Transformer("
            "DIRECTORY, transformer_task='text-generation'), LogitScore(true_token_id=..., false_token_id=...)])"
            ".save_pretrained(OUTPUT)   Then export OUTPUT."
        )
    return (LogitScore(true, false),)


def _with_active_dims(chain: tuple[Module, ...], count: int) -> tuple[Module, ...]:
    """A chain whose SparseAutoEncoder gives ``count`` values, as the original does, if that is more than its own k."""
    wide: list[Module] = []
    for module in chain:
        if isinstance(module, SparseAutoEncoder) and count > module.k:
            if count > len(module.weight):
                raise ExportError(
                    f"max_active_dims is {count} in config_sentence_transformers.json, and the SparseAutoEncoder has "
                    f"{len(module.weight)} dimensions. sentence-transformers fails for such a model, too."
                )
            module = dataclasses.replace(module, k=count)
        wide.append(module)
    return tuple(wide)


def _read_routes(directory: Path, trusted: bool) -> Routes:
    modules_file = directory / "modules.json"
    if not modules_file.is_file():
        # sentence-transformers treats a plain transformers checkpoint in this way.
        config = read_object(directory / "config.json")
        if config.get("model_type") == "clip":
            return Routes({DEFAULT_ROUTE: (CLIPModel(),)}, {DEFAULT_ROUTE: directory})
        architecture = _architecture(config)
        causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
        chain = (Transformer(), Pooling(("lasttoken" if causal else "mean",), True))
        return Routes({DEFAULT_ROUTE: chain}, {DEFAULT_ROUTE: directory})
    entries = read_json(modules_file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ExportError(f"{modules_file} is not a list of modules.")
    rows = [(str(entry.get("type", "")), str(entry.get("path", ""))) for entry in entries]
    if any(is_router(reference) for reference, _ in rows):
        with damage_named(modules_file):
            return read_router(directory, rows, lambda whole: _read_chain(directory, whole, trusted))
    folder = directory / rows[0][1] if rows else directory
    return Routes({DEFAULT_ROUTE: _read_chain(directory, rows, trusted)}, {DEFAULT_ROUTE: folder})


def _read_chain(directory: Path, rows: list[tuple[str, str]], trusted: bool) -> tuple[Module, ...]:
    modules = (
        read_module(directory, reference, path, trusted=trusted, first=index == 0)
        for index, (reference, path) in enumerate(rows)
    )
    chain = tuple(module for module in modules if module is not None)
    if not chain or not isinstance(chain[0], _FIRST_MODULES):
        known = ", ".join(kind.__name__ for kind in _FIRST_MODULES)
        raise UnsupportedError(f"{directory}: the first module must be one of {known}.")
    if is_code(chain) and not isinstance(chain[0], Transformer):
        raise UnsupportedError(
            f"{directory} has a module of its own code after a {type(chain[0]).__name__}. stonnx traces such modules "
            "together with a network of transformers. Replace the module by one of sentence-transformers, as Dense."
        )
    return chain


def _checked_task(
    directory: Path,
    task: Task | None,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    routes: Mapping[str, tuple[Module, ...]],
) -> Task:
    """The task of a checkpoint, which must be the one that the caller names, if any.

    sentence-transformers converts checkpoints of one class to another by adding modules, some of them untrained.
    """
    written = settings.get("model_type")
    if written is not None and written not in _TASK_OF_MODEL_TYPE:
        raise UnsupportedError(
            f"{directory} is a {written}, which cannot be exported. Classes that can: {', '.join(_TASK_OF_MODEL_TYPE)}."
        )
    own = _task(directory, settings, config, routes)
    if (directory / "modules.json").is_file():
        kind = TASKS[own].class_name
        # These two convert a SentenceTransformer with trained weights alone: PyLate saves one with settings of its own.
        if written in (None, "SentenceTransformer") and {task, own} == {"embedding", "multivector"}:
            assert task is not None
            return task
        if task not in (None, own):
            raise UnsupportedError(
                f"{directory} is a {kind}, not a {TASKS[task].class_name}, and stonnx does not convert one into the "
                f"other. Load it with stonnx.{kind}, or export it without a task."
            )
        return own
    task = task or own
    if _architecture(config).endswith("ForRetrieval"):
        raise UnsupportedError(
            f"{directory} reads images as well as texts ({_architecture(config)}), which cannot be exported. Late "
            "interaction of texts alone can: checkpoints of sentence-transformers, PyLate and Stanford's ColBERT."
        )
    if task == "sparse" and not any(str(name).endswith("ForMaskedLM") for name in config.get("architectures") or []):
        raise UnsupportedError(
            f"{directory} has no masked-LM head for SPLADE: its architectures are {config.get('architectures')}. "
            "sentence-transformers would add a SparseAutoEncoder with random weights. Export a checkpoint that was "
            "trained as a SparseEncoder."
        )
    return task


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _task(
    directory: Path,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    routes: Mapping[str, tuple[Module, ...]],
) -> Task:
    if is_late_interaction(directory, settings, config):
        return "multivector"
    if settings.get("model_type") in _TASK_OF_MODEL_TYPE:
        return _TASK_OF_MODEL_TYPE[settings["model_type"]]
    if any(isinstance(module, LogitScore) for chain in routes.values() for module in chain):
        return "rerank"
    sparse = (SpladePooling, SparseAutoEncoder, SparseStaticEmbedding)
    if any(isinstance(module, sparse) for chain in routes.values() for module in chain):
        return "sparse"
    if _architecture(config).endswith("ForSequenceClassification") and not settings:
        return "rerank"
    return "embedding"


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {str(index): f"LABEL_{index}" for index in range(config.get("num_labels", 2))}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _labels_of_head(directory: Path, chain: tuple[Module, ...]) -> tuple[str, ...]:
    """The labels of a reranker that is a chain of modules, which has no names for them.

    Raises:
        UnsupportedError: The chain does not end with scores.
    """
    last = chain[-1]
    if isinstance(last, Dense) and last.output == SCORES:
        return tuple(f"LABEL_{index}" for index in range(len(last.weight)))
    if isinstance(last, LogitScore):
        return ("LABEL_0",)
    raise UnsupportedError(
        f"{directory} is a CrossEncoder whose last module, {type(last).__name__}, gives no scores. A chain can be "
        "exported if it ends with LogitScore, or with a Dense layer that has module_output_name='scores'."
    )


def _activation(settings: Mapping[str, Any], config: Mapping[str, Any], num_labels: int | None) -> str:
    """The activation of a reranker, from the places where versions of sentence-transformers have written it."""
    written = (
        settings.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    if written is None:
        return "sigmoid" if num_labels == 1 else "identity"
    return activation_name(written)


def _positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that fit into the network's table of positions."""
    if config.get("model_type") == "clip":
        texts = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
        return int(texts.get("max_position_embeddings", _CLIP_POSITIONS))
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    # These networks count positions from the padding id on, so texts never use the first positions.
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta-xl"):
        padding_id = config.get("pad_token_id")
        return positions - (1 if padding_id is None else int(padding_id)) - 1
    return positions


def _hash_weights(directory: Path) -> str:
    """One SHA-256 over all weight files and their names."""
    files = [file for pattern in ("*.safetensors", "*.bin", "*.onnx*") for file in directory.rglob(pattern)]
    if not files:
        raise ExportError(f"{directory} has no weights: no file ends in .safetensors, .bin or .onnx.")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(directory).as_posix().encode())
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()
