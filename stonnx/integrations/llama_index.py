"""LlamaIndex: dense and sparse embeddings, and a reranker.

Example:
    >>> from stonnx.integrations.llama_index import StonnxEmbedding, StonnxRerank
    >>> Settings.embed_model = StonnxEmbedding("all-MiniLM-L6-v2-int8")  # doctest: +SKIP
    >>> engine = index.as_query_engine(  # doctest: +SKIP
    ...     node_postprocessors=[StonnxRerank("ms-marco-MiniLM-L6-v2-int8", top_n=3)]
    ... )
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.integrations._sparse import csr_rows
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder


class StonnxEmbedding(BaseEmbedding):
    """Dense embeddings. Queries and texts get the prompts that the model has for them.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`.
        encode_kwargs: Keyword arguments of every ``encode_query`` and ``encode_document``.
        embed_batch_size: How many texts LlamaIndex passes at a time. stonnx forms its own batches of them.
        model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`.
        **kwargs: Those of LlamaIndex's ``BaseEmbedding``, as ``callback_manager``.
    """

    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: LazyModel[SentenceTransformer] = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        encode_kwargs: dict[str, Any] | None = None,
        embed_batch_size: int = 1024,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loader = LazyModel(SentenceTransformer, model, model_kwargs)
        super().__init__(
            model_name=loader.name,
            embed_batch_size=embed_batch_size,
            encode_kwargs=dict(encode_kwargs or {}),
            **kwargs,
        )
        self._model = loader

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex keeps this class."""
        return "StonnxEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._model().encode_query(query, **self.encode_kwargs).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model().encode_document(texts, **self.encode_kwargs).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class StonnxSparseEmbedding(BaseSparseEmbedding):
    """Sparse embeddings (SPLADE): a dictionary of vocabulary index and weight for each text.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SparseEncoder`.
        encode_kwargs: Keyword arguments of every ``encode_query`` and ``encode_document``, as ``max_active_dims``.
        model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.
        **kwargs: Those of LlamaIndex's ``BaseSparseEmbedding``.
    """

    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: LazyModel[SparseEncoder] = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | SparseEncoder,
        *,
        encode_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loader = LazyModel(SparseEncoder, model, model_kwargs)
        super().__init__(model_name=loader.name, encode_kwargs=dict(encode_kwargs or {}), **kwargs)
        self._model = loader

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex keeps this class."""
        return "StonnxSparseEmbedding"

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return _rows(self._model().encode_query([query], **self.encode_kwargs))[0]

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return _rows(self._model().encode_document(texts, **self.encode_kwargs))

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class StonnxRerank(BaseNodePostprocessor):
    """Orders nodes by a reranker's score for the query, and keeps the best.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.CrossEncoder`.
        top_n: How many nodes are kept. None: all, in order.
        predict_kwargs: Keyword arguments of ``predict``.
        model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.
        **kwargs: Those of LlamaIndex's ``BaseNodePostprocessor``.
    """

    model_name: str = Field(description="The bundle or Hub id.")
    top_n: int | None = Field(default=3, description="How many nodes are kept. None: all.")
    predict_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: LazyModel[CrossEncoder] = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | CrossEncoder,
        *,
        top_n: int | None = 3,
        predict_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loader = LazyModel(CrossEncoder, model, model_kwargs)
        super().__init__(model_name=loader.name, top_n=top_n, predict_kwargs=dict(predict_kwargs or {}), **kwargs)
        self._model = loader

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex keeps this class."""
        return "StonnxRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("StonnxRerank needs the query: pass query_bundle or query_str.")
        if not nodes:
            return []
        pairs = [(query_bundle.query_str, node.node.get_content(MetadataMode.EMBED)) for node in nodes]
        scores = self._model().predict(pairs, **self.predict_kwargs)
        ranked = sorted(range(len(nodes)), key=lambda index: -float(scores[index]))
        return [NodeWithScore(node=nodes[index].node, score=float(scores[index])) for index in ranked[: self.top_n]]


def _rows(matrix: Any) -> list[dict[int, float]]:
    """The rows of a CSR matrix as LlamaIndex wants them: {index: weight}."""
    return [dict(zip(indices, values, strict=True)) for indices, values in csr_rows(matrix)]
