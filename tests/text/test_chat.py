"""Chat templates in the runtime: forms, prompts, and the ending that a text keeps when it is cut."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from toy_bundles import toy_tokenizer

from stonnx._bundle.manifest import ChatTemplate, TokenizerSpec
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._text.chat import Chat, Rendered
from stonnx._text.inputs import parse_inputs, parse_pairs
from stonnx._text.tokenizer import Tokenizer

PAIR = ("question : ", "query", " . document : ", "document|trim", " . what is the city ?")
PROMPTED = ("question : ", "query", " . document : ", "document|trim", " . ", "prompt", " ?")
# The toy vocabulary has no digits, by which the original, too, finds where the template ends.
ENDING = ["[UNK]", ".", "what", "is", "the", "city", "?"]


def tokenizer(limit: int | None = 16, *, side: str = "right", restores: bool = True) -> Tokenizer:
    chat = ChatTemplate(pair=PAIR, pair_with_prompt=PROMPTED, restores_ending=restores)
    spec = TokenizerSpec("tokenizer.json", limit, 64, 0, 0, side, False, (0, 1, 2, 3), chat=chat)  # type: ignore[arg-type]
    content = toy_tokenizer().to_str().encode()
    return Tokenizer(lambda: content, spec, Path("tokenizer.json"))


def names(tokens: Tokenizer, ids: np.ndarray) -> list[str]:
    return [tokens.backend.id_to_token(int(number)) for number in ids]


def test_a_pair_in_its_form() -> None:
    chat = Chat(ChatTemplate(pair=PAIR, pair_with_prompt=PROMPTED))
    assert chat.render(("a ", "  b \n")) == "question : a  . document : b . what is the city ?"
    assert chat.render(("a", "b"), "of the river") == "question : a . document : b . of the river ?"


def test_a_form_that_is_missing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes a pair of texts, not a text"):
        Chat(ChatTemplate(pair=PAIR)).render("a")
    with pytest.raises(InvalidInputError, match="takes a text, not a pair of texts"):
        Chat(ChatTemplate(text=("", "text", ""))).render(("a", "b"))
    with pytest.raises(InvalidArgumentError, match="does not take prompts"):
        Chat(ChatTemplate(pair=PAIR)).render(("a", "b"), "of the river")


def test_a_text_in_its_form_is_left_as_it_is_also_after_pickling() -> None:
    chat = Chat(ChatTemplate(pair=PAIR, pair_with_prompt=PROMPTED))
    text = chat.render(("a", "b"), "c")
    again = pickle.loads(pickle.dumps(text))
    assert isinstance(again, Rendered)
    assert (again, again.samples) == (text, text.samples)
    assert chat.render(again) is again


def test_prompts_have_a_place_of_their_own() -> None:
    tokens = tokenizer()
    parsed, single = parse_pairs(("a", "b"), "of the river", tokens.chat)
    assert single
    assert parsed == ["question : a . document : b . of the river ?"]
    assert tokens.prompted([("a", "b")], "of the river") == parsed
    with pytest.raises(InvalidInputError, match="takes a pair of texts"):
        parse_inputs(["a"], None, tokens.chat)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_that_is_cut_keeps_its_ending(side: str) -> None:
    tokens = tokenizer(side=side)
    long = ("a", " ".join(["b"] * 40))
    (cut,) = tokens.encode([long])
    assert len(cut) == 16
    assert names(tokens, cut.ids[-7:]) == ENDING
    assert tokens.is_truncated(cut)
    assert tokens.count([long]).tolist() == [6 + 40 + 6]
    whole = names(tokens, tokenizer(None).encode([long])[0].ids)
    without = names(tokens, tokenizer(side=side, restores=False).encode([long])[0].ids)
    assert without == (whole[:16] if side == "right" else whole[-16:])
    assert names(tokens, cut.ids) == [*without[:-7], *ENDING]


def test_the_ending_has_the_prompt_if_that_comes_last() -> None:
    tokens = tokenizer()
    long = ("a", " ".join(["b"] * 40))
    for prompt in ("of the river", "shines", "of the river"):
        (cut,) = tokens.encode(tokens.prompted([long], prompt))
        assert names(tokens, cut.ids)[-len(prompt.split()) - 1 :] == [*prompt.split(), "?"]


def test_an_ending_beyond_the_limit_is_cut_at_its_beginning() -> None:
    tokens = tokenizer(3)
    assert names(tokens, tokens.encode([("a", "b")])[0].ids) == ["the", "city", "?"]


def test_a_text_that_fits_is_left_as_it_is() -> None:
    tokens = tokenizer(40)
    (whole,) = tokens.encode([("a", "b")])
    assert names(tokens, whole.ids) == ["question", ":", "a", ".", "document", ":", "b", *ENDING[1:]]
    assert not tokens.is_truncated(whole)


def test_batches_of_cut_and_whole_texts() -> None:
    tokens = tokenizer()
    texts = [("a", "b"), ("a", " ".join(["b"] * 40))]
    batch = tokens.pad(tokens.encode(texts))
    assert batch.input_ids.shape == (2, 16)
    assert batch.attention_mask.sum(axis=1).tolist() == [13, 16]
    assert [item.truncated for item in tokens.ids(texts)] == [False, True]
    assert tokens.effort(texts[0]) > 0


def test_the_limit_leaves_room_for_no_special_tokens() -> None:
    tokens = tokenizer()
    tokens.max_seq_length = 1
    assert len(tokens.encode([("a", "b")])[0]) == 1
