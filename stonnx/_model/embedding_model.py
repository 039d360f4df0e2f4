"""The common part of models that give vectors: similarity, and the prompts of queries and documents."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

from stonnx._arguments import check_choice, check_texts
from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._errors import InvalidInputError, TextTooLongError, UnsupportedError
from stonnx._limits import Limits
from stonnx._model.model import Model
from stonnx._model.old_arguments import accept_old_arguments
from stonnx._text.inputs import take_task
from stonnx._text.messages import is_message

_Method = TypeVar("_Method", bound=Callable[..., Any])

# Prompt names tried for each task, in order; the first one that the model defines is used.
_PROMPTS_OF_TASK = {"query": ("query",), "document": ("document", "passage", "corpus")}


# The docstrings of `encode_query` and `encode_document`.
_SUMMARIES = {
    "query": ":meth:`encode` for search queries: with the prompt named ``query``, unless another is given.",
    "document": ":meth:`encode` for documents: with the first prompt named ``document``, ``passage`` or ``corpus``.",
}


def encode_for(
    task: Literal["query", "document"], encode: _Method, more: str = "", renamed: Mapping[str, str] | None = None
) -> _Method:
    """The method ``encode_query`` or ``encode_document``, with the arguments of the method ``encode``.

    ``more`` is what its docstring says beside the prompt, ``renamed`` the new name of each old keyword.
    """
    signature = inspect.signature(encode)
    # The method says which task it is.
    kept = [parameter for name, parameter in signature.parameters.items() if name != "task"]
    further = [each.name for each in kept if each.kind is each.POSITIONAL_OR_KEYWORD][4:]

    @functools.wraps(cast(Callable[..., Any], encode))
    def method(
        self: EmbeddingModel,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        name = self._prompt_name(task, prompt_name, prompt)
        if len(arguments) > len(further):
            raise TypeError(f"encode_{task} takes {len(further) + 3} arguments by position, not {len(arguments) + 3}.")
        # By keyword, as in the original: a subclass may have an encode of its own.
        given = dict(zip(further, arguments, strict=False))
        return self.encode(inputs=inputs, prompt_name=name, prompt=prompt, task=task, **given, **options)

    method.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    method.__name__ = f"encode_{task}"
    method.__qualname__ = method.__qualname__.replace("encode", method.__name__)
    method.__doc__ = f"{_SUMMARIES[task]}\n\n{more}" if more else _SUMMARIES[task]
    return cast(_Method, accept_old_arguments(renamed=renamed)(method))


class EmbeddingModel(Model):
    """A :class:`Model` whose results can be compared. Use one of its subclasses."""

    # The similarities that fit the model's vectors.
    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar[tuple[str, ...]] = ("cosine", "dot", "euclidean", "manhattan")
    encode: Callable[..., Any]
    encode_query: Callable[..., Any]
    encode_document: Callable[..., Any]

    def encode_stream(
        self, inputs: Iterable[Any], *, task: Literal["query", "document"] | None = None, **options: Any
    ) -> Iterator[Any]:
        """Vectors of any number of texts, in constant memory.

        Args:
            inputs: Texts, from a list, a file, a generator.
            task: Encode them with :meth:`encode_query` or :meth:`encode_document` instead of :meth:`encode`.
            **options: Further arguments of that method. ``precision="int8"`` and ``"uint8"`` are refused: their ranges
                are those of all texts.

        Returns:
            An iterator over what the method returns for some thousand texts at a time, in their order.

        Raises:
            InvalidInputError, TextTooLongError: For one of the texts; ``.index`` counts from the first of the stream.

        Example:
            >>> with open("texts.txt") as lines:  # doctest: +SKIP
            ...     for embeddings in model.encode_stream(line.rstrip() for line in lines):
            ...         index.add(embeddings)
        """
        methods = {None: self.encode, "query": self.encode_query, "document": self.encode_document}
        if task is not None:
            check_choice("task", task, _PROMPTS_OF_TASK)
        check_texts("inputs", inputs)
        precision = options.get("precision")
        if precision in ("int8", "uint8"):
            raise UnsupportedError(
                f"precision={precision!r} takes its ranges from all texts, and a stream never has all of them. Encode "
                "in float32, and use stonnx.util.quantize_embeddings with ranges of your own."
            )
        return self._encode_windows(methods[task], inputs, options)

    def _encode_windows(
        self, encode: Callable[..., Any], inputs: Iterable[Any], options: dict[str, Any]
    ) -> Iterator[Any]:
        start = 0
        for window in _windows(inputs, self._limits):
            try:
                vectors = encode(window, **options)
            except TextTooLongError as error:
                error.shift(start)
                raise
            except InvalidInputError as error:
                if error.index is not None and start:
                    error.add_note(f"Its index is counted from input {start:,} of the stream.")
                    error.index += start
                raise
            yield vectors
            start += len(window)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity of every vector of one collection to every vector of another, by :attr:`similarity_fn_name`.

        Args:
            embeddings1: [n, dim] or [dim], dense or sparse.
            embeddings2: [m, dim] or [dim], dense or sparse.

        Returns:
            float32 array [n, m]; a torch tensor if one was passed.
        """
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_fn(self.similarity_fn_name)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity of ``embeddings1[i]`` to ``embeddings2[i]``: float32 array [n]."""
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_pairwise_fn(self.similarity_fn_name)(embeddings1, embeddings2)

    @property
    def similarity_fn_name(self) -> str:
        """One of :attr:`SUPPORTED_SIMILARITY_FN_NAMES`."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        name = self._row.similarity if value is None else getattr(value, "value", value)
        # The usual reason is the function of the other kind of model.
        advice = "Use MultiVectorEncoder for MaxSim." if str(name).endswith("maxsim") else ""
        check_choice("similarity_fn_name", name, self.SUPPORTED_SIMILARITY_FN_NAMES, advice=advice)
        self._similarity_fn_name = str(name)

    def _take_task(self, inputs: Any, task: str | None, options: dict[str, Any]) -> tuple[Any, str | None]:
        """The inputs and the task of a call. If the model has routes, inputs may name the task themselves.

        ``modality`` is taken from the further options of the call. A route may be chosen by it in the original, and the
        routes of a bundle are those of texts.
        """
        routed = DEFAULT_ROUTE not in self._engine.named_routes
        if options.get("modality") == "text":
            del options["modality"]
        elif "modality" in options and routed:
            raise UnsupportedError(
                f"modality={options['modality']!r} asks for another route than texts have, and a bundle has those of "
                "texts. Leave modality out, or pass 'text'."
            )
        return take_task(inputs) if task is None and routed else (inputs, task)

    def _prompt_name(self, task: str | None, prompt_name: str | None, prompt: str | None) -> str | None:
        """The prompt of a query or a document if the caller does not name one."""
        if task is None or prompt_name is not None or prompt is not None:
            return prompt_name
        return next((name for name in _PROMPTS_OF_TASK[task] if name in self.prompts), None)


def _windows(inputs: Iterable[Any], limits: Limits) -> Iterator[list[Any]]:
    """Consecutive inputs, in lists of as many as the model encodes at a time."""
    window: list[Any] = []
    characters = 0
    for item in inputs:
        # A list that begins with a message would be one input.
        window.append([item] if is_message(item) else item)
        # Encoding finds an input that is not a text.
        parts = item if isinstance(item, tuple | list) else (item,)
        characters += sum(len(part) for part in parts if isinstance(part, str))
        if len(window) >= limits.stream_texts or characters >= limits.stream_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
