"""Tokenizers read from their files, against what sentence-transformers makes of the same checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer
from zoo import build_checkpoint, row

from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.checkpoint.modules import Transformer
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals.from_onnx import OnnxOriginal
from stonnx_export.originals.from_torch import TorchOriginal
from stonnx_export.originals.original import OriginalTokenizer
from stonnx_export.originals.tokenizer_files import read_tokenizer
from stonnx_export.originals.transformers_ids import compare_with_transformers
from stonnx_export.texts import verification_texts

# Every kind of tokenizer in the table, and the rows whose settings are a trap.
NAMES = (
    "all-MiniLM-L6-v2",  # cut and padded to 128 tokens in tokenizer.json, 256 in sentence_bert_config.json
    "paraphrase-MiniLM-L3-v2",  # 64 in tokenizer_config.json, 128 in sentence_bert_config.json
    "LaBSE",
    "all-mpnet-base-v2",
    "paraphrase-multilingual-mpnet-base-v2",
    "cross-encoder/nli-roberta-base",
    "BAAI/bge-large-en",  # do_lower_case of sentence-transformers
    "nomic-ai/modernbert-embed-base",
    "Qwen/Qwen3-Embedding-0.6B",
    "google/embeddinggemma-300m",
    "zoo/every-pooling",
    "intfloat/multilingual-e5-small",  # a BERT with a tokenizer that knows no token types
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill",  # two routes, a tokenizer each
    "minishlab/potion-base-8M",
)
UNLIMITED = 10**9
MIXED = "İstanbul’da ÉCOLE straße 東京 Naïve NAÏVE"

Write = Callable[..., Path]


def limited(tokenizer: OriginalTokenizer) -> OriginalTokenizer:
    """Without the backend, with one way to say that there is no limit, and without what late interaction alone reads:
    it is not exported from files."""
    limit = tokenizer.max_length
    limit = None if limit and limit > UNLIMITED else limit
    late = {"unknown_token_id": None, "filling_token_id": None, "pads_left": False}
    return dataclasses.replace(tokenizer, backend=None, max_length=limit, **late)


def ids(tokenizer: OriginalTokenizer, text: Any) -> list[int]:
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    first, second = text if isinstance(text, tuple) else (text, None)
    return list(backend.encode(first, second, add_special_tokens=tokenizer.add_special_tokens).ids)


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_ids_equal_those_of_sentence_transformers(name: str, shared_directory: Path) -> None:
    checkpoint = read_checkpoint(build_checkpoint(row(name), shared_directory / "zoo"))
    original = TorchOriginal(checkpoint)
    texts: list[Any] = [*verification_texts(60, 2), MIXED]
    if checkpoint.task == "rerank":
        texts = list(itertools.pairwise(texts))
    for route, chain in checkpoint.routes.items():
        files, expected = read_tokenizer(checkpoint.folders[route], chain[0]), original.tokenizer(route)
        assert limited(files.tokenizer) == limited(expected)
        assert [ids(files.tokenizer, text) for text in texts] == [ids(expected, text) for text in texts]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("all-MiniLM-L6-v2", True), ("intfloat/multilingual-e5-small", False), ("cross-encoder/nli-roberta-base", False)],
)
def test_token_types_are_those_of_the_tokenizer(name: str, expected: bool, shared_directory: Path) -> None:
    directory = build_checkpoint(row(name), shared_directory / "zoo")
    names = AutoTokenizer.from_pretrained(str(directory)).model_input_names
    assert read_tokenizer(directory, Transformer()).token_types == ("token_type_ids" in names) == expected


@pytest.fixture
def write(tiny_checkpoint: Path, tmp_path: Path) -> Write:
    """``write(name={...})``: the tiny checkpoint with settings changed in NAME.json; None takes the file away."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)

    def write(**changes: dict[str, Any] | None) -> Path:
        for name, settings in changes.items():
            file = directory / f"{name}.json"
            if settings is None:
                file.unlink(missing_ok=True)
                continue
            before = json.loads(file.read_text()) if file.is_file() else {}
            merged = {key: value for key, value in {**before, **settings}.items() if value != "gone"}
            file.write_text(json.dumps(merged))
        return directory

    return write


def read(directory: Path, first: Transformer | None = None) -> OriginalTokenizer:
    return read_tokenizer(directory, first or Transformer()).tokenizer


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": True}])
def test_written_settings_of_bert_classes_count(write: Write, settings: dict[str, Any]) -> None:
    """transformers changes the normalizer of tokenizer.json to what tokenizer_config.json says."""
    directory = write(tokenizer_config=settings)
    expected = TorchOriginal(read_checkpoint(directory)).tokenizer("default")
    ours = read(directory)
    normalized = ours.backend.normalizer.normalize_str(MIXED)
    assert normalized == expected.backend.normalizer.normalize_str(MIXED)
    default = Tokenizer.from_file(str(directory / "tokenizer.json")).normalizer.normalize_str(MIXED)
    assert (normalized == default) == (settings == {"do_lower_case": True})


