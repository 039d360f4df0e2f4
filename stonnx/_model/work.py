"""What is to be computed of texts, as data: for programs that plan the runs of many calls themselves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stonnx._engine.route import LoadedRoute
from stonnx._errors import InvalidArgumentError
from stonnx._results.sparse import SparseRows
from stonnx._text.inputs import parse_inputs
from stonnx._text.tokenizer import Text, TokenIds


@dataclass(frozen=True)
class SparseRow:
    """One sparse vector: where its values are, ascending int32 [values], and what they are, float32 [values]."""

    columns: Any
    values: Any


@dataclass(frozen=True, eq=False)
class Work:
    """One thing that a model computes of texts. ``tokenize`` and ``run`` may be called from any thread.

    Attributes:
        route: The tokenizer and the graph.
        output: The graph's output that is wanted.
        prompt: What is put in front of each text.
        prompt_length: Tokens of it that the pooling leaves out.
        max_active_dims: Sparse vectors: how many values of each are kept.
        group: Equal for work whose texts may go in one run.
    """

    route: LoadedRoute
    output: str
    prompt: str
    prompt_length: int
    max_active_dims: int | None
    group: Hashable

    def texts(self, inputs: Sequence[Any]) -> list[Text]:
        """Inputs, checked, with the prompt in front.

        Raises:
            InvalidInputError: An input is not a text; ``.index`` says which.
        """
        return parse_inputs(list(inputs), self.prompt)[0]

    def from_ids(self, ids: Sequence[int]) -> TokenIds:
        """A text that is given as ids of this model's tokenizer.

        Raises:
            InvalidArgumentError: They are not, or more than the model reads, or a prompt belongs before them.
        """
        if self.prompt:
            raise InvalidArgumentError(f"The prompt {self.prompt!r} cannot be put in front of token ids. Send texts.")
        return self.route.tokenizer.from_ids(ids)

    def effort(self, text: Text | TokenIds) -> int:
        """Characters of a text that are tokenized; of ids none."""
        return 0 if isinstance(text, TokenIds) else self.route.tokenizer.effort(text)

    def tokenize(self, texts: Sequence[Text | TokenIds]) -> list[TokenIds]:
        """Token ids of texts, cut to what the model reads."""
        given = [text for text in texts if isinstance(text, TokenIds)]
        if given:
            return given if len(given) == len(texts) else [self.tokenize([text])[0] for text in texts]
        return self.route.tokenizer.ids(texts)  # type: ignore[arg-type]  # none of them is TokenIds

    @property
    def limits(self) -> tuple[int, int]:
        """The most tokens of a run, padding included, and the most texts."""
        return self.route.run_limits([self.output])

    def run(self, texts: Sequence[TokenIds], *, alone: bool) -> list[Any]:
        """The result of each text: a vector or scores [features], token vectors [tokens, features], a SparseRow.

        Raises:
            RunError: The run failed.
        """
        (array,) = self.route.run(texts, [self.output], prompt_length=self.prompt_length, alone=alone)
        if self.output == "token_embeddings":
            return [row[: len(text)] for row, text in zip(array, texts, strict=True)]
        if self.output != "sparse_embedding":
            return list(array)
        rows = SparseRows.of(array).strongest(self.max_active_dims)
        ends = np.cumsum(rows.counts)
        return [
            SparseRow(rows.columns[end - count : end], rows.values[end - count : end])
            for count, end in zip(rows.counts, ends, strict=True)
        ]
