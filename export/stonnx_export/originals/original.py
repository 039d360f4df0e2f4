"""The original model, which a bundle is made from and compared with, whichever program runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tokenizers

from stonnx._bundle.manifest import ChatTemplate
from stonnx._text.tokens import Text

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal


@dataclass(frozen=True)
class OriginalTokenizer:
    """The tokenizer of a route. ``backend`` belongs to the original: copy it before changing it."""

    backend: tokenizers.Tokenizer
    # The longest text in tokens, or None if texts are never cut.
    max_length: int | None
    pad_token_id: int
    pad_token_type_id: int
    truncation_side: Literal["left", "right"]
    special_token_ids: tuple[int, ...]
    add_special_tokens: bool
    # The form in which a chat model reads its texts.
    chat: ChatTemplate | None = None
    # The ids of unknown words, and of the tokens that fill up queries unless the model names one.
    unknown_token_id: int | None = None
    filling_token_id: int | None = None
    # Whether the original puts padding, and so these tokens, before a text.
    pads_left: bool = False


@dataclass(frozen=True)
class LoadReport:
    """Observations from loading an original, for the manifest."""

    # Classes of the repository's own code that the original ran, because the caller trusts it.
    remote_code: tuple[str, ...] = ()
    # Weights of the checkpoint that its network does not use.
    unused_weights: tuple[str, ...] = ()


def bare_tokenizer(backend: tokenizers.Tokenizer) -> OriginalTokenizer:
    """The tokenizer of a StaticEmbedding, which is tokenizer.json alone. It cuts texts if that file says so.

    sentence-transformers takes its padding away, adds no special tokens, and leaves its truncation as it is.
    """
    cut = backend.truncation or {}
    side: Literal["left", "right"] = "left" if cut.get("direction") == "left" else "right"
    return OriginalTokenizer(backend, cut.get("max_length"), 0, 0, side, (), add_special_tokens=False)


def in_front(prompt: str, text: Text) -> Text:
    """A text after a prompt. In a pair, the first text gets the prompt."""
    return (prompt + text[0], text[1]) if isinstance(text, tuple) else prompt + text


class Original(Protocol):
    """A loaded checkpoint. A route is ``default``, or ``query`` or ``document`` if the model has a Router."""

    @property
    def name(self) -> str:
        """The program and its version, for the fidelity report."""

    @property
    def loaded(self) -> LoadReport:
        """Observations from loading it."""

    def graph(self, route: str) -> ir.Model:
        """The network as a graph: ids and mask enter, token embeddings [B, S, H] or logits leave.

        If modules of the route are code of the repository, the graph contains all modules. Then a vector [B, dim]
        leaves it, and the token embeddings if there are any.
        """

    def images(self) -> ImageOriginal | None:
        """Its half for images; None if it reads texts only.

        Raises:
            UnsupportedError: Its image processor cannot be followed.
        """

    def tokenizer(self, route: str) -> OriginalTokenizer:
        """The tokenizer."""

    def token_ids(self, route: str, text: Text, task: str | None = None, prompt: str = "") -> list[int]:
        """The ids that the original makes of a text with a prompt, cut to its limit.

        ``task`` is ``query`` or ``document`` if the text is encoded as such.
        """

    def outputs(self, route: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """The vectors or logits that the original computes from texts, without prompts: [texts, features].

        It takes one text at a time, so that its own errors on padded texts cannot be mistaken for ours.
        """

    def outputs_as_called(self, task: str | None, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """The results that callers get for texts, with the prompt that the model adds by itself: [texts, features].

        ``task`` is ``query`` for encode_query, ``document`` for encode_document, None for encode or predict. One text
        at a time, as for :meth:`outputs`.
        """

    def results(self, method: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """The results of ``encode``, ``encode_query``, ``encode_document`` or ``predict``: [texts, features].

        Every setting of the model applies: prompts, truncated vectors, active dimensions, the activation of scores.
        """

    def rows(self, task: str | None, texts: Sequence[Text]) -> list[npt.NDArray[np.float32]]:
        """Late interaction: the vectors of each text's tokens that count, [rows, features], as callers get them.

        ``task`` is as for :meth:`outputs_as_called`. One text at a time, before the vectors are pooled. The other
        methods return these of all texts, one below the other; :meth:`results` pools them.
        """

    def outputs_as_loaded(self, route: str, texts: Sequence[Text]) -> tuple[str, npt.NDArray[np.float32]] | None:
        """The original's default precision, and :meth:`outputs` in it.

        None if that precision is float32, as for most checkpoints.
        """

    def facts(self) -> Mapping[str, Any]:
        """Attributes that the bundle's model must have too, as far as the program that runs the original has them."""

    def set_max_length(self, route: str, limit: int) -> None:
        """Cut texts at another length."""
