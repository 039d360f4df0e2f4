"""Chat messages as inputs, for models with a chat template, beside the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

import stonnx
from stonnx import InvalidInputError
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export
from tests.export.test_causal_rerankers import QUERY, with_answers, with_template

pytestmark = pytest.mark.needs("sentence-transformers", "6", "LogitScore")

TEMPLATE = "{% for message in messages %}{{ message.role }} : {{ message.content }} [SEP] {% endfor %}assistant :"
PARTS = "{% for message in messages %}{{ message.role }} : {{ message.content[0].text }} . {% endfor %}"
BOTH = (
    "{% for message in messages %}{{ message.role }} : {% if message.content is string %}{{ message.content }}"
    "{% else %}{{ message.content[0]['text'] }}{% endif %} . {% endfor %}"
)
# The forms of contents that each reads.
READS = {TEMPLATE: ("text",), PARTS: ("parts",), BOTH: ("parts", "text")}
TEXT, LONG = "A man is playing a large flute.", "rain " * 80


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "what is the city"}
CONVERSATIONS: dict[str, Any] = {
    "user": [user(TEXT)],
    "system": [SYSTEM, user(TEXT)],
    "empty": [user("")],
    "cut": [user(LONG)],
    "cut with system": [SYSTEM, user(LONG)],
}


@pytest.fixture(scope="module", params=READS, ids=["text", "parts", "both"])
def both(request: pytest.FixtureRequest, make_chat: Any) -> tuple[Any, Any]:
    """Ours and the original's model of dense vectors, with a template that reads messages in some form."""
    checkpoint, bundle = make_chat(request.param)
    chat = read_manifest(bundle).routes["default"].tokenizer.chat
    assert chat is not None
    assert chat.contents == READS[request.param]
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    ours = stonnx.SentenceTransformer(bundle)
    assert ours.modalities == original.modalities == ["text", "message"]
    assert ours.supports("message")
    return ours, original


def form_of(both: tuple[Any, Any], content: str) -> Any:
    """A content in the form that the template reads."""
    contents = both[0].manifest.routes["default"].tokenizer.chat.contents
    return content if "text" in contents else [{"type": "text", "text": content}]


def in_form(both: tuple[Any, Any], conversation: Any) -> Any:
    return [{**message, "content": form_of(both, message["content"])} for message in conversation]


@pytest.fixture(scope="module")
def make_chat(small_builder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def make(template: str) -> tuple[Path, Path]:
        directory = tmp_path_factory.mktemp("chat")
        checkpoint = with_template(
            small_builder(directory)("qwen3", max_length=40, num_key_value_heads=2, head_dim=8), template
        )
        return checkpoint, export(checkpoint, directory / "bundle")

    return make


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation(both: tuple[Any, Any], conversation: Any) -> None:
    ours, original = both
    conversation = in_form(both, conversation)
    expected = original.encode(conversation)
    assert expected.ndim == 1
    np.testing.assert_allclose(ours.encode(conversation), expected, atol=1e-5)
    np.testing.assert_allclose(ours.encode([conversation])[0], expected, atol=1e-5)
    if conversation[0]["role"] == "user":
        for prompt in ("what is the city", ""):
            found, wanted = (model.encode([conversation], prompt=prompt)[0] for model in both)
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_either_form_if_the_template_reads_both(both: tuple[Any, Any]) -> None:
    ours, original = both
    parts = [user([{"type": "text", "text": TEXT}])]
    for form, conversation in (("text", [user(TEXT)]), ("parts", parts)):
        if form in ours.manifest.routes["default"].tokenizer.chat.contents:
            np.testing.assert_allclose(ours.encode(conversation), original.encode(conversation), atol=1e-5)
        else:
            with pytest.raises(InvalidInputError, match="This model's chat template reads"):
                ours.encode(conversation)


def test_messages_and_texts_in_one_call(both: tuple[Any, Any]) -> None:
    ours, original = both
    message, system = in_form(both, [user(TEXT)]), in_form(both, [SYSTEM, user("rain")])
    expected = np.stack([original.encode(each) for each in (TEXT, message, system)])
    np.testing.assert_allclose(ours.encode([TEXT, message, system]), expected, atol=1e-5)
    np.testing.assert_allclose(ours.encode(*message), original.encode(*message), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([*ours.encode_stream(iter([*message, TEXT]))]), expected[:2], atol=1e-5)
    assert ours.count_tokens(message) == ours.count_tokens(TEXT)


def test_preprocess_takes_each_message_as_an_input(both: tuple[Any, Any]) -> None:
    message = in_form(both, [user(TEXT)])
    ours, original = ([row.tolist() for row in model.preprocess(message)["input_ids"]] for model in both)
    assert ours == original
    assert ours == both[0].preprocess([message])["input_ids"].tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}, user("c")], r"roles \['user', 'assistant', 'user'\]"),
        ([user("a"), SYSTEM], r"roles \['user', 'system'\].*Put earlier turns into the text"),
        ([user("a"), "b"], r"roles \['user', None\]"),
        ([{**user("a"), "name": "b"}], "the key 'name'"),
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "content is list"),
        ([user([{"type": "image", "image": "a.png"}])], "content is list"),
        ([user(None)], "content is NoneType"),
        ([{**SYSTEM, "content": ""}, user("a")], "system message without a text"),
        ([user("\ud800")], "half of a surrogate pair"),
        ([{"role": "query", "content": "a"}, {"role": "document", "content": "b"}], "takes a text, not a pair"),
    ],
)
def test_other_conversations_are_refused_by_name(both: tuple[Any, Any], wrong: Any, message: str) -> None:
    wrong = [
        {**each, "content": form_of(both, each["content"])}
        if isinstance(each, dict) and isinstance(each["content"], str)
        else each
        for each in wrong
    ]
    with pytest.raises(InvalidInputError, match=message):
        both[0].encode(wrong)
    with pytest.raises(InvalidInputError, match=message):
        both[0].encode(["a", wrong])


