"""The tasks as data: the class, the graph output and the Hub organization of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Task = Literal["embedding", "sparse", "rerank"]

# The class that runs each task, here and in sentence-transformers.
CLASS_OF_TASK: Mapping[Task, str] = {
    "embedding": "SentenceTransformer",
    "sparse": "SparseEncoder",
    "rerank": "CrossEncoder",
}

# The output that is the result of each task.
OUTPUT_OF_TASK: Mapping[str, str] = {
    "embedding": "sentence_embedding",
    "sparse": "sparse_embedding",
    "rerank": "logits",
}

# The output that callers get: of rerankers, what the activation makes of the logits.
RESULT_OF_TASK: Mapping[str, str] = {**OUTPUT_OF_TASK, "rerank": "scores"}

# The organization that a bare name belongs to.
ORGANIZATIONS: dict[Task, str] = {
    "embedding": "sentence-transformers",
    "sparse": "sparse-encoder",
    "rerank": "cross-encoder",
}
