"""Chroma: an embedding function that a collection keeps in its own settings.

Example:
    >>> from stonnx.integrations.chroma import StonnxEmbeddingFunction
    >>> function = StonnxEmbeddingFunction("all-MiniLM-L6-v2-int8")  # doctest: +SKIP
    >>> collection = client.create_collection("texts", embedding_function=function)  # doctest: +SKIP

Import this module before you open a collection that was made with it: that registers the function.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from stonnx.integrations._models import LazyModel
from stonnx.sentence_transformer import SentenceTransformer

# Chroma's measure for each similarity of a model.
_SPACES: dict[str, Space] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class StonnxEmbeddingFunction(EmbeddingFunction[Documents]):
    """Dense embeddings. Documents and queries get the prompts that the model has for them.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`. Chroma keeps it
            in the collection, so a path must be valid wherever the collection is opened.
        encode_kwargs: Keyword arguments of every ``encode_query`` and ``encode_document``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        encode_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.model = LazyModel(SentenceTransformer, model, model_kwargs)
        self.encode_kwargs, self.model_kwargs = dict(encode_kwargs or {}), model_kwargs

    def __call__(self, input: Documents) -> Embeddings:
        """The vectors of documents."""
        return [np.asarray(row) for row in self.model().encode_document(list(input), **self.encode_kwargs)]

    def embed_query(self, input: Documents) -> Embeddings:
        """The vectors of queries."""
        return [np.asarray(row) for row in self.model().encode_query(list(input), **self.encode_kwargs)]

    @staticmethod
    def name() -> str:
        """The name under which Chroma finds this class again."""
        return "stonnx"

    def default_space(self) -> Space:
        """The distance that fits the model's similarity."""
        return _SPACES.get(str(self.model().similarity_fn_name), "cosine")

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> StonnxEmbeddingFunction:
        """The function of a collection, from the result of :meth:`get_config`."""
        return StonnxEmbeddingFunction(
            config["model"], encode_kwargs=config.get("encode_kwargs"), **config.get("model_kwargs", {})
        )

    def get_config(self) -> dict[str, Any]:
        """The settings that Chroma keeps in the collection."""
        return {"model": self.model.name, "encode_kwargs": self.encode_kwargs, "model_kwargs": self.model_kwargs}

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse another model for existing vectors."""
        if old_config.get("model") != new_config.get("model"):
            raise ValueError(
                f"The collection was made with {old_config.get('model')}; vectors of {new_config.get('model')} cannot "
                "be compared with them. Make a new collection."
            )
