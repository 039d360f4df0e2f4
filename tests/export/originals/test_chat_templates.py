"""Chat templates, written out at export: the same text as the template itself gives, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.base.modality import InputFormatter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stonnx._errors import UnsupportedError
from stonnx._text.chat import Chat
from stonnx_export.originals.chat import chat_template

pytestmark = pytest.mark.needs("sentence-transformers", "6", "chat templates")

QUERY = '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}'
DOCUMENT = QUERY.replace("query", "document")
SYSTEM = '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("Judge.") }}'
FOLDER = Path("checkpoint")


@dataclass
class Module:
    """A Transformer module, as far as its template goes."""

    processor: Any
    processing_kwargs: dict[str, Any] = field(default_factory=dict)
    modality_config: dict[str, Any] = field(default_factory=lambda: {"text": {}, "message": {}})
    declares_task: bool = False

    def __post_init__(self) -> None:
        self.input_formatter = InputFormatter("qwen3", processor=self.processor)

    def _chat_template_declares_task(self) -> bool:
        return self.declares_task


@pytest.fixture
def module(tiny_checkpoint: Path) -> Any:
    backend = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))

    def build(template: str, **options: Any) -> Module:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", chat_template=template)
        return Module(tokenizer, **options)

    return build


def rendered(module: Module, pair: tuple[str, str], prompt: str) -> str:
    """What the original makes of a pair."""
    messages = module.input_formatter.pair_to_messages(pair)
    if prompt:
        (messages,) = module.input_formatter.prepend_prompt_to_messages([messages], prompt)
    options = (module.processing_kwargs or {}).get("chat_template") or {}
    return str(module.processor.apply_chat_template(messages, tokenize=False, **options))


@pytest.mark.parametrize(
    ("template", "options"),
    [
        pytest.param(f"{SYSTEM}\nQ: {QUERY}\nD: {DOCUMENT}<end>", {}, id="prompt first"),
        pytest.param(f"{{{{ bos_token }}}}A: {QUERY}\nB: {DOCUMENT}\n{SYSTEM}", {}, id="prompt last"),
        pytest.param(f"{DOCUMENT} answers {QUERY}? Again: {QUERY}", {}, id="twice, in another order"),
        pytest.param(f"Q: {QUERY.replace(' }}', ' | trim }}')} D: {DOCUMENT}", {}, id="trimmed"),
        pytest.param(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
            "{% if add_generation_prompt %}<answer>{% endif %}",
            {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
            id="roles in a loop",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.content[0].text }}|{{ m.role }}\n{% endfor %}", {}, id="content in parts"
        ),
    ],
)
def test_a_form_is_what_the_template_gives(module: Any, template: str, options: dict[str, Any]) -> None:
    original = module(template, **options)
    chat = Chat(chat_template(original, FOLDER, reads_pairs=True))
    for prompt in ("", "Is it so?", " \n"):
        for pair in (("why", "because"), ("", " "), (" {{ x }}\n", "dZ7x\tMark ")):
            assert chat.render(pair, prompt) == rendered(original, pair, prompt)


def test_single_texts_have_the_role_of_a_user(module: Any) -> None:
    original = module("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    chat = Chat(chat_template(original, FOLDER, reads_pairs=False))
    assert chat.render("a text") == "<user>a text"
    assert chat.render("a text", "Find it.") == "<system>Find it.<user>a text"


def test_a_model_that_reads_no_messages_has_no_template(module: Any) -> None:
    assert chat_template(module(QUERY, modality_config={"text": {}}), FOLDER, reads_pairs=True) is None


def test_the_setting_restore_suffix(module: Any) -> None:
    kwargs = {"chat_template": {"restore_suffix": False}}
    found = chat_template(module(f"{QUERY} {DOCUMENT}", processing_kwargs=kwargs), FOLDER, reads_pairs=True)
    assert found is not None
    assert not found.restores_ending


def test_a_template_that_refuses_prompts(module: Any) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}" + f"{QUERY} {DOCUMENT}"
    found = chat_template(module(template), FOLDER, reads_pairs=True)
    assert found is not None
    assert (found.pair is not None, found.pair_with_prompt) == (True, None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            r"no place for the roles 'query' and 'document': the text of 'query' and 'document' is not in the result",
            id="no roles",
        ),
        pytest.param(f"Q: {QUERY}", "the text of 'document' is not in the result", id="no document"),
        pytest.param("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate", id="raises"),
        pytest.param(f"{{{{ strftime_now('%d') }}}} {QUERY} {DOCUMENT}", "writes the date of the call", id="date"),
        pytest.param(f"{QUERY.replace(' }}', ' | upper }}')} {DOCUMENT}", "is not in the result", id="upper case"),
        pytest.param(
            f"{{% if 'x' in messages[0].content %}}long: {{% endif %}}{QUERY} {DOCUMENT}",
            "it does more with its texts than to put them in their places",
            id="reads a text",
        ),
        pytest.param(
            f"{QUERY} {{% if messages[1].content | length > 100 %}}{{{{ raise_exception('Too long.') }}}}{{% endif %}}"
            f"{DOCUMENT}",
            r"for the texts .* it raised TemplateError: Too long",
            id="raises for some",
        ),
    ],
)
def test_other_templates_are_refused_with_a_remedy(module: Any, template: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as error:
        chat_template(module(template), FOLDER, reads_pairs=True)
    assert "chat_template.jinja" in str(error.value) or "Write a template" in str(error.value)


TASK = "{% for m in messages %}{{ m.content }}{% endfor %}{% if task == 'query' %}?{% elif task %}.{% endif %}"


def test_a_template_that_reads_the_task_has_forms_for_each(module: Any) -> None:
    found = chat_template(module(TASK, declares_task=True), FOLDER, reads_pairs=False)
    assert found is not None
    chat = Chat(found)
    texts = [chat.of(task).render("a", "b ") for task in (None, "query", "document", "other")]
    assert texts == ["b a", "b a?", "b a.", "b a"]
    # A pair has no task, and one that the settings name is the same in every call.
    settings = {"chat_template": {"task": "query"}}
    fixed = chat_template(module(TASK, declares_task=True, processing_kwargs=settings), FOLDER, reads_pairs=False)
    assert fixed is not None
    assert fixed.of_query is None
    assert Chat(fixed).of("document").render("a") == "a?"
    pairs = chat_template(module(f"{QUERY} {DOCUMENT} {{{{ task }}}}", declares_task=True), FOLDER, reads_pairs=True)
    assert pairs is not None
    assert pairs.of_query is None