def test_a_setting_that_is_not_written_leaves_the_file_alone(write: Write) -> None:
    directory = write(tokenizer_config={"do_lower_case": "gone", "strip_accents": "gone"})
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.save(str(directory / "tokenizer.json"))
    assert read(directory).backend.normalizer.lowercase is False


def test_generic_classes_take_the_file_as_it_is(write: Write) -> None:
    directory = write(tokenizer_config={"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"})
    assert read(directory).backend.normalizer.lowercase is True


def same_as_transformers(directory: Path) -> None:
    """Every setting and every id, also with special tokens in the text, and cut."""
    checkpoint = read_checkpoint(directory)
    original = TorchOriginal(checkpoint)
    files, expected = read_tokenizer(directory, checkpoint.chain[0]), original.tokenizer("default")
    assert limited(files.tokenizer) == limited(expected)
    texts = [*verification_texts(60, 2), MIXED, "a [SEP] b <mask> c", " a", "ab"]
    assert [ids(files.tokenizer, text) for text in texts] == [ids(expected, text) for text in texts]


ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"model_max_length": 16},
    {"truncation_side": "left"},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"tokenize_chinese_chars": False},
    {"do_lower_case": False, "strip_accents": True, "model_max_length": 20},
)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=repr)
@pytest.mark.parametrize("name", ["tokenizer_args", "processor_kwargs"])
@pytest.mark.parametrize("length", [None, 24])
def test_arguments_of_the_module(write: Write, arguments: dict[str, Any], name: str, length: int | None) -> None:
    """They count for more than the tokenizer's own files, and a model_max_length for more than max_seq_length."""
    settings = {
        "max_seq_length": length or "gone",
        "processor_kwargs": "gone",
        "tokenizer_args": "gone",
        name: arguments,
    }
    same_as_transformers(write(sentence_bert_config=settings))


def test_arguments_that_cannot_be_followed(write: Write) -> None:
    directory = write(sentence_bert_config={"tokenizer_args": {"unk_token": "[PAD]"}})
    with pytest.raises(UnsupportedError, match=r"passes unk_token to the tokenizer.*--source torch"):
        read(directory)


@pytest.mark.parametrize("where", ["tokenizer_config", "sentence_bert_config"])
@pytest.mark.parametrize("written", [True, False])
def test_a_space_in_front(where: str, written: bool, shared_directory: Path, tmp_path: Path) -> None:
    """RoBERTa's class makes its splitter anew, whatever tokenizer.json says."""
    built = build_checkpoint(row("paraphrase-distilroberta-base-v2"), shared_directory / "zoo")
    directory = shutil.copytree(built, tmp_path / "checkpoint")
    file = directory / f"{where}.json"
    settings = json.loads(file.read_text())
    setting = {"add_prefix_space": written}
    file.write_text(json.dumps(settings | (setting if where == "tokenizer_config" else {"tokenizer_args": setting})))
    same_as_transformers(directory)
    without = Tokenizer.from_file(str(directory / "tokenizer.json")).encode("ab").ids
    assert (ids(read(directory), "ab") == without) is not written


def test_special_tokens_as_words(write: Write) -> None:
    directory = write(tokenizer_config={"split_special_tokens": True})
    with pytest.raises(UnsupportedError, match="split_special_tokens"):
        read(directory)
    with pytest.raises(UnsupportedError, match="split_special_tokens"):
        TorchOriginal(read_checkpoint(directory)).tokenizer("default")


def test_ends_that_only_transformers_can_add(write: Write) -> None:
    directory = write(tokenizer_config={"add_eos_token": True, "eos_token": "[MASK]"})
    with pytest.raises(UnsupportedError, match=r"add_eos_token to True.*does the opposite"):
        read(directory)


class TestComparison:
    """Where transformers is installed, it is asked for ids."""

    def compare(self, directory: Path, *, do_lower_case: bool = False) -> None:
        tokenizer = read(directory, Transformer(do_lower_case=do_lower_case))
        backend = Tokenizer.from_str(tokenizer.backend.to_str())
        backend.no_truncation()
        backend.no_padding()
        for pairs in (False, True):
            compare_with_transformers(
                directory, backend, pairs=pairs, do_lower_case=do_lower_case, add_special_tokens=True
            )

    @pytest.mark.parametrize("do_lower_case", [True, False])
    def test_the_same(self, write: Write, do_lower_case: bool) -> None:
        self.compare(write(tokenizer_config={"do_lower_case": False}), do_lower_case=do_lower_case)

    def test_a_normalizer_that_transformers_makes_anew(self, write: Write) -> None:
        directory = write()
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Replace("quick", "slow")])
        backend.save(str(directory / "tokenizer.json"))
        with pytest.raises(UnsupportedError, match=r"transformers makes other token ids of 'Hello"):
            self.compare(directory)

    def test_it_is_part_of_an_export(self, write: Write) -> None:
        directory = write()
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        backend.normalizer = normalizers.Lowercase()
        backend.save(str(directory / "tokenizer.json"))
        with pytest.raises(UnsupportedError, match="transformers makes other token ids"):
            OnnxOriginal(read_checkpoint(directory))


