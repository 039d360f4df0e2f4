"""The tasks as data: one row for each, with everything that the code asks about a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# The name of a task: a key of TASKS.
Task: TypeAlias = str

# The form of the result for one input: a vector, a sparse vector, a score for each label, or a vector for each token.
ResultKind: TypeAlias = Literal["dense", "sparse", "scores", "rows"]

# The precisions that the exporter makes. They are known here too, so that a wrong one is refused before anything is
# asked for: a network, or an exporter that is not installed.
DTYPES = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes:
        name: Its name in manifests and arguments.
        class_name: The class that runs it, in ``stonnx`` and in sentence-transformers.
        organization: The Hub organization that a bare model name belongs to. None: such a name stays as it is.
        output: The output of the graph that is compared with the original.
        result: The output that callers get, if it is another one.
        kind: The form of the result.
        does: What a model of it does, in words: a verb and its object.
        token_output: The output with a vector for each token, if the graph has one.
        row_mask: The output that says which tokens' vectors are the result, if a text has a vector for each of them.
        reads_pairs: Whether an input is a pair of texts.
        similarity: How vectors are compared, unless the model says something else. None: the result is not a vector.
    """

    name: Task
    class_name: str
    organization: str | None
    output: str
    result: str
    kind: ResultKind
    does: str
    token_output: str | None = None
    row_mask: str | None = None
    reads_pairs: bool = False
    similarity: str | None = None

    @property
    def gives_labels(self) -> bool:
        """Whether the result is a score for each label, rather than a vector."""
        return self.kind == "scores"

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
            kind="dense",
            does="gives dense vectors",
            token_output="token_embeddings",
            similarity="cosine",
        ),
        TaskRow(
            name="sparse",
            class_name="SparseEncoder",
            organization="sparse-encoder",
            output="sparse_embedding",
            result="sparse_embedding",
            kind="sparse",
            does="gives sparse vectors",
            similarity="dot",
        ),
        TaskRow(
            name="rerank",
            class_name="CrossEncoder",
            organization="cross-encoder",
            output="logits",
            # The logits after the model's activation.
            result="scores",
            kind="scores",
            does="scores pairs of texts",
            reads_pairs=True,
        ),
        TaskRow(
            name="multivector",
            class_name="MultiVectorEncoder",
            organization=None,
            output="token_embeddings",
            result="token_embeddings",
            kind="rows",
            does="gives a vector for each token",
            row_mask="row_mask",
            similarity="maxsim",
        ),
    )
}

# The task of a name or a checkpoint that does not say which.
DEFAULT_TASK: Task = "embedding"


def tasks_giving(*kinds: ResultKind) -> tuple[Task, ...]:
    """The tasks with results of these forms."""
    return tuple(row.name for row in TASKS.values() if row.kind in kinds)
