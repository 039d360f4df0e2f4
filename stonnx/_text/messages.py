"""Chat messages as inputs: ``{"role": ..., "content": ...}``, and conversations, which are lists of them.

The exporter writes a chat template out for the messages that a text, or a pair of texts, with or without a prompt,
becomes in sentence-transformers. Conversations of just these messages have that form; all others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from stonnx._errors import InvalidInputError
from stonnx._text.tokens import Text

_CONTENTS = {"text": "a str", "parts": "a list with one part: [{'type': 'text', 'text': str}]"}
# The roles of a conversation without its system message, and the input that becomes one.
_TEXT, _PAIR = ("user",), ("query", "document")
_ALLOWED = (
    "Allowed are the messages that a text becomes, which have the role 'user', or 'query' and 'document' for a pair, "
    "and a message with the role 'system' before them, which is a prompt"
)


def is_message(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a chat message, as sentence-transformers tells them."""
    return isinstance(value, dict) and "role" in value and "content" in value


def is_conversation(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a value is a list of chat messages, which is one input."""
    return isinstance(value, list) and bool(value) and is_message(value[0])


def text_of(messages: Sequence[Any], contents: Sequence[str], name: str, index: int | None) -> tuple[Text, str | None]:
    """The text or the pair of texts of a conversation, and its system message.

    Args:
        messages: The messages.
        contents: The forms of their contents that the template reads: ``text``, ``parts``.
        name: The input, for error messages.
        index: Its index; None: it is the only one.

    Raises:
        InvalidInputError: A bundle has no form for these messages.
    """
    roles = tuple(message["role"] if is_message(message) else None for message in messages)
    has_system = roles[:1] == ("system",)
    if roles[has_system:] not in (_TEXT, _PAIR):
        raise InvalidInputError(
            f"{name} is a conversation of messages with the roles {list(roles)}. A bundle has its chat template "
            f"written out, without Jinja, for a few conversations. {_ALLOWED}. Put earlier turns into the text.",
            index,
        )
    texts = [_content(message, contents, name, index) for message in messages]
    system = texts.pop(0) if has_system else None
    if system == "":
        raise InvalidInputError(f"{name} has a system message without a text. Leave that message out.", index)
    return texts[0] if len(texts) == 1 else (texts[0], texts[1]), system


def _content(message: Mapping[str, Any], contents: Sequence[str], name: str, index: int | None) -> str:
    """The text of a message, in one of the forms that the template reads."""
    content, others = message["content"], sorted(message.keys() - {"role", "content"}, key=str)
    if others:
        raise InvalidInputError(
            f"{name} has a message with the key {others[0]!r}, which a bundle does not read. Allowed: role, content.",
            index,
        )
    if "text" in contents and isinstance(content, str):
        return content
    if "parts" in contents and isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
            return part["text"]
    allowed = " or ".join(_CONTENTS[each] for each in contents)
    raise InvalidInputError(
        f"{name} has a message whose content is {type(content).__name__} ({content!r:.60}). This model's chat template "
        f"reads {allowed}.",
        index,
    )
