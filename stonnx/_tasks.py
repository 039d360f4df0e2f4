"""The tasks as data: one row for each, with everything that the code asks about a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

# The name of a task: a key of TASKS.
Task: TypeAlias = str


@dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes:
        name: Its name in manifests and arguments.
        class_name: The class that runs it, here and in sentence-transformers.
        organization: The Hub organization that a bare model name belongs to.
        output: The output of the graph that is compared with the original.
        result: The output that callers get, if it is another one.
        token_output: The output with a vector for each token, if the graph has one.
        reads_pairs: Whether an input is a pair of texts.
        similarity: How vectors are compared, unless the model says something else. None: the result is not a vector
            but a score for each label.
    """

    name: Task
    class_name: str
    organization: str
    output: str
    result: str
    token_output: str | None = None
    reads_pairs: bool = False
    similarity: str | None = None

    @property
    def gives_labels(self) -> bool:
        """Whether the result is a score for each label, rather than a vector."""
        return self.similarity is None

    @property
    def unit(self) -> str:
        """An input, in a word."""
        return "pair" if self.reads_pairs else "text"


TASKS: dict[Task, TaskRow] = {
    row.name: row
    for row in (
        TaskRow(
            name="embedding",
            class_name="SentenceTransformer",
            organization="sentence-transformers",
            output="sentence_embedding",
            result="sentence_embedding",
            token_output="token_embeddings",
            similarity="cosine",
        ),
        TaskRow(
            name="sparse",
            class_name="SparseEncoder",
            organization="sparse-encoder",
            output="sparse_embedding",
            result="sparse_embedding",
            similarity="dot",
        ),
        TaskRow(
            name="rerank",
            class_name="CrossEncoder",
            organization="cross-encoder",
            output="logits",
            # The logits after the model's activation.
            result="scores",
            reads_pairs=True,
        ),
    )
}
