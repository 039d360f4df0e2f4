"""Checkpoints of late interaction (ColBERT), in every layout that sentence-transformers 6 loads for it.

- its own: config_sentence_transformers.json has ``model_type: MultiVectorEncoder``, modules.json the whole chain;
- PyLate's: ``model_type: ColBERT``, or PyLate's settings without a model type. modules.json lacks the mask;
- Stanford's: no modules.json, the architecture ``HF_ColBERT``, the projection among the network's weights;
- a SentenceTransformer with a Dense layer, if the caller asks for it.

The last three become what the original makes of them. It gives a random projection to a checkpoint without one; here
that is refused.
"""

from __future__ import annotations

import dataclasses
import logging
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.checkpoint.files import damage_named, optional_object, read_object
from stonnx_export.checkpoint.module_files import query_expansion, transformer_file, transformer_settings
from stonnx_export.checkpoint.modules import (
    Dense,
    HierarchicalTokenPooling,
    Module,
    MultiVectorMask,
    Normalize,
    Pooling,
    Transformer,
)
from stonnx_export.checkpoint.weight_files import read_weight

logger = logging.getLogger("stonnx")

_TRANSFORMER_KEYS = ("query_length", "document_length", "query_expansion")
# Settings of a whole model that only PyLate writes.
_PYLATE_KEYS = (
    *_TRANSFORMER_KEYS,
    *("do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens"),
    *("query_prefix", "document_prefix", "skiplist_words"),
)
_STANFORD = "HF_ColBERT"
# The projection of that layout, among the weights of the network.
_PROJECTION = "linear.weight"
_USUAL_QUERY_LENGTH = 32
_OF_TOKENS = (Dense, Normalize, MultiVectorMask, HierarchicalTokenPooling)


@dataclass(frozen=True)
class LateInteraction:
    """The chain of a checkpoint, and its prompts, which have the markers of queries and documents."""

    chain: tuple[Module, ...]
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class LateRoutes:
    """The chain of each route, and the prompts of the model."""

    chains: dict[str, tuple[Module, ...]]
    prompts: Mapping[str, str]


