"""Inputs of ``encode``: one text or many, checked, and read as in sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np

from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._text.chat import Chat
from stonnx._text.messages import is_conversation, is_message, text_of
from stonnx._text.modalities import KINDS
from stonnx._text.tokens import Text

_ALLOWED = "Allowed are str, a pair of str, or {'text': str}"

# The kinds of input that a dictionary can name.
_KINDS = KINDS | {"message"}

# None, and pandas' own values for it other than NaN; recognised by name, so that pandas need not be imported.
_MISSING = ("NoneType", "NAType", "NaTType")


def parse_inputs(inputs: Any, prompt: str | None = None, chat: Chat | None = None) -> tuple[list[Text], bool]:
    """The texts of a call with the prompt before each, and whether the call was for a single text.

    A list, a tuple and an array of strings are a batch. Everything else is one input. Within a batch, a pair of strings
    is one text pair, and the prompt goes before its first text. A chat template has a place of its own for the prompt.
    With one, a chat message, and a list that begins with one, are an input too.

    Raises:
        InvalidInputError: An input or the prompt is not a text, or not valid Unicode; the error has the input's index.
        InvalidArgumentError: The chat template does not take prompts.

    Example:
        >>> parse_inputs(["a", ("b", "c")], prompt="query: ")
        (['query: a', ('query: b', 'c')], False)
    """
    single = not is_batch(inputs)
    items = [inputs] if single else (inputs.tolist() if isinstance(inputs, np.ndarray) else inputs)
    if prompt is None:
        prompt = ""
    elif not isinstance(prompt, str):
        raise InvalidInputError(f"The prompt is not a text but {_describe(prompt)}. Allowed are str and None.")
    _check_unicode(prompt, "The prompt")
    before = "" if chat is not None else prompt
    texts: list[Text] = []
    prompts: list[str] = []
    for index, item in enumerate(items):
        where = None if single else index
        if isinstance(item, dict) and item.keys() == {"text"}:
            item = item["text"]
        prompts.append(prompt)
        messages = [item] if is_message(item) else item if is_conversation(item) else []
        if chat is not None and messages:
            item, system = text_of(messages, chat.contents, _name(where), where)
            if system is not None and prompt:
                raise InvalidInputError(
                    f"{_name(where)} has a system message, and the call has a prompt, which becomes one too. Leave out "
                    "one of them.",
                    where,
                )
            if system is not None:
                prompts[-1] = _check_unicode(system, where)
        if isinstance(item, str):
            texts.append(before + _check_unicode(item, where))
        elif isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            texts.append((before + _check_unicode(item[0], where), _check_unicode(item[1], where)))
        else:
            raise _not_text(item, where)
    if chat is None:
        return texts, single
    return [chat.render(text, each) for text, each in zip(texts, prompts, strict=True)], single


def is_batch(inputs: Any) -> bool:
    """Whether an argument holds many inputs rather than one."""
    if is_conversation(inputs):
        return False
    if isinstance(inputs, np.ndarray):
        return inputs.ndim >= 1 and inputs.dtype.kind in ("U", "O")
    # `datasets.Column` is a sequence of its own kind; recognised by name, so that datasets need not be imported.
    return isinstance(inputs, list | tuple) or type(inputs).__module__.startswith("datasets.")


def take_task(inputs: Any) -> tuple[Any, str | None]:
    """The inputs of a call, and their task if they name it: ``{"query": text}``, as was usual for models with routes.

    Raises:
        InvalidArgumentError: They name several tasks.

    Example:
        >>> take_task([{"query": "a"}, {"query": "b"}])
        (['a', 'b'], 'query')
        >>> take_task(["a", "b"])
        (['a', 'b'], None)
    """
    items = [inputs] if isinstance(inputs, dict) else inputs if isinstance(inputs, list | tuple) else []
    if not all(isinstance(item, dict) and not is_message(item) for item in items):
        return inputs, None
    names = {name for item in items for name in item}
    if not names or names & _KINDS:
        return inputs, None
    if len(names) > 1:
        raise InvalidArgumentError(
            "You cannot pass a list of dictionaries with different task types. Pass the texts of each task in a call "
            "of their own, with encode_query, encode_document or task=..."
        )
    (task,) = names
    return (inputs[task] if isinstance(inputs, dict) else [item[task] for item in items]), task


def _not_text(item: Any, index: int | None) -> InvalidInputError:
    if type(item).__module__.startswith("PIL.") or (isinstance(item, dict) and "image" in item):
        remedy = (
            "SentenceTransformer.encode reads images, with the bundle of a model that reads both, as clip-ViT-B-32."
        )
    elif isinstance(item, bytes | bytearray):
        remedy = "Decode bytes first: data.decode('utf-8')."
    elif type(item).__name__ in _MISSING or (isinstance(item, float | np.floating) and np.isnan(item)):
        remedy = "Missing values have to be dropped or replaced first, for example by ''."
    elif is_message(item) or is_conversation(item):
        remedy = "It is a chat message, and this model has no chat template: pass the text of it, its 'content'."
    elif isinstance(item, dict):
        remedy = "Pass only the text of it."
    elif index is None and hasattr(item, "__iter__"):
        remedy = "To encode many texts, pass a list."
    elif isinstance(item, list | tuple):
        remedy = "To encode its parts each by itself, put them into the list directly."
    else:
        remedy = "Convert it first: str(value)."
    return InvalidInputError(f"{_name(index)} is not a text but {_describe(item)}. {_ALLOWED}. {remedy}", index)


def _check_unicode(text: str, where: int | str | None) -> str:
    """The text itself, if it can be encoded. tokenizers would refuse a lone surrogate without naming its place."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{_name(where)} is not valid Unicode: {text[error.start]!r} at character {error.start} is half of a "
                "surrogate pair. Replace such characters first: text.encode('utf-8', 'replace').decode()",
                where if isinstance(where, int) else None,
            ) from None
    return text


