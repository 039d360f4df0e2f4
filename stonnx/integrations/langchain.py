"""LangChain: embeddings, sparse embeddings for hybrid stores, and a reranker.

Example:
    >>> from stonnx.integrations.langchain import StonnxEmbeddings, StonnxRerank
    >>> embeddings = StonnxEmbeddings("all-MiniLM-L6-v2-int8")  # doctest: +SKIP
    >>> store = InMemoryVectorStore.from_texts(texts, embeddings)  # doctest: +SKIP
    >>> reranker = StonnxRerank(model="ms-marco-MiniLM-L6-v2-int8", top_n=3)  # doctest: +SKIP
    >>> reranker.compress_documents(store.similarity_search("a question"), "a question")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, Field, PrivateAttr

from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.sentence_transformer import SentenceTransformer


class StonnxEmbeddings(Embeddings):
    """Dense embeddings. Queries and documents get the prompts that the model has for them.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`.
        encode_kwargs: Keyword arguments of every ``encode_query`` and ``encode_document``, as ``batch_size`` or
            ``normalize_embeddings``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`, as ``device`` or ``threads``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        encode_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.model = LazyModel(SentenceTransformer, model, model_kwargs)
        self.encode_kwargs = dict(encode_kwargs or {})

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One list of floats for each text."""
        vectors: list[list[float]] = self.model().encode_document(list(texts), **self.encode_kwargs).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        vector: list[float] = self.model().encode_query(text, **self.encode_kwargs).tolist()
        return vector


class StonnxRerank(BaseDocumentCompressor):
    """Orders documents by a reranker's score for the query, and keeps the best.

    The score is in ``metadata["relevance_score"]`` of the documents returned, which are copies.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: Any = Field(description="The directory of a bundle, a Hub id, or a loaded stonnx.CrossEncoder.")
    top_n: int | None = Field(default=3, description="How many documents are kept. None: all, in order.")
    predict_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of rank().")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of CrossEncoder.")

    _reranker: LazyModel[CrossEncoder] = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the model's name; the model is loaded when it is first used."""
        self._reranker = LazyModel(CrossEncoder, self.model, self.model_kwargs)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The ``top_n`` documents of the highest score, best first."""
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        ranked = self._reranker().rank(query, texts, top_k=self.top_n, **self.predict_kwargs)
        kept = [(documents[int(row["corpus_id"])], float(row["score"])) for row in ranked]
        return [
            document.model_copy(update={"metadata": document.metadata | {"relevance_score": score}})
            for document, score in kept
        ]
