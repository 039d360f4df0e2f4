"""Steps of engines for tables (Spark, Dask, Daft): new columns from columns of texts, computed by their workers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any, Self

import pyarrow as pa

from stonnx._errors import DeviceError, InvalidArgumentError
from stonnx.integrations._columns import Columns, EmbedColumns, RankColumns, SparseColumns
from stonnx.integrations._workers import WorkerModel


class Step(Columns[Any]):
    """A step of a table: use one of its subclasses. It can be pickled without the model."""

    model: WorkerModel[Any]  # type: ignore[assignment] # in place of the one that loads in this process only

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type] # of the subclass beside this
        lazy: Any = self.model
        self.model = WorkerModel(lazy._kind, model, lazy._options)

    def fields(self) -> list[pa.Field]:
        """Names and Arrow types of the columns that it makes.

        This loads the model; on the CPU, if only the workers have its device.
        """
        none = pa.table({name: pa.array([], pa.string()) for name in self.columns})
        try:
            made = self(none)
            self.model.note_kernels()
        except DeviceError:
            made = self._with(self.model.on_cpu())(none)
        return [field for field in made.schema if field.name not in self.columns]

    def check(self, names: Iterable[Any]) -> None:
        """Raise InvalidArgumentError unless a table has the columns that are read."""
        there = [str(name) for name in names]
        for column in self.columns:
            if column not in there:
                raise InvalidArgumentError(
                    f"The data has no column {column!r}; its columns: {', '.join(there)}. Name the one with the texts."
                )

    def refuse(self, column: str, kind: object, remedy: str) -> None:
        """Raise InvalidArgumentError for a column that does not hold texts."""
        raise InvalidArgumentError(f"The column {column!r} holds {kind}, not texts. Convert it first: {remedy}")

    def on(self, threads: int | None) -> Self:
        """The same step for workers whose models have this many threads, if its options do not say it."""
        model = copy.copy(self.model)
        model.threads = threads
        return self._with(model)

    def _with(self, model: WorkerModel[Any]) -> Self:
        step = copy.copy(self)
        step.model = model
        return step


class Embed(Step, EmbedColumns):
    """A column of texts to a column of dense vectors.

    Args:
        model: The directory of a bundle, which every worker must have under this path, or a Hub id.
        column: The column with the texts (default: ``"text"``).
        output_column: The column to write (default: ``"embedding"``). One that exists already is replaced.
        task: ``"query"`` and ``"document"`` encode with the prompt that the model has for them; None as ``encode``.
        error_column: None: a row that is not a text is an error that names the row, and ends the job. A name: such a
            row gets null, and this column says why; it is null for the other rows.
        encode_kwargs: Keyword arguments of ``encode``, as ``{"normalize_embeddings": True}``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`, as ``device`` and ``threads``.

    Raises:
        ModelNotFoundError: There is no such model.
        InvalidArgumentError: An argument is outside what is allowed.
    """


class Sparse(Step, SparseColumns):
    """A column of texts to two columns of sparse vectors: the indices and the values that are not zero.

    Args:
        model, column, task, error_column: As in :class:`Embed`.
        output_columns: The columns to write: int32 indices and float32 values, lists of equal length in each row
            (default: ``("indices", "values")``).
        encode_kwargs: Keyword arguments of ``encode``, as ``{"max_active_dims": 64}``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.

    Raises:
        As for :class:`Embed`.
    """


class Rank(Step, RankColumns):
    """Columns of queries and of texts to a column of a reranker's scores.

    Args:
        model, error_column: As in :class:`Embed`.
        query_column: The column with the first text of each pair (default: ``"query"``).
        column: The column with the second one (default: ``"text"``).
        output_column: The column to write: float32, or lists of float32 for a model with several labels (default:
            ``"score"``).
        predict_kwargs: Keyword arguments of ``predict``.
        **model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.

    Raises:
        As for :class:`Embed`.
    """
