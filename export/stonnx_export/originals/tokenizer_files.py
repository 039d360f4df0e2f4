"""A checkpoint's tokenizer without transformers: tokenizer.json, and the changes that the settings beside it make.

tokenizer.json counts. transformers 5 builds some tokenizers anew from its vocabulary and settings alone, and then
ignores how the file normalizes or splits. Here, a default that nobody wrote down does not overrule the file (say, that
a BERT tokenizer without ``do_lower_case`` lowers the case). A setting that somebody wrote down does, as it does there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import normalizers

from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.checkpoint.files import read_json
from stonnx_export.checkpoint.module_files import transformer_settings
from stonnx_export.checkpoint.modules import Module, SparseStaticEmbedding, StaticEmbedding, Transformer
from stonnx_export.originals.original import OriginalTokenizer, bare_tokenizer

_OTHER_SOURCE = (
    "export the PyTorch weights (--source torch), or save the tokenizer once as transformers has it: "
    "AutoTokenizer.from_pretrained(DIRECTORY, ARGUMENTS).save_pretrained(DIRECTORY)"
)
# The attributes under which transformers keeps special tokens: one each, or a list.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL_TOKENS = ("additional_special_tokens", "extra_special_tokens")

# Setting of transformers' BERT-like tokenizers -> attribute of BertNormalizer.
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# Arguments for the tokenizer that a Transformer module may have in its settings. All of them are followed here; the
# last ones do not change any token id.
_ARGUMENTS = {"model_max_length", "truncation_side", "add_prefix_space", *_BERT_SETTINGS}
_ARGUMENTS |= {"padding_side", "use_fast", "clean_up_tokenization_spaces", "model_input_names", "token", "revision"}
_ARGUMENTS |= {"add_bos_token", "add_eos_token", "split_special_tokens", "pad_token_type_id"}
# These classes take tokenizer.json as it is, and leave the settings above alone.
_GENERIC_CLASSES = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer, and whether it tells the model which of two texts a token comes from."""

    tokenizer: OriginalTokenizer
    token_types: bool


def read_tokenizer(folder: Path, first: Module) -> TokenizerFiles:
    """Read the tokenizer of a chain, in the form in which sentence-transformers uses it.

    Args:
        folder: The folder of the first module.
        first: The first module of the chain.

    Raises:
        UnsupportedError: The folder has no tokenizer.json.
        ExportError: A file cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedError(
            f"{folder} has no tokenizer.json, and stonnx reads nothing else without transformers. Make it once, on a "
            "machine with transformers: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ExportError(f"{file} is not a tokenizer that the tokenizers package can read: {error}") from error
    if isinstance(first, StaticEmbedding):
        return TokenizerFiles(bare_tokenizer(backend), False)
    arguments = tokenizer_arguments(folder) if isinstance(first, Transformer) else {}
    settings, config = {**_read_settings(folder), **arguments}, _read_optional(folder / "config.json")
    padding, truncation = backend.padding or {}, backend.truncation or {}
    _refuse_settings(backend, settings, arguments, folder)
    _follow_bert_settings(backend, settings)
    _follow_prefix_space(backend, settings, folder)
    if isinstance(first, Transformer) and first.do_lower_case:
        lower_case(backend)
    names = settings.get("model_input_names")
    return TokenizerFiles(
        OriginalTokenizer(
            backend=backend,
            max_length=arguments.get("model_max_length", _max_length(first, settings, config)),
            pad_token_id=_pad_id(backend, settings, config),
            pad_token_type_id=int(settings.get("pad_token_type_id", padding.get("pad_type_id", 0))),
            truncation_side=_truncation_side(settings.get("truncation_side", truncation.get("direction", "right"))),
            special_token_ids=_special_ids(backend, settings),
            add_special_tokens=not isinstance(first, SparseStaticEmbedding),
        ),
        # A class without token types leaves them out. If its code is missing, the type 0 for every token shows that.
        token_types=("token_type_ids" in names if isinstance(names, list) else True)
        and any(backend.encode("a", "a").type_ids),
    )


def tokenizer_arguments(folder: Path) -> Mapping[str, Any]:
    """Arguments that the settings of a Transformer module pass to the tokenizer. They overrule the tokenizer's files.

    Raises:
        ExportError: They are not an object.
    """
    settings = transformer_settings(folder)
    arguments = settings.get("tokenizer_args", settings.get("processor_kwargs")) or {}
    if not isinstance(arguments, dict):
        raise ExportError(f"{folder}: the arguments of the tokenizer must be an object, found {arguments!r}.")
    return {name: value for name, value in arguments.items() if name != "trust_remote_code"}


def _refuse_settings(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path
) -> None:
    """Raise UnsupportedError for settings that only transformers can follow."""
    unknown = sorted(arguments.keys() - _ARGUMENTS)
    if unknown:
        raise UnsupportedError(
            f"{folder} passes {', '.join(unknown)} to the tokenizer (tokenizer_args or processor_kwargs in the "
            f"settings of its Transformer module). Only transformers can follow that: {_OTHER_SOURCE}"
        )
    if settings.get("split_special_tokens"):
        raise UnsupportedError(
            f"{folder} sets split_special_tokens: special tokens that are written in a text are words there. "
            "A tokenizer.json cannot say that, so the model cannot be exported. Set it to false if texts have none."
        )
    ids = backend.encode("a").ids
    for name, token, place in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", -1)):
        written = settings.get(name)
        index = backend.token_to_id(_content(settings[token])) if settings.get(token) else None
        if written is not None and index is not None and bool(written) != (ids[place] == index):
            raise UnsupportedError(
                f"{folder} sets {name} to {written}, and its tokenizer.json does the opposite. Only transformers can "
                f"follow that: {_OTHER_SOURCE}"
            )


def _follow_prefix_space(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], folder: Path) -> None:
    """Follow add_prefix_space as transformers' classes of byte-level tokenizers do."""
    written = settings.get("add_prefix_space")
    if written is None or settings.get("tokenizer_class", _GENERIC_CLASSES[0]) in _GENERIC_CLASSES:
        return
    data = json.loads(backend.to_str())
    splitter = data.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    for part in parts:
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = bool(written)
        elif part.get("type") == "Metaspace" and (part.get("prepend_scheme") != "never") != bool(written):
            raise UnsupportedError(
                f"{folder} sets add_prefix_space to {written}, and its tokenizer.json does the opposite. Only "
                f"transformers can follow that: {_OTHER_SOURCE}"
            )
    if any(part.get("type") == "ByteLevel" for part in parts):
        backend.pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data)).pre_tokenizer


