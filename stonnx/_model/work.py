"""A computation on texts, as data: for programs that plan the runs of many calls themselves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stonnx._engine.route import LoadedRoute
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._images.inputs import is_data_uri
from stonnx._results.activations import Activation, activated
from stonnx._results.sparse import SparseRows
from stonnx._results.token_rows import Finish, Ragged
from stonnx._text.inputs import parse_inputs
from stonnx._text.tokenizer import Tokenizer
from stonnx._text.tokens import Text, TokenIds


@dataclass(frozen=True)
class SparseRow:
    """One sparse vector: the positions of its values, ascending int32 [values], and the values, float32 [values]."""

    columns: Any
    values: Any


@dataclass(frozen=True, eq=False)
class Work:
    """One kind of result that a model computes of texts. Any thread may call ``tokenize`` and ``run``.

    Attributes:
        route: The tokenizer and the graph.
        output: The wanted output of the graph.
        prompt: The text before each input.
        prompt_length: Tokens of the prompt that the pooling leaves out.
        max_active_dims: Sparse vectors: the number of values to keep of each.
        task: ``query`` or ``document``, if the texts are called that.
        row_mask: The output that says which tokens' vectors are the result, if a text has one for each of them.
        finish: What is done to these vectors.
        group: Two works whose texts may go in one run have an equal group.
        reads_images: Whether the model reads images too. A work is for texts, and refuses images.
        activation: The function that makes scores of the output. None: the output is the result.
    """

    route: LoadedRoute
    output: str
    prompt: str
    prompt_length: int
    max_active_dims: int | None
    task: str | None
    row_mask: str | None
    finish: Finish
    group: Hashable
    reads_images: bool = False
    activation: Activation | None = None

    def texts(self, inputs: Sequence[Any]) -> list[Text]:
        """Inputs, checked, with the prompt before each.

        Raises:
            InvalidInputError: An input is not a text; ``.index`` says which.
        """
        items = list(inputs)
        if self.reads_images:
            for index, item in enumerate(items):
                if isinstance(item, str) and is_data_uri(item):
                    raise InvalidInputError(
                        f"Input {index} is an image as a data URI, and only texts are read here. Encode images with "
                        "SentenceTransformer.encode in Python.",
                        index,
                    )
        chat = self.route.tokenizer.chat
        return parse_inputs(items, self.prompt, None if chat is None else chat.of(self.task))[0]

    def from_ids(self, ids: Sequence[int]) -> TokenIds:
        """A text as ids of this model's tokenizer.

        Raises:
            InvalidArgumentError: An id is not one of the tokenizer's, the model does not read so many, or a prompt
                belongs before them.
        """
        if self.prompt:
            raise InvalidArgumentError(f"The prompt {self.prompt!r} cannot be put before token ids. Send texts.")
        return self._tokenizer.from_ids(ids)

    def effort(self, text: Text | TokenIds) -> int:
        """The number of characters to tokenize; 0 for a text that is given as ids."""
        return 0 if isinstance(text, TokenIds) else self._tokenizer.effort(text)

    def tokenize(self, texts: Sequence[Text | TokenIds]) -> list[TokenIds]:
        """Token ids of texts, cut to the length that the model reads."""
        given = [text for text in texts if isinstance(text, TokenIds)]
        if given:
            return given if len(given) == len(texts) else [self.tokenize([text])[0] for text in texts]
        return self._tokenizer.ids(texts)  # type: ignore[arg-type]  # none of them is TokenIds

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.route.tokenizer_of(self.task)

    @property
    def limits(self) -> tuple[int, int]:
        """The most tokens of a run, padding included, and the most texts."""
        return self.route.run_limits([self.output])

    def run(self, texts: Sequence[TokenIds], *, alone: bool) -> list[Any]:
        """The result of each text: a vector or scores [features], token vectors [tokens, features], a SparseRow.

        Raises:
            RunError: The run failed.
        """
        outputs = [self.output] if self.row_mask is None else [self.output, self.row_mask]
        found = self.route.run(texts, outputs, prompt_length=self.prompt_length, alone=alone, task=self.task)
        if self.row_mask is not None:
            return [self.finish(rows, self.task) for rows in Ragged.of(*found).split()]
        (array,) = found
        if self.output == "token_embeddings":
            return [row[: len(text)] for row, text in zip(array, texts, strict=True)]
        if self.output != "sparse_embedding":
            return list(activated(array, self.activation))
        rows = SparseRows.of(array).strongest(self.max_active_dims)
        ends = np.cumsum(rows.counts)
        return [
            SparseRow(rows.columns[end - count : end], rows.values[end - count : end])
            for count, end in zip(rows.counts, ends, strict=True)
        ]
