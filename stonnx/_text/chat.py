"""Texts in the form in which a chat model reads them: a template that the exporter has written out and tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import ChatTemplate
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._text.tokens import Text

_TRIM = "|trim"
# Two contents with different tokens at their ends: equal tokens at the ends of their forms belong to the template.
_FILLERS = ("0", "1 2 3 4")
# The most endings to remember: a caller may have a prompt of its own for each call.
_MOST_ENDINGS = 256


class Rendered(str):
    """A text in the form of a template.

    Attributes:
        samples: Two short texts in the same form, with the same prompt. They show how every such text ends.
    """

    __slots__ = ("samples",)

    samples: tuple[str, ...]

    def __new__(cls, text: str, samples: tuple[str, ...]) -> Rendered:
        self = super().__new__(cls, text)
        self.samples = samples
        return self

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]  # str's own takes the text alone
        return str(self), self.samples


class Chat:
    """The chat template of a route.

    Example:
        >>> chat = Chat(ChatTemplate(pair=("Q: ", "query", " D: ", "document|trim", "?")))
        >>> chat.render(("a", " b "))
        'Q: a D: b?'
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._samples: dict[tuple[bool, str], tuple[str, ...]] = {}
        forms = {"query": template.of_query, "document": template.of_document}
        self._of_tasks = {task: Chat(form) for task, form in forms.items() if form is not None}

    def of(self, task: str | None) -> Chat:
        """The template for texts that are called queries or documents."""
        return self._of_tasks.get(task or "", self)

    @property
    def restores_ending(self) -> bool:
        """Whether a text that is cut gets the tokens back with which every text ends."""
        return self._template.restores_ending

    @property
    def contents(self) -> tuple[str, ...]:
        """The contents of messages that the template reads: ``text`` is a str, ``parts`` a list with a part of text."""
        return self._template.contents

    @property
    def takes_pairs(self) -> bool:
        """Whether a pair of texts has a form."""
        return self._template.pair is not None

    def render(self, text: Text, prompt: str = "") -> Rendered:
        """A text or a pair in its form, with a prompt if that is not empty.

        Raises:
            InvalidInputError: The template has no form for such an input.
            InvalidArgumentError: The template does not take prompts.
        """
        if isinstance(text, Rendered):
            return text
        is_pair = isinstance(text, tuple)
        form = self._form(is_pair, bool(prompt))
        key = (is_pair, prompt)
        samples = self._samples.get(key)
        if samples is None:
            samples = tuple(_fill(form, _contents((each, each) if is_pair else each, prompt)) for each in _FILLERS)
            # A caller may have a prompt of its own for each query.
            self._samples = {key: samples}
        return Rendered(_fill(form, _contents(text, prompt)), samples)

    def _form(self, is_pair: bool, has_prompt: bool) -> tuple[str, ...]:
        template = self._template
        plain = template.pair if is_pair else template.text
        if plain is None:
            wanted, found = ("a text", "a pair of texts") if is_pair else ("a pair of texts", "a text")
            raise InvalidInputError(f"The chat template of this model takes {wanted}, not {found}.")
        if not has_prompt:
            return plain
        prompted = template.pair_with_prompt if is_pair else template.text_with_prompt
        if prompted is None:
            raise InvalidArgumentError("The chat template of this model does not take prompts. Leave the prompt out.")
        return prompted


class Endings:
    """The tokens with which all texts of a form end.

    Args:
        encode: The ids of a whole text.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._known: dict[tuple[str, ...], list[int]] = {}

    def restore(self, ids: npt.NDArray[np.int32], samples: tuple[str, ...]) -> None:
        """Write the ending of a form over the last ids of a text that was cut."""
        ending = self._ending(samples)[-len(ids) :]
        if ending:
            ids[-len(ending) :] = ending

    def _ending(self, samples: tuple[str, ...]) -> list[int]:
        """The tokens at which two samples end alike; none if they do not differ at all."""
        ending = self._known.get(samples)
        if ending is None:
            first, second = map(self._encode, samples)
            count = same_beginning(first[::-1], second[::-1])
            ending = first[len(first) - count :] if count < min(len(first), len(second)) else []
            if len(self._known) >= _MOST_ENDINGS:
                self._known = {}
            self._known[samples] = ending
        return ending


def same_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids with which two texts begin alike.

    Example:
        >>> same_beginning([1, 2, 3], [1, 2, 4, 3])
        2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _contents(text: Text, prompt: str) -> Mapping[str, str]:
    contents = {"text": text} if isinstance(text, str) else {"query": text[0], "document": text[1]}
    return contents | {"prompt": prompt}


def _fill(form: Sequence[str], contents: Mapping[str, str]) -> str:
    parts = list(form)
    for position in range(1, len(form), 2):
        name = form[position].removesuffix(_TRIM)
        parts[position] = contents[name].strip() if form[position].endswith(_TRIM) else contents[name]
    return "".join(parts)
