"""Panics of the tokenizers package, which are no Exception, become errors that name the text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from toy_bundles import dense_bundle, toy_tokenizer

from stonnx import BundleFormatError, SentenceTransformer, TokenizerError
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import read_manifest, write_manifest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUST_BACKTRACE", "0")


# The splitter of GPT-4, which gives up on millions of spaces.
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
TOO_MANY_SPACES = " " * 11_000_000 + "a"


@pytest.fixture
def gpt4(tmp_path: Path) -> Path:
    """A toy bundle with that splitter."""
    bundle = dense_bundle(tmp_path / "bundle")
    backend = toy_tokenizer()
    backend.normalizer = None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated")
    rewrite_tokenizer(bundle, backend.to_str())
    return bundle


def rewrite_tokenizer(bundle: Path, content: str) -> None:
    (bundle / "tokenizer.json").write_text(content, encoding="utf-8")
    manifest = read_manifest(bundle)
    files = {**manifest.files, **hash_files(bundle, ["tokenizer.json"])}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))


@pytest.mark.parametrize(
    ("texts", "index"),
    [
        ([TOO_MANY_SPACES], 0),
        (["the sun", TOO_MANY_SPACES, "rain"], 1),
        (["the sun", "rain", "the sun", TOO_MANY_SPACES, TOO_MANY_SPACES], 3),
        ([*["the sun", "rain"] * 600, TOO_MANY_SPACES], 1200),
    ],
    ids=["alone", "between others", "after one that occurs twice", "in a later window"],
)
def test_a_panic_is_an_error_with_the_index_of_the_text(gpt4: Path, texts: list[str], index: int) -> None:
    model = SentenceTransformer(gpt4)
    with pytest.raises(TokenizerError, match=f"Text {index} cannot be tokenized: .*retry-limit-in-match") as error:
        model.encode(texts)
    assert error.value.index == index
    with pytest.raises(TokenizerError) as error:
        model.count_tokens(texts)
    assert error.value.index == index
    copy = pickle.loads(pickle.dumps(error.value))
    assert (copy.index, str(copy)) == (index, str(error.value))
    assert model.encode("the sun").shape == (8,)


def test_a_panic_in_one_text_of_a_pair(gpt4: Path) -> None:
    tokenizer = SentenceTransformer(gpt4)._engine.route().tokenizer
    for pair in [("a", TOO_MANY_SPACES), (TOO_MANY_SPACES, "a")]:
        for method in (tokenizer.encode, tokenizer.count):
            with pytest.raises(TokenizerError) as error:
                method([("a", "b"), pair])
            assert error.value.index == 1


@pytest.mark.parametrize("charsmap", ["", "AAAA", "////", "AAAAAAAA", "gAAAAA=="])
def test_a_tokenizer_that_makes_the_package_panic(tmp_path: Path, charsmap: str) -> None:
    """A map of characters that is not one: an error at load, or the first texts are read."""
    bundle = dense_bundle(tmp_path / "bundle")
    data = json.loads(toy_tokenizer().to_str())
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    rewrite_tokenizer(bundle, json.dumps(data))
    with contextlib.suppress(BundleFormatError, TokenizerError):
        SentenceTransformer(bundle).encode("the sun")
