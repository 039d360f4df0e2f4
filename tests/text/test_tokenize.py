"""Token ids are those of the plain tokenizer, whatever is done to get them faster."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from concurrent.futures import CancelledError
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zoo.table import TokenizerKind
from zoo.tokenizers import build_tokenizer

from stonnx._bundle.manifest import TokenizerSpec
from stonnx._text import long_texts as long_texts_module
from stonnx._text.batching import consecutive
from stonnx._text.tokenizer import Tokenizer, characters_of
from stonnx._text.tokens import Text

KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
# SentencePiece's BPE without words: where a text is split depends on all of it.
WHOLE = ("bpe-gemma", "bpe-llama", "bpe-gemma-chat")

# What texts are made of: words, all kinds of space, special tokens, characters that join or combine with others.
PARTS = [
    *("word", "Straße", "naïve", "東京", "東京都の人", "мир", "कि", "กำ", "x" * 40, "it's", "don't", "1234", "e\u0301"),
    *(
        " ",
        "  ",
        " " * 30,
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\u200b",
        " \u0301",
        "▁",
        " \n ",
        "!\n",
        "\x00",
    ),
    *(
        "[MASK]",
        " <mask>",
        "<s>",
        "[CLS]",
        "<|endoftext|>",
        "\u0d4e",
        "\u0600",
        "\U00011f02",
        "Σ",
        "ﬃ",
        "½",
        "👩\u200d👧",
        "\ufeff",
    ),
]
characters = st.characters(exclude_categories=["Cs"])
words = st.text(characters, max_size=12)
texts = st.lists(st.sampled_from(PARTS) | words, max_size=40).map("".join)
# Sentences long enough to be shortened, with anything in front, between and behind.
long_texts = st.tuples(texts, st.sampled_from([" ", "a ", "ab cd ", "word \n", "x"]), st.integers(0, 150), texts).map(
    lambda parts: parts[0] + parts[1] * parts[2] + parts[3]
)
spaced_texts = st.lists(st.sampled_from(PARTS) | words, min_size=20, max_size=40).map(" ".join)
any_text = texts | long_texts | spaced_texts
any_pair = st.tuples(any_text, any_text)


@cache
def both(kind: TokenizerKind, limit: int, side: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours and the plain one, under the same truncation."""
    plain = build_tokenizer(kind)
    path = Path(_directory.name) / f"{kind}.json"
    plain.save(str(path))
    plain.no_padding()
    plain.enable_truncation(limit, strategy="longest_first", direction=side)
    spec = TokenizerSpec(path.name, limit, None, 0, 0, side, True, ())  # type: ignore[arg-type]
    return Tokenizer(path.read_bytes, spec, path), plain


@pytest.fixture(scope="module", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _directory
    _directory = type("Directory", (), {"name": tmp_path_factory.mktemp("tokenizers")})


def ids(kind: TokenizerKind, encodings: Sequence[tokenizers.Encoding]) -> list[tuple[list[int], list[int]]]:
    # A tokenizer without special tokens has no use for segments, and gives others for a batch than for one text.
    without = kind == "wordpiece-model2vec"
    return [(encoding.ids, [] if without else encoding.type_ids) for encoding in encodings]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(texts=st.lists(any_text | any_pair, min_size=1, max_size=3), limit=st.sampled_from([6, 7, 9]))
@example(texts=["a b " * 200], limit=6)
@example(texts=[" " * 500], limit=6)
@example(texts=["x" * 500], limit=6)
@example(texts=[("a " * 300, "b"), ("a", "b " * 300), ("a " * 300, "b " * 300)], limit=7)
@example(texts=[("a " * 300, "b " * 3), ("a " * 3, "b " * 300), ("a " * 20, "b " * 300)], limit=6)
def test_same_ids(kind: TokenizerKind, texts: list[Text], limit: int) -> None:
    ours, plain = both(kind, limit, "right")
    expected = [plain.encode(*text) if isinstance(text, tuple) else plain.encode(text) for text in texts]
    encodings = ours.encode(texts)
    assert ids(kind, encodings) == ids(kind, expected)
    assert ids(kind, [ours.encode([text])[0] for text in texts]) == ids(kind, expected)
    assert [ours.is_truncated(encoding) for encoding in encodings] == [bool(e.overflowing) for e in expected]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(any_text | any_pair, min_size=1, max_size=3))
def test_count(kind: TokenizerKind, texts: list[Text]) -> None:
    ours, plain = both(kind, 6, "right")
    plain = tokenizers.Tokenizer.from_str(plain.to_str())
    plain.no_truncation()
    expected = [len(plain.encode(*text) if isinstance(text, tuple) else plain.encode(text)) for text in texts]
    assert ours.count(texts).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(any_text | any_pair, min_size=1, max_size=6), characters=st.sampled_from([1, 50, 500]))
