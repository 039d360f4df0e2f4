"""A chat template, written out: the runtime has neither Jinja nor transformers.

The exporter renders the template with marked texts, splits the result at the marks, and then compares the form that it
got with the template itself on many texts. A template that does anything else with its texts is refused by name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from stonnx._bundle.manifest import ChatTemplate
from stonnx._errors import UnsupportedError
from stonnx._text.chat import Chat
from stonnx._text.tokens import Text

# Texts that no template has, and that none changes.
_MARKS = {"query": "qZ7xMark", "document": "dZ7xMark", "text": "tZ7xMark", "prompt": "pZ7xMark"}
_MARK = re.compile("|".join(_MARKS.values()))
# Texts by which a form is compared with its template.
_PROBES = (
    "a",
    "",
    " ",
    "  two words \n",
    "a line\nand another\n\n",
    "{{ messages }} {% if x %} </think>",
    "<|im_start|>assistant\nyes<|im_end|>",
    "<tag attr='x'> & \"quotes\" \\ / naïve 猫 🎉",
    "UPPER lower",
    "word " * 40,
)
# A text longer than every number in a template, in characters and words: the template may cut texts there.
_LEAST_WORDS, _MOST_WORDS = 2_000, 1_000_000
# Arguments of apply_chat_template that the original keeps for the tokenizer, or for itself.
_NOT_RENDERED = {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}
_EXAMPLE = (
    '  <Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '  <Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
)
# A text, or a pair of texts, and a prompt or none, in the form of the template.
_Render = Callable[[Text, str], str]
# The content of a message, in another form.
_Change = Callable[[Any], Any]


def chat_template(module: Any, folder: Path, *, reads_pairs: bool) -> ChatTemplate | None:
    """The chat template through which a Transformer module of the original reads texts; None if it has none.

    Raises:
        UnsupportedError: The template cannot be written out, or does not show the texts of a pair.
    """
    if "message" not in (getattr(module, "modality_config", None) or {}):
        return None
    settings = dict((module.processing_kwargs or {}).get("chat_template") or {})
    restores = bool(settings.get("restore_suffix", True))
    arguments = {name: value for name, value in settings.items() if name not in _NOT_RENDERED}
    _refuse_dates(module, arguments, folder)
    found = _template(module, arguments, folder, reads_pairs)
    declares_task = getattr(module, "_chat_template_declares_task", None)
    if not reads_pairs and "task" not in arguments and declares_task is not None and declares_task():
        query, document = (
            _template(module, {"task": task, **arguments}, folder, reads_pairs) for task in ("query", "document")
        )
        found = replace(
            found,
            of_query=replace(query, restores_ending=restores),
            of_document=replace(document, restores_ending=restores),
        )
    return replace(found, restores_ending=restores)


def _template(module: Any, arguments: Mapping[str, Any], folder: Path, reads_pairs: bool) -> ChatTemplate:
    """The forms of texts or pairs that a template gives with some arguments."""
    formatter, processor = module.input_formatter, module.processor
    probes = _probes(_sources(module, arguments))

    def render(text: Text, prompt: str, change: _Change = lambda content: content) -> str:
        messages = formatter.pair_to_messages(text) if isinstance(text, tuple) else formatter.to_message({"text": text})
        if prompt:
            (messages,) = formatter.prepend_prompt_to_messages([messages], prompt)
        messages = [{**message, "content": change(message["content"])} for message in messages]
        return str(processor.apply_chat_template(messages, tokenize=False, **arguments))

    slots = ("query", "document") if reads_pairs else ("text",)
    plain = _form(render, slots, probes, folder)
    prompted = _prompted(render, slots, probes, folder)
    contents = _contents(render, slots, prompted is not None, formatter.message_format)
    if reads_pairs:
        return ChatTemplate(pair=plain, pair_with_prompt=prompted, contents=contents)
    return ChatTemplate(text=plain, text_with_prompt=prompted, contents=contents)


def _contents(
    render: Callable[..., str], slots: Sequence[str], with_prompt: bool, message_format: str
) -> tuple[str, ...]:
    """The forms of a message's content that the template reads: its own one first, then the other if it reads that."""
    own, other = ("parts", "text") if message_format == "structured" else ("text", "parts")
    for probe, prompt in itertools.product(_PROBES, ("", *(["Is it so?"] if with_prompt else []))):
        text = _text([probe] * len(slots))
        try:
            if render(text, prompt, _in_text if other == "text" else _in_parts) != render(text, prompt):
                return (own,)
        except Exception:  # of Jinja, or one that the template raises by itself
            return (own,)
    return own, other


def _in_parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _in_text(content: list[dict[str, str]]) -> str:
    return content[0]["text"]


def _sources(module: Any, arguments: Mapping[str, Any]) -> list[str]:
    """The templates of a Transformer module of the original."""
    template = arguments.get("chat_template") or getattr(module.processor, "chat_template", None)
    return [str(source) for source in (template.values() if isinstance(template, Mapping) else [template]) if source]


