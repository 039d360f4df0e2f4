"""Haystack: embedders for texts and documents, dense and sparse, and a ranker.

Example:
    >>> from stonnx.integrations.haystack import StonnxDocumentEmbedder, StonnxTextEmbedder, StonnxRanker
    >>> pipeline.add_component("embedder", StonnxTextEmbedder("all-MiniLM-L6-v2-int8"))  # doctest: +SKIP
    >>> pipeline.add_component("ranker", StonnxRanker("ms-marco-MiniLM-L6-v2-int8", top_k=3))  # doctest: +SKIP

A pipeline that was written to YAML is read with
``Pipeline.loads(text, allowed_modules=["stonnx.integrations.haystack"])``: Haystack asks for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import SparseEmbedding

from stonnx._errors import InvalidArgumentError
from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.integrations._sparse import csr_rows
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder


class _Component:
    """Loading, and settings that Haystack writes to YAML and reads again."""

    _kind: type[Any]

    # Not __init__: haystack's decorator makes another class of each component, in which super() does not work.
    def _set_up(self, model: Any, **settings: Any) -> None:
        self._settings = settings
        self._model: LazyModel[Any] = LazyModel(self._kind, model, settings.get("model_kwargs"))

    def warm_up(self) -> None:
        """Load the model before the first run."""
        self._model().warmup()

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack writes it."""
        return default_to_dict(self, model=self._model.name, **self._settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component from the result of :meth:`to_dict`."""
        return default_from_dict(cls, data)


def _texts(documents: list[Document], fields: Sequence[str], separator: str) -> list[str]:
    """The text to embed of each document: the named metadata, then the content."""
    return [
        separator.join(
            [str(document.meta[name]) for name in fields if document.meta.get(name) is not None]
            + [document.content or ""]
        )
        for document in documents
    ]


def _check_documents(documents: Any) -> None:
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise InvalidArgumentError(
            "documents must be a list of haystack Documents. For a text, use StonnxTextEmbedder or "
            "StonnxSparseTextEmbedder."
        )


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InvalidArgumentError(
            f"text must be a str, got {type(text).__name__}. For documents, use StonnxDocumentEmbedder or "
            "StonnxSparseDocumentEmbedder."
        )


def _sparse(matrix: Any) -> list[SparseEmbedding]:
    return [SparseEmbedding(indices=indices, values=values) for indices, values in csr_rows(matrix)]


@component
class StonnxTextEmbedder(_Component):
    """The dense vector of a query.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`.
        encode_kwargs: Keyword arguments of ``encode_query``.
        model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`.
    """

    _kind = SentenceTransformer

    def __init__(
        self, model: Any, encode_kwargs: dict[str, Any] | None = None, model_kwargs: dict[str, Any] | None = None
    ) -> None:
        self._set_up(model, encode_kwargs=encode_kwargs, model_kwargs=model_kwargs)
        self.encode_kwargs = encode_kwargs or {}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """The vector of the text, as a list of floats."""
        _check_text(text)
        vector = self._model().encode_query(text, **self.encode_kwargs)
        return {"embedding": vector.tolist(), "meta": {"model": self._model.name}}


@component
class StonnxDocumentEmbedder(_Component):
    """The dense vectors of documents, in their field ``embedding``. The documents returned are copies.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`.
        meta_fields_to_embed: Metadata to put before the content.
        embedding_separator: The text between them.
        encode_kwargs: Keyword arguments of ``encode_document``.
        model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`.
    """

    _kind = SentenceTransformer

    def __init__(
        self,
        model: Any,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        encode_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._set_up(
            model,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            encode_kwargs=encode_kwargs,
            model_kwargs=model_kwargs,
        )
        self.fields, self.separator = meta_fields_to_embed or [], embedding_separator
        self.encode_kwargs = encode_kwargs or {}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """The documents with their vectors."""
        _check_documents(documents)
        texts = _texts(documents, self.fields, self.separator)
        vectors = self._model().encode_document(texts, **self.encode_kwargs) if texts else []
        embedded = [
            dataclasses.replace(document, embedding=vector.tolist())
            for document, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded, "meta": {"model": self._model.name}}


@component
class StonnxSparseTextEmbedder(_Component):
    """The sparse vector of a query.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SparseEncoder`.
        encode_kwargs: Keyword arguments of ``encode_query``, as ``max_active_dims``.
        model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.
    """

    _kind = SparseEncoder

    def __init__(
        self, model: Any, encode_kwargs: dict[str, Any] | None = None, model_kwargs: dict[str, Any] | None = None
    ) -> None:
        self._set_up(model, encode_kwargs=encode_kwargs, model_kwargs=model_kwargs)
        self.encode_kwargs = encode_kwargs or {}

    @component.output_types(sparse_embedding=SparseEmbedding)
    def run(self, text: str) -> dict[str, Any]:
        """The indices and weights that are not zero."""
        _check_text(text)
        return {"sparse_embedding": _sparse(self._model().encode_query([text], **self.encode_kwargs))[0]}


@component
class StonnxSparseDocumentEmbedder(_Component):
    """The sparse vectors of documents, in their field ``sparse_embedding``. The documents returned are copies.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SparseEncoder`.
        meta_fields_to_embed: Metadata to put before the content.
        embedding_separator: The text between them.
        encode_kwargs: Keyword arguments of ``encode_document``.
        model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.
    """

    _kind = SparseEncoder

    def __init__(
        self,
        model: Any,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        encode_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._set_up(
            model,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            encode_kwargs=encode_kwargs,
            model_kwargs=model_kwargs,
        )
        self.fields, self.separator = meta_fields_to_embed or [], embedding_separator
        self.encode_kwargs = encode_kwargs or {}

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """The documents with their sparse vectors."""
        _check_documents(documents)
        texts = _texts(documents, self.fields, self.separator)
        rows = _sparse(self._model().encode_document(texts, **self.encode_kwargs)) if texts else []
        embedded = [
            dataclasses.replace(document, sparse_embedding=row) for document, row in zip(documents, rows, strict=True)
        ]
        return {"documents": embedded}


@component
class StonnxRanker(_Component):
    """Documents in the order of a reranker's score for the query, best first.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.CrossEncoder`.
        top_k: How many are kept. None: all.
        meta_fields_to_embed: Metadata to put before the content.
        embedding_separator: The text between them.
        predict_kwargs: Keyword arguments of ``rank``.
        model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.
    """

    _kind = CrossEncoder

    def __init__(
        self,
        model: Any,
        top_k: int | None = 10,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        predict_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._set_up(
            model,
            top_k=top_k,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            predict_kwargs=predict_kwargs,
            model_kwargs=model_kwargs,
        )
        self.top_k, self.fields, self.separator = top_k, meta_fields_to_embed or [], embedding_separator
        self.predict_kwargs = predict_kwargs or {}

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """The documents with their ``score``, best first. ``top_k`` wins over that of the component."""
        _check_documents(documents)
        if not documents:
            return {"documents": []}
        texts = _texts(documents, self.fields, self.separator)
        ranked = self._model().rank(query, texts, top_k=top_k or self.top_k, **self.predict_kwargs)
        return {
            "documents": [dataclasses.replace(documents[row["corpus_id"]], score=float(row["score"])) for row in ranked]
        }