def test_pieces_change_nothing(texts: list[Text], characters: int) -> None:
    ours, plain = both("wordpiece-uncased", 9, "left")
    in_pieces = Tokenizer(ours._read, ours._spec, Path(), characters)
    encodings, counts = in_pieces.encode(texts), in_pieces.count(texts)
    expected = [plain.encode(*text) if isinstance(text, tuple) else plain.encode(text) for text in texts]
    assert ids("wordpiece-uncased", encodings) == ids("wordpiece-uncased", expected)
    assert counts.tolist() == ours.count(texts).tolist()


@settings(deadline=None)
@given(texts=st.lists(any_text | any_pair, max_size=6), characters=st.integers(1, 500))
def test_pieces_are_bounded(texts: list[Text], characters: int) -> None:
    pieces = list(consecutive(texts, characters_of, characters))
    assert [text for piece in pieces for text in piece] == texts
    for piece in pieces:
        assert piece
        assert len(piece) == 1 or sum(map(characters_of, piece)) <= characters


def test_tokenization_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = both("wordpiece-uncased", 6, "right")
    stopped = threading.Event()
    assert len(ours.encode(["ferry"] * 3, stopped)) == 3
    stopped.set()
    with pytest.raises(CancelledError):
        ours.encode(["ferry"] * 3, stopped)


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokenizers_shorten(kind: TokenizerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = characters_tokenized(monkeypatch)
    ours, _ = both(kind, 6, "right")
    ours.encode(["some words " * 1000])
    assert seen == ([11_000] if kind in WHOLE else [long_texts_module._CHARACTERS_PER_TOKEN * 6])


def characters_tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of each text that is tokenized from here on."""
    seen: list[int] = []
    original = Tokenizer._encode

    def encode(self: Tokenizer, backend: Any, texts: Any, stopped: Any) -> Any:
        seen.extend(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
        return original(self, backend, texts, stopped)

    monkeypatch.setattr(Tokenizer, "_encode", encode)
    return seen


def test_what_is_cut_on_the_left_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = both("wordpiece-uncased", 6, "left")
    seen = characters_tokenized(monkeypatch)
    text = "ferry " * 500 + "harbour at dawn"
    assert ours.encode([text])[0].ids == plain.encode(text).ids
    assert seen == [len(text)]


def test_a_beginning_that_is_not_enough_is_followed_by_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = both("wordpiece-uncased", 6, "right")
    seen = characters_tokenized(monkeypatch)
    text = "a" + "\u200b" * 39 + " b " + "\u200b" * 200 + "c d e"
    assert ours.encode([text])[0].ids == plain.encode(text).ids
    assert seen == [42, len(text)]


def test_a_text_of_exactly_the_limit_is_not_truncated() -> None:
    ours, _ = both("wordpiece-uncased", 6, "right")
    assert [ours.is_truncated(encoding) for encoding in ours.encode(["a b c d", "a b c d e"])] == [False, True]
    # The beginning has six tokens, and nothing follows but spaces.
    (encoding,) = ours.encode(["a b c d" + " " * 500])
    assert (len(encoding), ours.is_truncated(encoding)) == (6, False)


def test_pairs_are_shortened_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = both("wordpiece-uncased", 16, "right")
    seen = characters_tokenized(monkeypatch)
    for pair in (("a b", "word " * 500), ("word " * 500, "a b")):
        assert ours.encode([pair])[0].ids == plain.encode(*pair).ids
    assert max(seen) < 200
    # Each has half of the tokens, and the longer one gets the odd one: both must be whole for that.
    pair = ("word " * 500, "word " * 501)
    assert ours.encode([pair])[0].ids == plain.encode(*pair).ids
    assert seen[-1] == sum(map(len, pair))


@pytest.mark.parametrize(
    "change", ["added token with a space", "no pre-tokenizer", "spaces replaced", "split elsewhere"]
)
def test_tokenizers_that_cannot_be_trusted(change: str) -> None:
    tokenizer = build_tokenizer("wordpiece-uncased")
    assert long_texts_module.can_be_shortened(tokenizer)
    if change == "added token with a space":
        tokenizer.add_tokens(["two words"])
    elif change == "no pre-tokenizer":
        tokenizer = tokenizers.Tokenizer(tokenizer.model)
    elif change == "spaces replaced":
        tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "_")
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[.]"), "isolated")
    assert not long_texts_module.can_be_shortened(tokenizer)


def test_letters_that_join_a_space() -> None:
    """The letters of Unicode's property Prepend that count as alphanumeric are not places to cut."""
    letters = [chr(code) for code in (0x0D4E, 0x111C2, 0x1193F, 0x11A3A, 0x11D46, 0x11F02)]
    for letter in letters:
        assert long_texts_module.beginning(f"word and{letter} {'x' * 500}", 2) == "word"
    # The last one came with Unicode 15, which Python 3.11 does not know.
    assert {unicodedata.category(letter) for letter in letters} <= {"Lo", "Cn"}