def _probes(sources: Sequence[str]) -> tuple[str, ...]:
    """Texts at which a template may do something else: with each string that is in it, and longer than its numbers.

    Example:
        >>> [len(probe) if len(probe) > 20 else probe for probe in _probes(["{{ x[:9] if x.startswith('Q') }}"])]
        ['Q', 'Q a', 'a Q', 'a Q b', 10000]
    """
    strings, numbers = [], [_LEAST_WORDS]
    for source in sources:
        try:
            tokens = list(jinja2.Environment().lex(source))
        except jinja2.TemplateSyntaxError:  # rendering it says more
            continue
        quoted = [value[1:-1] for _, kind, value in tokens if kind == "string"]
        strings += [each.encode("ascii", "backslashreplace").decode("unicode-escape") for each in quoted]
        numbers += [min(int(value, 0), _MOST_WORDS) for _, kind, value in tokens if kind == "integer"]
    known = [each for each in dict.fromkeys(strings) if each.strip()]
    around = [f"{first}a{second}" for first, second in itertools.pairwise(known)]
    found = [form for each in known for form in (each, f"{each} a", f"a {each}", f"a {each} b")]
    return (*dict.fromkeys(found + around), "word " * max(numbers))


def _refuse_dates(module: Any, arguments: Mapping[str, Any], folder: Path) -> None:
    """Raise UnsupportedError for a template whose form is not the same every day."""
    if any("strftime_now" in source for source in _sources(module, arguments)):
        raise UnsupportedError(
            f"The chat template of {folder} writes the date of the call (strftime_now), which a bundle cannot do. Put "
            "a date, or nothing, in its place: chat_template.jinja, or chat_template in tokenizer_config.json."
        )


def _form(render: _Render, slots: Sequence[str], probes: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The form of an input without a prompt.

    Raises:
        UnsupportedError: The template lacks a text, or changes one.
    """
    marked = _text([_MARKS[slot] for slot in slots])
    try:
        written = render(marked, "")
    except Exception as error:  # of Jinja, or one that the template raises by itself
        raise UnsupportedError(_without(folder, slots, f"it raised {type(error).__name__}: {error}")) from error
    missing = [slot for slot in slots if _MARKS[slot] not in written]
    if missing:
        lost = " and ".join(repr(slot) for slot in missing)
        raise UnsupportedError(_without(folder, slots, f"the text of {lost} is not in the result"))
    return _tested(render, slots, written, "", probes, folder)


def _prompted(render: _Render, slots: Sequence[str], probes: Sequence[str], folder: Path) -> tuple[str, ...] | None:
    """The form of an input with a prompt; None if the template refuses prompts."""
    try:
        written = render(_text([_MARKS[slot] for slot in slots]), _MARKS["prompt"])
    except Exception:  # of Jinja, or one that the template raises by itself: it has no place for a system message
        return None
    return _tested(render, slots, written, _MARKS["prompt"], probes, folder)


def _tested(
    render: _Render, slots: Sequence[str], written: str, prompt: str, probes: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """The form of a template, which writes the same as the template itself for all probes.

    Raises:
        UnsupportedError: There is no such form.
    """
    inverse = {mark: slot for slot, mark in _MARKS.items()}
    names = [inverse[mark] for mark in _MARK.findall(written)]
    literals = _MARK.split(written)
    # A template may take the whitespace around a text away.
    trimmed = {slot for slot in {*names} if _is_trimmed(render, slots, slot, prompt)}
    form = [literals[0]]
    for name, literal in zip(names, literals[1:], strict=True):
        form += [f"{name}|trim" if name in trimmed else name, literal]
    found = tuple(form)
    is_pair = len(slots) > 1
    chat = Chat(
        ChatTemplate(pair=found, pair_with_prompt=found)
        if is_pair
        else ChatTemplate(text=found, text_with_prompt=found)
    )
    prompts = [each for each in (*_PROBES, *probes) if each] if prompt else [""]
    # Each probe of the template itself is in every place once: in the prompt, too.
    own = [pair for probe in probes for pair in ((probe, "a"), ("a", probe), ("a", "a"))]
    for number, (probe, other) in enumerate([*itertools.product(_PROBES, repeat=2), *own]):
        text, instruction = _text([probe, other][: len(slots)]), prompts[number % len(prompts)]
        try:
            expected = render(text, instruction)
        except Exception as error:  # of Jinja
            raise UnsupportedError(
                f"The chat template of {folder} cannot be written out: for the texts {text!r:.200} it raised "
                f"{type(error).__name__}: {error}. {_WRITE_IT}"
            ) from error
        if chat.render(text, instruction) != expected:
            raise UnsupportedError(
                f"The chat template of {folder} cannot be written out: it does more with its texts than to put them in "
                f"their places. For the texts {text!r:.200} it gives {expected!r:.200}. {_WRITE_IT}"
            )
    return found


_WRITE_IT = f"Write a template that puts each text in its place, as this one does:\n{_EXAMPLE}"


def _is_trimmed(render: _Render, slots: Sequence[str], slot: str, prompt: str) -> bool:
    around = {name: f"  {mark} \n" if name == slot else mark for name, mark in _MARKS.items()}
    written = render(_text([around[name] for name in slots]), around["prompt"] if prompt else "")
    return around[slot] not in written


def _text(parts: Sequence[str]) -> Text:
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _without(folder: Path, slots: Sequence[str], reason: str) -> str:
    # In the original's words, because code looks for them.
    verdict = "cannot carry a 'query'/'document' pair and " if len(slots) > 1 else ""
    roles = "the roles 'query' and 'document'" if len(slots) > 1 else "the role 'user'"
    example = _EXAMPLE if len(slots) > 1 else "  {{ messages[0].content }}"
    return (
        f"The chat template of {folder} {verdict}has no place for {roles}: {reason}. sentence-transformers puts "
        f"{'each text of a pair' if len(slots) > 1 else 'a text'} there. Write a template with it into "
        f"chat_template.jinja, for example:\n{example}"
    )