def _name(where: int | str | None) -> str:
    return f"Input {where}" if isinstance(where, int) else where or "The input"


def _describe(item: Any) -> str:
    return "None" if item is None else f"{type(item).__name__} ({item!r:.60})"


def parse_pairs(inputs: Any, prompt: str | None = None, chat: Chat | None = None) -> tuple[list[Text], bool]:
    """The pairs of a call, with the prompt before each first text, and whether the call was for a single pair.

    A chat template makes one text of each pair, and has a place of its own for the prompt.

    A list or tuple is a batch if its first item is a list or tuple, or if it is empty; an array of strings is a batch
    if it has two dimensions. Everything else is one pair.

    Raises:
        InvalidInputError: An input is not a pair of texts, or not valid Unicode; the error has its index.
        InvalidArgumentError: The chat template does not take prompts.

    Example:
        >>> parse_pairs([("a", "b"), ["c", "d"]])
        ([('a', 'b'), ('c', 'd')], False)
        >>> parse_pairs(("a", "b"), prompt="query: ")
        ([('query: a', 'b')], True)
    """
    single = not is_pair_batch(inputs)
    items = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    items = [items] if single else list(items)
    for index, item in enumerate(items):
        if chat is not None and is_conversation(item):
            continue
        is_pair = isinstance(item, list | tuple) and len(item) == 2
        if not is_pair or not all(isinstance(part, str) for part in item):
            raise _no_pair(item, None if single else index)
    # A conversation alone is one input there, too, and its errors have no index.
    return parse_inputs(items[0] if single and is_conversation(items[0]) else items, prompt, chat)[0], single


def is_pair_batch(inputs: Any) -> bool:
    """Whether an argument holds many pairs rather than one."""
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind in ("U", "O") and (inputs.size == 0 or inputs.ndim > 1)
    return _is_list(inputs) and (len(inputs) == 0 or _is_list(inputs[0]))


def _is_list(value: Any) -> bool:
    # `datasets.Column` is a sequence of its own kind; recognised by name, so that datasets need not be imported.
    return isinstance(value, list | tuple) or type(value).__module__.startswith("datasets.")


def _no_pair(item: Any, index: int | None) -> InvalidInputError:
    where = "The input" if index is None else f"Input {index}"
    if not isinstance(item, list | tuple):
        found = f"{type(item).__name__} ({item!r:.60})"
    elif len(item) != 2:
        found = f"a {type(item).__name__} of {len(item)} ({item!r:.60})"
    else:
        part = 0 if not isinstance(item[0], str) else 1
        found = f"has {type(item[part]).__name__} ({item[part]!r:.60}) as its {('first', 'second')[part]} text"
        found = f"a {type(item).__name__} that {found}"
    remedy = "Pass (query, document), or for many pairs a list of them: list(zip(queries, documents))."
    return InvalidInputError(f"{where} is not a pair of texts but {found}. Allowed is a pair of str. {remedy}", index)
