"""Columns of texts in, columns of results out: the part that Ray, Spark, Dask and Daft have in common.

A batch is a dict of arrays, a ``pyarrow.Table`` or ``RecordBatch``, or a ``pandas.DataFrame``; the answer is of the
same kind. It has every row and every column of the batch, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from stonnx._arrow import list_array, vector_array
from stonnx._errors import InvalidArgumentError, InvalidInputError, TextTooLongError, UnsupportedError
from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.integrations._sparse import csr_arrays
from stonnx.sentence_transformer import SentenceTransformer
from stonnx.sparse_encoder import SparseEncoder

Task = Literal["query", "document"]

_Model = TypeVar("_Model")

# An error names a row by the values of its other columns: so many of them, each so long.
_COLUMNS_NAMED = 4
_VALUE_LENGTH = 60


class Columns(Generic[_Model]):
    """A function of batches: reads one or two columns of texts, and adds columns of results.

    Args:
        kind: The class of the model.
        model: The directory of a bundle, a Hub id, or a loaded model of this class.
        columns: The columns to read: texts, or the two texts of pairs.
        outputs: The columns to write. One that exists already is replaced.
        error_column: None: a row that is not a text raises an error that names it. A name: such a row gets null, and
            this column says why; it is null for the other rows.
        model_kwargs: Keyword arguments of the model's class.

    Raises:
        InvalidArgumentError: Names of columns are not str, or not different.
    """

    def __init__(
        self,
        kind: type[_Model],
        model: Any,
        columns: Sequence[str],
        outputs: Sequence[str],
        error_column: str | None,
        model_kwargs: Mapping[str, Any],
    ) -> None:
        self.model = LazyModel(kind, model, model_kwargs)
        self.columns, self.outputs, self.error_column = tuple(columns), tuple(outputs), error_column
        written = (*self.outputs, *([] if error_column is None else [error_column]))
        for name in (*self.columns, *written):
            if not isinstance(name, str) or not name:
                raise InvalidArgumentError(f"The name of a column must be a str, got {name!r}.")
        if len({*self.columns, *written}) < len(self.columns) + len(written):
            raise InvalidArgumentError(
                f"Columns must have different names, got {', '.join((*self.columns, *written))}: the texts would be "
                "replaced by the results."
            )

    def compute(self, texts: list[Any]) -> Sequence[Any]:
        """The results for texts, or for pairs of texts: one sequence for each column that is written."""
        raise NotImplementedError

    def __call__(self, batch: Any) -> Any:
        """The batch with the columns of results.

        Raises:
            InvalidArgumentError: A column does not exist.
            InvalidInputError: A row is not a text, and there is no ``error_column``; ``index`` is its position.
        """
        table = _table(batch)
        values = [table.column(name) for name in self.columns]
        rows: list[Any] = list(values[0]) if len(values) == 1 else list(zip(*values, strict=True))
        problems: dict[int, str] = {}
        for index, row in enumerate(rows):
            problem = self._problem(row if len(values) > 1 else (row,))
            if problem is not None:
                self._note(table, problems, index, InvalidInputError(problem, index))
        results = self._computed(table, rows, problems)
        valid = None
        if problems:
            valid = np.ones(len(rows), bool)
            valid[list(problems)] = False
        written = {name: (values, valid) for name, values in zip(self.outputs, results, strict=True)}
        errors = None if self.error_column is None else [problems.get(index) for index in range(len(rows))]
        return table.with_columns(written, self.error_column, errors)

    def _computed(self, table: _Table, rows: list[Any], problems: dict[int, str]) -> Sequence[Any]:
        """The results for all rows; those with a problem have those of an empty text."""
        blank: Any = "" if len(self.columns) == 1 else ("",) * len(self.columns)
        while True:
            texts = [blank if index in problems else row for index, row in enumerate(rows)]
            try:
                return self.compute(texts)
            except (InvalidInputError, TextTooLongError) as error:
                # Some texts are refused only by the tokenizer or the network.
                if error.index is None or error.index in problems:
                    raise
                self._note(table, problems, error.index, error)

    def _problem(self, texts: Sequence[Any]) -> str | None:
        for name, text in zip(self.columns, texts, strict=True):
            if isinstance(text, str):
                continue
            if text is None or (isinstance(text, float) and np.isnan(text)):
                return f"the column {name!r} has no value. Drop such rows, or put '' in their place."
            return (
                f"the column {name!r} has {text!r:.60} ({type(text).__name__}), which is not a text. Convert it first."
            )
        return None

    def _note(self, table: _Table, problems: dict[int, str], index: int, error: Exception) -> None:
        """Keep the problem of a row for the error column, or raise it with a description of the row."""
        if self.error_column is not None:
            problems[index] = str(error)
            return
        known = ", ".join(
            f"{name}={table.column(name)[index]!r:.{_VALUE_LENGTH}}"
            for name in [name for name in table.names if name not in self.columns][:_COLUMNS_NAMED]
        )
        raise InvalidInputError(
            f"Row {index} of a batch of {table.rows}{f' ({known})' if known else ''}: {error} With "
            "error_column='error', such rows are kept, with null and the reason.",
            index,
        ) from error


class EmbedColumns(Columns[SentenceTransformer]):
    """Dense vectors: float32 [dim] for each row, or what ``encode_kwargs`` say."""

    def __init__(
        self,
        model: Any,
        *,
        column: str = "text",
        output_column: str = "embedding",
        task: Task | None = None,
        error_column: str | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(SentenceTransformer, model, [column], [output_column], error_column, model_kwargs)
        self.encode = _Encode(task, encode_kwargs)

    def compute(self, texts: list[Any]) -> Sequence[Any]:
        """[texts, dim]."""
        model = self.model()
        if not texts:  # the width is right, so that an empty block has the type of the others
            return [self.encode(model, ["a"])[:0]]
        return [self.encode(model, texts)]


class SparseColumns(Columns[SparseEncoder]):
    """Sparse vectors: the indices, int32, and the values, float32, that are not zero."""

    def __init__(
        self,
        model: Any,
        *,
        column: str = "text",
        output_columns: tuple[str, str] = ("indices", "values"),
        task: Task | None = None,
        error_column: str | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        if isinstance(output_columns, str) or len(output_columns) != 2:
            raise InvalidArgumentError(
                f"output_columns must be two names, of the indices and of the values; got {output_columns!r}."
            )
        super().__init__(SparseEncoder, model, [column], output_columns, error_column, model_kwargs)
        self.encode = _Encode(task, encode_kwargs)

    def compute(self, texts: list[Any]) -> Sequence[Any]:
        """Two columns of lists: the arrays, and their dtype."""
        indices, values = csr_arrays(self.encode(self.model(), texts))
        return [(indices, np.int32), (values, np.float32)]


class RankColumns(Columns[CrossEncoder]):
    """Scores of pairs: float32, or [labels] for a model with several labels."""

    def __init__(
        self,
        model: Any,
        *,
        query_column: str = "query",
        column: str = "text",
        output_column: str = "score",
        error_column: str | None = None,
        predict_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(CrossEncoder, model, [query_column, column], [output_column], error_column, model_kwargs)
        self.predict_kwargs = dict(predict_kwargs or {})

    def compute(self, texts: list[Any]) -> Sequence[Any]:
        """[pairs] or [pairs, labels]."""
        model = self.model()
        if not texts:
            return [model.predict([("a", "a")], **self.predict_kwargs)[:0]]
        return [model.predict(texts, **self.predict_kwargs)]


class _Encode:
    """The method of a model that encodes texts of a task, with its options."""

    def __init__(self, task: Task | None, options: Mapping[str, Any] | None) -> None:
        if task not in (None, "query", "document"):
            raise InvalidArgumentError(f"task must be 'query', 'document' or None, got {task!r}.")
        self._method = "encode" if task is None else f"encode_{task}"
        self._options = dict(options or {})
        refused = {"output_value", "convert_to_tensor", "convert_to_numpy", "convert_to_sparse_tensor"} & {
            *self._options
        }
        if refused:
            raise InvalidArgumentError(
                f"encode_kwargs must not have {', '.join(sorted(refused))}: the column has a vector for each row."
            )
        if self._options.get("precision") in ("int8", "uint8"):
            raise UnsupportedError(
                f"precision {self._options['precision']!r} takes its ranges from the texts of a call, so batches would "
                "have different ones. Write float32, and quantize all vectors at once: stonnx.quantize_embeddings"
            )

    def __call__(self, model: Any, texts: list[str]) -> Any:
        return getattr(model, self._method)(texts, **self._options)


class _Table:
    """A batch, whatever its kind."""

    names: list[str]
    rows: int

    def column(self, name: str) -> Sequence[Any]:
        """The values of a column, as Python or numpy has them.

        Raises:
            InvalidArgumentError: It does not exist.
        """
        if name not in self.names:
            raise InvalidArgumentError(
                f"The data has no column {name!r}; its columns: {', '.join(map(str, self.names)) or 'none'}. Name the "
                "one with the texts."
            )
        return self.values(name)

    def values(self, name: str) -> Sequence[Any]:
        """The values of a column that exists."""
        raise NotImplementedError

    def with_columns(
        self,
        written: Mapping[str, tuple[Any, npt.NDArray[np.bool_] | None]],
        error_column: str | None,
        errors: list[str | None] | None,
    ) -> Any:
        """The batch with columns of results, each with the rows that are valid (None: all), and the one of errors."""
        raise NotImplementedError


class _Arrays(_Table):
    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch, self.names = batch, list(batch)
        self.rows = len(next(iter(batch.values()))) if batch else 0

    def values(self, name: str) -> Sequence[Any]:
        column: Sequence[Any] = self._batch[name]
        return column

    def with_columns(
        self,
        written: Mapping[str, tuple[Any, npt.NDArray[np.bool_] | None]],
        error_column: str | None,
        errors: list[str | None] | None,
    ) -> dict[str, Any]:
        added: dict[str, Any] = {}
        for name, (values, valid) in written.items():
            column = _objects(values[0]) if isinstance(values, tuple) else values
            if valid is not None:
                column = column.copy()
                if column.dtype.kind in "iu":
                    raise UnsupportedError(
                        f"Arrays of {column.dtype} have no value for a row without a result. Use "
                        "batch_format='pyarrow', or no error_column."
                    )
                column[~valid] = None if column.dtype.kind == "O" else np.nan
            added[name] = column
        if error_column is not None and errors is not None:
            added[error_column] = _objects(errors)
        return {**self._batch, **added}


class _ArrowTable(_Table):
    def __init__(self, batch: Any) -> None:
        self._batch, self.names, self.rows = batch, list(batch.schema.names), batch.num_rows

    def values(self, name: str) -> Sequence[Any]:
        values: Sequence[Any] = self._batch.column(name).to_pylist()
        return values

    def with_columns(
        self,
        written: Mapping[str, tuple[Any, npt.NDArray[np.bool_] | None]],
        error_column: str | None,
        errors: list[str | None] | None,
    ) -> Any:
        import pyarrow as pa

        added: dict[str, Any] = {
            name: list_array(values[0], values[1], valid) if isinstance(values, tuple) else vector_array(values, valid)
            for name, (values, valid) in written.items()
        }
        if error_column is not None and errors is not None:
            added[error_column] = pa.array(errors, pa.string())
        kept = {name: self._batch.column(name) for name in self.names if name not in added}
        return type(self._batch).from_arrays([*kept.values(), *added.values()], names=[*kept, *added])


class _Frame(_Table):
    def __init__(self, batch: Any) -> None:
        self._batch, self.names, self.rows = batch, list(batch.columns), len(batch)

    def values(self, name: str) -> Sequence[Any]:
        # pandas has values of its own for missing ones.
        column = self._batch[name]
        values: Sequence[Any] = [
            None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)
        ]
        return values

    def with_columns(
        self,
        written: Mapping[str, tuple[Any, npt.NDArray[np.bool_] | None]],
        error_column: str | None,
        errors: list[str | None] | None,
    ) -> Any:
        added: dict[str, Any] = {}
        for name, (values, valid) in written.items():
            rows = values[0] if isinstance(values, tuple) else values
            one_each = not isinstance(values, tuple) and values.ndim == 1
            column = values if one_each and valid is None else _objects(list(rows))
            if valid is not None:
                column[~valid] = None
            added[name] = column
        if error_column is not None and errors is not None:
            added[error_column] = _objects(errors)
        return self._batch.assign(**added)


def _table(batch: Any) -> _Table:
    kinds: dict[str, Callable[[Any], _Table]] = {"pyarrow": _ArrowTable, "pandas": _Frame}
    if isinstance(batch, Mapping):
        return _Arrays(batch)
    # Recognised by name, so that neither need be imported.
    kind = kinds.get(type(batch).__module__.partition(".")[0])
    if kind is None or not hasattr(batch, "columns"):
        raise InvalidArgumentError(
            "A batch must be a dict of arrays, a pyarrow.Table or a pandas.DataFrame, got "
            f"{type(batch).__name__}. In Ray: batch_format='pyarrow'."
        )
    table = kind(batch)
    twice = next((name for name in table.names if table.names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"The data has two columns {twice!r}, and the result cannot keep both. Rename one.")
    return table


def _objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    """An array of Python objects; ``np.array`` would make a table of rows of equal length."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array
