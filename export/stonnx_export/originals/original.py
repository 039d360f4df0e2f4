"""What a bundle is made from and compared with: the original model, whichever program runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tokenizers

from stonnx._text.tokenizer import Text


@dataclass(frozen=True)
class OriginalTokenizer:
    """The tokenizer of a route. ``backend`` belongs to the original: copy it before changing it."""

    backend: tokenizers.Tokenizer
    # The longest text in tokens, or None where texts are never cut.
    max_length: int | None
    pad_token_id: int
    pad_token_type_id: int
    truncation_side: Literal["left", "right"]
    special_token_ids: tuple[int, ...]
    add_special_tokens: bool


@dataclass(frozen=True)
class LoadReport:
    """What loading an original showed, for the manifest."""

    # Classes of the repository's own code that were run, because the caller trusts it.
    remote_code: tuple[str, ...] = ()
    # Weights of the checkpoint that its network has no place for.
    unused_weights: tuple[str, ...] = ()


def bare_tokenizer(backend: tokenizers.Tokenizer) -> OriginalTokenizer:
    """The tokenizer of a StaticEmbedding, which is tokenizer.json alone: it cuts texts if that file does.

    sentence-transformers takes its padding away, adds no special tokens, and leaves its truncation as it is.
    """
    cut = backend.truncation or {}
    side: Literal["left", "right"] = "left" if cut.get("direction") == "left" else "right"
    return OriginalTokenizer(backend, cut.get("max_length"), 0, 0, side, (), add_special_tokens=False)


def in_front(prompt: str, text: Text) -> Text:
    """A text behind a prompt; of a pair, the first one takes it."""
    return (prompt + text[0], text[1]) if isinstance(text, tuple) else prompt + text


class Original(Protocol):
    """A loaded checkpoint. A route is ``default``, or ``query`` or ``document`` where the model has a Router."""

    @property
    def name(self) -> str:
        """The program and its version, for the fidelity report."""

    @property
    def loaded(self) -> LoadReport:
        """What loading it showed."""

    def graph(self, route: str) -> ir.Model:
        """The network as a graph: ids and mask in, token embeddings [B, S, H] or logits out.

        If modules of the route are code of the repository, all of them are in it: a vector [B, dim] out, and the token
        embeddings if there are any.
        """

    def tokenizer(self, route: str) -> OriginalTokenizer:
        """The tokenizer."""

    def token_ids(self, route: str, text: Text, task: str | None = None) -> list[int]:
        """The ids that the original makes of a text, cut to its limit.

        ``task`` is ``query`` or ``document`` where the text is encoded as such.
        """

    def outputs(self, route: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """What the original makes of texts, without prompts: vectors or logits, [texts, features].

        It takes them one at a time, so that nothing that it does to padded texts can be mistaken for ours.
        """

    def outputs_as_called(self, task: str | None, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """What callers get for texts, with the prompt that the model puts in front by itself: [texts, features].

        ``task`` is ``query`` for encode_query, ``document`` for encode_document, None for encode or predict. One text
        at a time, as for :meth:`outputs`.
        """

    def results(self, method: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """What callers of ``encode``, ``encode_query``, ``encode_document`` or ``predict`` get: [texts, features].

        With every setting of the model: prompts, truncated vectors, active dimensions, the activation of scores.
        """

    def outputs_as_loaded(self, route: str, texts: Sequence[Text]) -> tuple[str, npt.NDArray[np.float32]] | None:
        """What :meth:`outputs` are in the precision that the original has by default, and that precision.

        None if it is float32, as it is for most checkpoints.
        """

    def facts(self) -> Mapping[str, Any]:
        """Attributes of the model that the bundle's must equal, as far as the original is a program that has them."""

    def set_max_length(self, route: str, limit: int) -> None:
        """Cut texts at another length."""
