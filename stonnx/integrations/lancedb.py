"""LanceDB: an embedding function for its registry, and a reranker.

Example:
    >>> from lancedb.embeddings import get_registry
    >>> import stonnx.integrations.lancedb  # registers the name "stonnx"
    >>> function = get_registry().get("stonnx").create(name="all-MiniLM-L6-v2-int8")  # doctest: +SKIP
    >>> class Passage(LanceModel):  # doctest: +SKIP
    ...     text: str = function.SourceField()
    ...     vector: Vector(function.ndims()) = function.VectorField()
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.embeddings.base import TextEmbeddingFunction
from lancedb.embeddings.registry import register
from lancedb.rerankers import Reranker
from pydantic import Field, PrivateAttr

from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.sentence_transformer import SentenceTransformer


@register("stonnx")
class StonnxEmbeddings(TextEmbeddingFunction):
    """Dense embeddings. The source column and queries get the prompts that the model has for them.

    ``name`` is the directory of a bundle or a Hub id. LanceDB keeps it with the table. ``model_kwargs`` are keyword
    arguments of :class:`stonnx.SentenceTransformer`, ``encode_kwargs`` those of its ``encode`` methods.
    """

    name: str
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: LazyModel[SentenceTransformer] = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._model = LazyModel(SentenceTransformer, self.name, self.model_kwargs)

    def ndims(self) -> int:
        """Dimensions of the vectors."""
        size = self._model().get_embedding_dimension()
        assert size is not None  # every embedding model has one
        return size

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The vector of a query."""
        return [self._model().encode_query(query, **self.encode_kwargs)]

    def generate_embeddings(self, texts: list[str] | np.ndarray[Any, Any], *args: Any, **kwargs: Any) -> list[Any]:
        """The vectors of the source column."""
        return list(self._model().encode_document([str(text) for text in texts], **self.encode_kwargs))


class StonnxReranker(Reranker):
    """Orders search results by a reranker's score.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.CrossEncoder`.
        column: The column with the text.
        return_score: ``"relevance"`` keeps only the new score, ``"all"`` the others too.
        **model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.
    """

    def __init__(self, model: Any, column: str = "text", return_score: str = "relevance", **model_kwargs: Any) -> None:
        super().__init__(return_score)
        self.column = column
        self._model = LazyModel(CrossEncoder, model, model_kwargs)

    def _reranked(self, results: pa.Table, query: str) -> pa.Table:
        if self.column not in results.column_names:
            raise ValueError(
                f"The results have no column {self.column!r}, which StonnxReranker reads. They have: "
                f"{', '.join(results.column_names)}. Pass column=..."
            )
        texts = results[self.column].to_pylist()
        scores = self._model().predict([(query, text) for text in texts]) if texts else np.zeros(0, np.float32)
        table = results.append_column("_relevance_score", pa.array(np.asarray(scores), type=pa.float32()))
        return table.sort_by([("_relevance_score", "descending")])

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Both results as one, ordered by score."""
        table = self._reranked(self.merge_results(vector_results, fts_results), query)
        return self._keep_relevance_score(table) if self.score == "relevance" else table

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """The results of a vector search, ordered by score."""
        table = self._reranked(vector_results, query)
        return table.drop_columns(["_distance"]) if self.score == "relevance" else table

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """The results of a full-text search, ordered by score."""
        table = self._reranked(fts_results, query)
        return table.drop_columns(["_score"]) if self.score == "relevance" else table
