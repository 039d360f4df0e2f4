"""What the models that give vectors share: similarity, and the prompts of queries and documents."""

from __future__ import annotations

from typing import Any, ClassVar

from stonnx._errors import InvalidArgumentError
from stonnx._model import Model

_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# Prompt names that a task looks for, the first one there is wins.
_PROMPTS_OF_TASK = {"query": ("query",), "document": ("document", "passage", "corpus")}


class EmbeddingModel(Model):
    """A :class:`Model` whose results can be compared. Use one of its subclasses."""

    _default_similarity: ClassVar[str]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity of every vector of one collection to every vector of another, by :attr:`similarity_fn_name`.

        Args:
            embeddings1: [n, dim] or [dim], dense or sparse.
            embeddings2: [m, dim] or [dim], dense or sparse.

        Returns:
            float32 array [n, m]; a torch tensor where one was passed.
        """
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_fn(self.similarity_fn_name)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity of ``embeddings1[i]`` to ``embeddings2[i]``: float32 array [n]."""
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_pairwise_fn(self.similarity_fn_name)(embeddings1, embeddings2)

    @property
    def similarity_fn_name(self) -> str:
        """``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        name = self._default_similarity if value is None else getattr(value, "value", value)
        if name not in _SIMILARITIES:
            allowed = ", ".join(_SIMILARITIES)
            raise InvalidArgumentError(f"similarity_fn_name {value!r} is not known. Allowed: {allowed}.")
        self._similarity_fn_name = name

    def _prompt_name(self, task: str, prompt_name: str | None, prompt: str | None) -> str | None:
        """The prompt of a query or a document where the caller asks for none."""
        if prompt_name is not None or prompt is not None:
            return prompt_name
        return next((name for name in _PROMPTS_OF_TASK[task] if name in self.prompts), None)