def is_late_interaction(directory: Path, raw: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is one of late interaction by its own account.

    Args:
        directory: The checkpoint.
        raw: Its config_sentence_transformers.json.
        config: Its config.json.
    """
    if not (directory / "modules.json").is_file():
        return _STANFORD in (config.get("architectures") or [])
    if "model_type" in raw:
        return raw["model_type"] in ("MultiVectorEncoder", "ColBERT")
    return any(key in raw for key in _PYLATE_KEYS) or _STANFORD in (config.get("architectures") or [])


def weights_beside_network(directory: Path, chain: tuple[Module, ...]) -> tuple[str, ...]:
    """The names of weights in a network's file that another module of its chain has."""
    is_stanford = not (directory / "modules.json").is_file() and any(isinstance(m, MultiVectorMask) for m in chain)
    return (_PROJECTION,) if is_stanford else ()


def read_late_interaction(
    directory: Path,
    folders: Mapping[str, Path],
    raw: Mapping[str, Any],
    prompts: Mapping[str, str],
    chains: Mapping[str, tuple[Module, ...]],
) -> LateRoutes:
    """Complete the chains of a checkpoint as the original does.

    Args:
        directory: The checkpoint.
        folders: The folder of the network of each route.
        raw: Its config_sentence_transformers.json.
        prompts: The prompts in that file.
        chains: The modules that modules.json names, for each route.

    Raises:
        UnsupportedError: It lacks its projection, or has a module that cannot be exported for this task.
        ExportError: A setting has a value that sentence-transformers refuses, too.
    """
    if {*chains} != {DEFAULT_ROUTE} and raw.get("model_type") != "MultiVectorEncoder":
        raise UnsupportedError(
            f"{directory} has a Router, and its config_sentence_transformers.json does not say that it is a "
            "MultiVectorEncoder. sentence-transformers would look for the layers of such a checkpoint outside the "
            "Router. Load it in sentence-transformers as a MultiVectorEncoder, save it, and export that."
        )
    others = [name for name in chains if name not in (DEFAULT_ROUTE, "query", "document")]
    if others:
        raise UnsupportedError(
            f"{directory} has a Router with the route {others[0]!r}. In a MultiVectorEncoder, the routes 'query' and "
            "'document' can be exported, and one for all other texts. Give the routes these names, and save the model."
        )
    found = {name: _read_route(directory, folders[name], raw, prompts, chain) for name, chain in chains.items()}
    first = next(iter(found.values()))
    for name, route in found.items():
        _check_agreement(directory, name, route.chain, first.chain)
    return LateRoutes({name: route.chain for name, route in found.items()}, first.prompts)


def _check_agreement(directory: Path, name: str, chain: tuple[Module, ...], first: tuple[Module, ...]) -> None:
    """Raise UnsupportedError if a route gives vectors that those of another route cannot be compared with."""
    poolings, expected = ([m for m in some if isinstance(m, HierarchicalTokenPooling)] for some in (chain, first))
    if poolings != expected:
        raise UnsupportedError(
            f"{directory} has a Router with a HierarchicalTokenPooling in some routes. It can be exported after the "
            "Router, for all routes: its tasks say which texts it pools."
        )
    widths = [next((len(m.weight) for m in reversed(some) if isinstance(m, Dense)), None) for some in (chain, first)]
    if widths[0] != widths[1]:
        raise UnsupportedError(
            f"{directory} has a Router whose route {name!r} gives vectors of {widths[0]} dimensions, and another one "
            f"of {widths[1]}. Queries and documents must have the same dimension to be compared."
        )


def _read_route(
    directory: Path,
    folder: Path,
    raw: Mapping[str, Any],
    prompts: Mapping[str, str],
    chain: tuple[Module, ...],
) -> LateInteraction:
    first = chain[0]
    if not isinstance(first, Transformer) or first.code is not None:
        raise UnsupportedError(
            f"{directory} does not begin with a Transformer module of sentence-transformers, so it cannot be exported "
            "as a MultiVectorEncoder."
        )
    if not (directory / "modules.json").is_file():
        return _from_stanford(directory, first)
    found = _without_other_features(directory, _from_modules(directory, folder, raw, prompts, chain))
    _check_expansion(folder, found.chain)
    return found


def _from_modules(
    directory: Path, folder: Path, raw: Mapping[str, Any], prompts: Mapping[str, str], chain: tuple[Module, ...]
) -> LateInteraction:
    first, *rest = chain
    assert isinstance(first, Transformer)
    first = _with_defaults(first, folder, _pylate_settings(raw, directory))
    prefixes = {name: str(raw[f"{name}_prefix"] or "") for name in ("query", "document") if f"{name}_prefix" in raw}
    marked = {name: prefix + (prompts.get(name) or "").removeprefix(prefix) for name, prefix in prefixes.items()}
    words, kind = raw.get("skiplist_words"), _model_type(directory, raw)
    if kind == "MultiVectorEncoder":
        return LateInteraction((first, *rest), {**prompts, **marked})
    if kind == "ColBERT":
        words = list(string.punctuation) if words is None else words
    else:
        rest = _to_tokens(directory, rest)
        words = list(string.punctuation) if words is None and prefixes else words
    mask = MultiVectorMask(tuple(words or ()))
    return LateInteraction((first, *rest, mask, Normalize(tokens=True)), {**prompts, **marked})


def _model_type(directory: Path, raw: Mapping[str, Any]) -> str:
    """The class of a checkpoint with modules.json."""
    if raw.get("model_type") is not None:
        return str(raw["model_type"])
    names = optional_object(directory / "config.json").get("architectures") or []
    return "MultiVectorEncoder" if _STANFORD in names else "SentenceTransformer"


def _to_tokens(directory: Path, modules: list[Module]) -> list[Module]:
    """The modules of a SentenceTransformer, for the vector of each token."""
    kept: list[Module] = []
    for module in modules:
        if isinstance(module, Pooling) or (isinstance(module, Normalize) and not module.tokens):
            continue
        kept.append(dataclasses.replace(module, tokens=True) if isinstance(module, Dense) else module)
    if not any(isinstance(module, Dense) for module in kept):
        raise _no_projection(directory)
    return kept


def _no_projection(directory: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{directory} has no Dense layer that makes the vectors of tokens. sentence-transformers would add one with "
        "random weights. Export a checkpoint that was trained as a MultiVectorEncoder or with PyLate, or load this one "
        "with the class that it was trained for."
    )


def _without_other_features(directory: Path, found: LateInteraction) -> LateInteraction:
    """The chain without modules that change nothing about the vectors of tokens."""
    first, *rest = found.chain
    pooled, chain = False, [first]
    for module in rest:
        pooled = pooled or isinstance(module, Pooling)
        if isinstance(module, Dense):
            module = dataclasses.replace(module, tokens=module.tokens is not False)
        of_text = isinstance(module, Dense | Normalize) and not module.tokens
        if isinstance(module, Pooling) or (of_text and (pooled or isinstance(module, Normalize))):
            continue
        if of_text or not isinstance(module, _OF_TOKENS):
            raise UnsupportedError(
                f"{directory} has a {type(module).__name__} module{' for whole texts' if of_text else ''}, which "
                f"cannot be exported in a MultiVectorEncoder. Modules that can: "
                f"{', '.join(kind.__name__ for kind in _OF_TOKENS)}."
            )
        chain.append(module)
    kinds = [type(module) for module in chain]
    if kinds.count(MultiVectorMask) > 1:
        raise UnsupportedError(f"{directory} has several MultiVectorMask modules. One can be exported.")
    last = len(kinds) - kinds.count(HierarchicalTokenPooling)
    if HierarchicalTokenPooling in kinds[:last]:
        raise UnsupportedError(
            f"{directory} has a module after a HierarchicalTokenPooling. That pooling can be exported at the end of "
            "the chain only."
        )
    return dataclasses.replace(found, chain=tuple(chain))


def _with_defaults(module: Transformer, folder: Path, defaults: Mapping[str, Any]) -> Transformer:
    """A Transformer with settings from elsewhere. Those that its own file has, null included, win."""
    own = transformer_settings(folder)
    return dataclasses.replace(module, **{name: value for name, value in defaults.items() if name not in own})


def _pylate_settings(raw: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Settings of a Transformer that PyLate keeps among those of the model."""
    place = f"{directory / 'config_sentence_transformers.json'}: "
    found = {name: raw[name] for name in _TRANSFORMER_KEYS if raw.get(name) is not None}
    if "query_expansion" in raw:
        found["query_expansion"] = query_expansion(raw["query_expansion"], place)
    elif any(key in raw for key in _PYLATE_KEYS):
        if raw.get("do_query_expansion") is False:
            found["query_expansion"] = None
        else:
            attend = raw.get("attend_to_expansion_tokens", raw.get("attend_to_mask_tokens"))
            length = found.pop("query_length", None) or _USUAL_QUERY_LENGTH
            found["query_expansion"] = _fixed(length, attend, place)
    return found


def _fixed(length: Any, attend: Any, place: str) -> Any:
    return query_expansion({"strategy": "fixed", "attend": bool(attend), "length": length}, place)


def _from_stanford(directory: Path, first: Transformer) -> LateInteraction:
    config = optional_object(directory / "config.json")
    if _STANFORD not in (config.get("architectures") or []):
        raise _no_projection(directory)
    weight = read_weight(directory, _PROJECTION)
    if weight is None or weight.ndim != 2:
        raise UnsupportedError(
            f"{directory} says that its architecture is {_STANFORD}, and its weights have no matrix {_PROJECTION!r}, "
            "the projection of the vectors of tokens. Download the checkpoint again, or export one that has it."
        )
    file = directory / "artifact.metadata"
    if not file.is_file():
        logger.warning(
            "%s has no artifact.metadata, the settings of Stanford's ColBERT. The bundle has its defaults: queries of "
            "%d tokens, the markers [unused0] and [unused1], and no vectors for punctuation.",
            *(directory, _USUAL_QUERY_LENGTH),
        )
    with damage_named(file):
        metadata = read_object(file) if file.is_file() else {}
        first = _with_defaults(
            first,
            directory,
            {
                "document_length": metadata.get("doc_maxlen"),
                "query_expansion": _fixed(
                    metadata.get("query_maxlen") or _USUAL_QUERY_LENGTH,
                    metadata.get("attend_to_mask_tokens"),
                    f"{file}: ",
                ),
            },
        )
        words = string.punctuation if metadata.get("mask_punctuation", True) else ""
        prompts = {
            "query": (metadata.get("query_token_id") or "[unused0]") + " ",
            "document": (metadata.get("doc_token_id") or "[unused1]") + " ",
        }
    projection = Dense(weight, None, "identity", residual=False, residual_weight=None, tokens=True)
    return LateInteraction((first, projection, MultiVectorMask(tuple(words)), Normalize(tokens=True)), prompts)


def _check_expansion(folder: Path, chain: tuple[Module, ...]) -> None:
    """Raise ExportError if queries cannot be filled up as the settings say."""
    first = chain[0]
    assert isinstance(first, Transformer)
    expansion, length = first.query_expansion, first.query_length
    if expansion is None:
        return
    if length is not None and length < expansion.length:
        raise ExportError(
            f"{folder}: queries are cut to query_length={length} tokens and filled up to {expansion.length} tokens, "
            "which sentence-transformers refuses, too. Raise query_length, or lower the length of query_expansion."
        )
    file = folder / "tokenizer.json"
    if expansion.token is None or not file.is_file():
        return
    from tokenizers import Tokenizer

    with damage_named(file):
        known = Tokenizer.from_file(str(file)).token_to_id(expansion.token) is not None
    if not known:
        raise ExportError(
            f"{folder}: query_expansion fills up queries with {expansion.token!r}, and the tokenizer has no such "
            "token. Name one that it has as token in query_expansion, in the settings of the Transformer module, or "
            "null for its mask token."
        )


def refuse_expansion(routes: Mapping[str, tuple[Module, ...]], folders: Mapping[str, Path]) -> None:
    """Raise UnsupportedError for a model of another task that fills up its queries."""
    for route, chain in routes.items():
        if getattr(chain[0], "query_expansion", None):
            raise UnsupportedError(
                f"{transformer_file(folders[route])} sets query_expansion, which fills up queries for late "
                "interaction. Only a MultiVectorEncoder can be exported with that. If the model may do without, take "
                "it out of that file or set it to null."
            )