def _read_settings(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; the other way round if it is of the old kind."""
    settings = _read_optional(folder / "tokenizer_config.json")
    special = _read_optional(folder / "special_tokens_map.json")
    # Newer versions of transformers write the tokens with all their properties, and no longer read the map.
    return {**special, **settings} if "added_tokens_decoder" in settings else {**settings, **special}


def _read_optional(file: Path) -> Mapping[str, Any]:
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ExportError(f"{file} must hold a JSON object, found {type(settings).__name__}.")
    return settings


def _follow_bert_settings(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Resolve differences between tokenizer_config.json and tokenizer.json as transformers' BERT-like classes do."""
    normalizer = backend.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer) or settings.get("tokenizer_class") in _GENERIC_CLASSES:
        return
    wanted = {attribute: settings[name] for name, attribute in _BERT_SETTINGS.items() if name in settings}
    found = {attribute: getattr(normalizer, attribute) for attribute in _BERT_SETTINGS.values()}
    if any(found[attribute] != value for attribute, value in wanted.items()):
        backend.normalizer = normalizers.BertNormalizer(clean_text=normalizer.clean_text, **{**found, **wanted})


def lower_case(backend: tokenizers.Tokenizer) -> None:
    """do_lower_case of sentence-transformers: put a Lowercase first, unless the top level has one already."""
    normalizer: Any = backend.normalizer
    parts: list[Any] = [normalizer] if normalizer else []
    if isinstance(normalizer, normalizers.Sequence):
        parts = [normalizer[index] for index in range(len(normalizer))]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def _max_length(first: Module, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    if isinstance(first, Transformer) and first.max_seq_length is not None:
        return first.max_seq_length
    limits = [settings.get("model_max_length", settings.get("max_len"))]
    if isinstance(first, Transformer):  # a table does not have positions
        limits.append(config.get("max_position_embeddings"))
    # XLNet writes -1 for "unlimited".
    return min((int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0), default=None)


def _truncation_side(side: Any) -> Literal["left", "right"]:
    if side not in ("left", "right"):
        raise ExportError(f"truncation_side in tokenizer_config.json is {side!r}, allowed are 'left' and 'right'.")
    return "left" if side == "left" else "right"


def _pad_id(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """The id of the padding token; 0 if there is none: the mask hides padding, so any id will do."""
    named = backend.token_to_id(_content(settings["pad_token"])) if settings.get("pad_token") else None
    choices = (named, (backend.padding or {}).get("pad_id"), config.get("pad_token_id"))
    return next((int(choice) for choice in choices if choice is not None), 0)


def _special_ids(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tokens with a role; if no file names any, those that tokenizer.json marks as special."""
    tokens = [_content(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)]
    for name in _MORE_SPECIAL_TOKENS:
        more = settings.get(name) or []
        tokens += [_content(token) for token in (more.values() if isinstance(more, dict) else more)]
    if not tokens:
        tokens = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    return tuple(sorted({index for token in tokens if (index := backend.token_to_id(token)) is not None}))


def _content(token: Any) -> str:
    """The text of a token that is written as a string, or as an object with its properties."""
    return str(token["content"] if isinstance(token, dict) else token)
