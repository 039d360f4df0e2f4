"""Tokens without a row in the network's table, and texts that a bare tokenizer.json cuts."""

from __future__ import annotations

import logging
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import AddedToken, Tokenizer

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export

LONG = "the weather is lovely today and a man is playing a large flute " * 8


@pytest.fixture
def static(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[Callable[[Tokenizer], Any]], Path]:
    """``static(change)``: a table of vectors, whose tokenizer was changed after the table was made."""

    def make(change: Callable[[Tokenizer], Any]) -> Path:
        tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
        tokenizer.no_truncation()
        table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
        model = sentence_transformers.SentenceTransformer(modules=[StaticEmbedding(tokenizer, table)], device="cpu")
        directory = tmp_path / "static"
        model.save_pretrained(str(directory), create_model_card=False)
        change(tokenizer)
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return make


def add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("[QUERY]", special=True), AddedToken("[DOC]", special=True)])


class TestTokensWithoutARow:
    @pytest.fixture(params=["static", "network"])
    def directory(self, request: pytest.FixtureRequest, static: Any, tiny_checkpoint: Path, tmp_path: Path) -> Path:
        if request.param == "static":
            return static(add_tokens)
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        add_tokens(tokenizer)
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    def test_the_texts_are_named(self, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "stonnx"):
            bundle = export(directory, tmp_path / "bundle")
        assert "2 tokens that the network has no row for" in caplog.text
        assert "'[QUERY]', '[DOC]'" in caplog.text
        original = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
        with pytest.raises((IndexError, RuntimeError)):  # an embedding bag's is the latter
            original.encode("[DOC] a")
        model = stonnx.SentenceTransformer(bundle)
        np.testing.assert_allclose(model.encode("a man"), original.encode("a man"), rtol=0, atol=1e-5)
        texts = ["a", "a man", "a", "[DOC] a", "the"]
        with pytest.raises(stonnx.TokenIdError, match=r"Text 3 has the token '\[DOC\]' with the id \d+, and") as raised:
            model.encode(texts)
        assert isinstance(raised.value, IndexError)
        assert isinstance(raised.value, stonnx.StonnxError)
        assert (raised.value.index, raised.value.token) == (3, "[DOC]")
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
        with pytest.raises(stonnx.TokenIdError, match="Text 0"):
            model.encode("[QUERY]")
        np.testing.assert_allclose(model.encode("a man"), original.encode("a man"), rtol=0, atol=1e-5)

    def test_far_down_a_list(self, static: Any, tmp_path: Path) -> None:
        model = stonnx.SentenceTransformer(export(static(add_tokens), tmp_path / "bundle"))
        texts = [f"a man {index}" for index in range(5000)]
        texts[4321] = "[QUERY] a"
        with pytest.raises(stonnx.TokenIdError, match="Text 4321") as raised:
            model.encode(texts)
        assert raised.value.index == 4321

        def stream() -> Iterator[Any]:
            yield from model.encode_stream(iter(texts))

        with pytest.raises(stonnx.TokenIdError) as raised:
            list(stream())
        assert raised.value.index == 4321

    def test_every_token_has_a_row(self, tiny_bundle: Path) -> None:
        (route,) = read_manifest(tiny_bundle).routes.values()
        assert route.tokenizer.token_rows is None


class TestBareTokenizer:
    """That of all-MiniLM, from which static models are made, cuts to 128 tokens and pads to 128."""

    @pytest.mark.parametrize("source", ["torch", "onnx"])
    @pytest.mark.parametrize("length", [5, 1500])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_it_cuts(self, static: Any, tmp_path: Path, length: int, side: str, source: Any) -> None:
        def change(tokenizer: Tokenizer) -> None:
            tokenizer.enable_truncation(length, direction=side)
            tokenizer.enable_padding(length=length, pad_id=0)

        directory = static(change)
        model = stonnx.SentenceTransformer(export(directory, tmp_path / "bundle", source=source))
        original = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
        texts = ["a", "", LONG, LONG * 40]
        np.testing.assert_allclose(model.encode(texts), original.encode(texts), rtol=0, atol=1e-5)
        assert model.max_seq_length == length
        other = original.encode(LONG * 40) - model.encode(" ".join(LONG.split()[:4]))
        assert np.abs(other).max() > 1e-3

    def test_it_does_not(self, static: Any, tmp_path: Path) -> None:
        model = stonnx.SentenceTransformer(export(static(lambda tokenizer: None), tmp_path / "bundle"))
        assert model.max_seq_length == math.inf