def test_a_prompt_and_a_system_message_are_too_much(both: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"^Input 1 has a system message, and the call has a prompt"):
        both[0].encode(["a", in_form(both, [SYSTEM, user("a")])], prompt="b")


def test_a_template_that_reads_the_task(make_chat: Any) -> None:
    template = TEMPLATE.replace("assistant :", "{% if task == 'query' %}what is{% elif task %}the city{% endif %} :")
    checkpoint, bundle = make_chat(template)
    original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    ours = stonnx.SentenceTransformer(bundle)
    for prompt in (None, "rain"):
        expected = {}
        for method in ("encode", "encode_query", "encode_document"):
            for inputs in (TEXT, LONG, "", [user(TEXT)]):
                found, wanted = (getattr(model, method)(inputs, prompt=prompt) for model in (ours, original))
                np.testing.assert_allclose(found, wanted, atol=1e-5)
            expected[method] = ours.encode(TEXT, prompt=prompt) if method == "encode" else wanted
        assert len({vector.tobytes() for vector in expected.values()}) == 3
    texts = [TEXT, LONG]
    streamed = np.concatenate([*ours.encode_stream(texts, task="query")])
    np.testing.assert_allclose(streamed, ours.encode_query(texts, device=["cpu"]), atol=1e-5)
    assert ours.count_tokens(TEXT, task="document") == len(ours.preprocess([TEXT], task="document")["input_ids"][0])
    work = ours.work(task="query")
    (vector,) = work.run(work.tokenize(work.texts([TEXT])), alone=True)
    np.testing.assert_allclose(vector, ours.encode_query(TEXT), atol=1e-6)


def test_a_model_without_a_template(minilm: Any) -> None:
    for inputs in ([user("a")], [[user("a")]], user("a")):
        with pytest.raises(InvalidInputError, match="is a chat message, and this model has no chat template"):
            minilm.encode(inputs)


def test_a_reranker(build_small: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    settings = {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
    checkpoint = build_small("qwen3", max_length=48, auto=AutoModelForCausalLM, **settings)
    with_template(with_answers(checkpoint, "yes", "no"))
    ours = stonnx.CrossEncoder(export(checkpoint, tmp_path / "bundle", task="rerank"))
    original = sentence_transformers.CrossEncoder(str(checkpoint), device="cpu")
    roles = ("query", "document")
    for document in (TEXT, LONG, ""):
        pair = [{"role": role, "content": text} for role, text in zip(roles, (QUERY, document), strict=True)]
        for conversation in (pair, [SYSTEM, *pair]):
            expected = original.predict(conversation)
            np.testing.assert_allclose(ours.predict(conversation), expected, atol=1e-5)
            np.testing.assert_allclose(ours.predict([conversation, (QUERY, "a")])[0], expected, atol=1e-5)
        np.testing.assert_allclose(ours.predict(pair, prompt="rain"), original.predict(pair, prompt="rain"), atol=1e-5)
    with pytest.raises(InvalidInputError, match="takes a pair of texts, not a text"):
        ours.predict([[user("a")]])