class TestDoLowerCase:
    """The setting of sentence-transformers' Transformer module."""

    def test_it_goes_in_front(self, write: Write) -> None:
        backend = read(write(), Transformer(do_lower_case=True)).backend
        names = [type(backend.normalizer[index]).__name__ for index in range(len(backend.normalizer))]
        assert names == ["Lowercase", "BertNormalizer"]

    @pytest.mark.parametrize(
        ("normalizer", "result"),
        [
            (None, ["Lowercase"]),
            (normalizers.Sequence([normalizers.NFC()]), ["Lowercase", "NFC"]),
            (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), ["NFC", "Lowercase"]),
        ],
    )
    def test_once(self, write: Write, normalizer: Any, result: list[str]) -> None:
        directory = write()
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        backend.normalizer = normalizer
        backend.save(str(directory / "tokenizer.json"))
        found = read(directory, Transformer(do_lower_case=True)).backend.normalizer
        assert [type(found[index]).__name__ for index in range(len(found))] == result

    def test_a_lowercase_alone_stays_alone(self, write: Write) -> None:
        directory = write()
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        backend.normalizer = normalizers.Lowercase()
        backend.save(str(directory / "tokenizer.json"))
        assert type(read(directory, Transformer(do_lower_case=True)).backend.normalizer) is normalizers.Lowercase


@pytest.mark.parametrize(
    ("first", "tokenizer_config", "config", "expected"),
    [
        pytest.param(Transformer(77), {"model_max_length": 50}, {}, 77, id="sentence_bert_config.json wins"),
        pytest.param(Transformer(), {"model_max_length": 50}, {}, 50, id="the tokenizer is shorter"),
        pytest.param(Transformer(), {"model_max_length": 5000}, {}, 64, id="the network is shorter"),
        pytest.param(Transformer(), {"model_max_length": "gone"}, {}, 64, id="only the network says it"),
        pytest.param(Transformer(), {"model_max_length": 50}, {"max_position_embeddings": -1}, 50, id="XLNet's -1"),
        pytest.param(
            Transformer(), {"model_max_length": "gone"}, {"max_position_embeddings": "gone"}, None, id="nobody says it"
        ),
    ],
)
def test_max_length(
    write: Write, first: Transformer, tokenizer_config: dict[str, Any], config: dict[str, Any], expected: int | None
) -> None:
    assert read(write(tokenizer_config=tokenizer_config, config=config), first).max_length == expected


class TestSpecialTokens:
    def test_the_map_is_read_for_old_settings(self, write: Write) -> None:
        """A token may be written with all its properties."""
        old = dict.fromkeys(("added_tokens_decoder", "pad_token", "sep_token"), "gone")
        mask = {"content": "[MASK]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
        directory = write(tokenizer_config=old, special_tokens_map={"pad_token": mask, "sep_token": "[SEP]"})
        tokenizer = read(directory)
        assert tokenizer.pad_token_id == tokenizer.backend.token_to_id("[MASK]")
        assert tokenizer.backend.token_to_id("[SEP]") in tokenizer.special_token_ids

    def test_new_settings_win_over_the_map(self, write: Write) -> None:
        directory = write(tokenizer_config={"added_tokens_decoder": {}}, special_tokens_map={"pad_token": "[MASK]"})
        tokenizer = read(directory)
        assert tokenizer.pad_token_id == tokenizer.backend.token_to_id("[PAD]")

    def test_without_settings_the_file_and_the_network_say_it(self, write: Write) -> None:
        directory = write(tokenizer_config=None, special_tokens_map=None, config={"pad_token_id": 3})
        tokenizer = read(directory)
        assert tokenizer.pad_token_id == 3
        assert tokenizer.special_token_ids == (0, 1, 2, 3, 4)

    def test_more_tokens(self, write: Write) -> None:
        tokenizer = read(write(tokenizer_config={"extra_special_tokens": ["!", "no token at all"]}))
        assert tokenizer.backend.token_to_id("!") in tokenizer.special_token_ids


def test_other_settings(write: Write) -> None:
    directory = write(
        tokenizer_config={"truncation_side": "left", "pad_token_type_id": 3, "model_input_names": ["input_ids"]}
    )
    files = read_tokenizer(directory, Transformer())
    assert (files.tokenizer.truncation_side, files.tokenizer.pad_token_type_id) == ("left", 3)
    assert not files.token_types


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("tokenizer.json", None, UnsupportedError, r"no tokenizer\.json.*save_pretrained"),
        ("tokenizer.json", b"{}", ExportError, r"tokenizer\.json is not a tokenizer"),
        ("tokenizer_config.json", b"[]", ExportError, "must hold a JSON object, found list"),
        ("tokenizer_config.json", b'{"truncation_side": "up"}', ExportError, "'up', allowed are 'left' and 'right'"),
    ],
)
def test_refusals(write: Write, name: str, content: bytes | None, error: type[Exception], message: str) -> None:
    file = write() / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(error, match=message):
        read(file.parent)
