"""Daft: columns of vectors, sparse vectors and scores of a dataframe.

Each process in which Daft runs functions loads the bundle once. Needs ``daft`` and ``pyarrow``.

Example:
    >>> from stonnx.integrations.daft import Embed, add_columns
    >>> frame = daft.read_parquet("passages")  # doctest: +SKIP
    >>> add_columns(frame, Embed("all-MiniLM-L6-v2-fp32")).write_parquet("vectors")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable

import daft
import pyarrow as pa

from stonnx.integrations._steps import Embed, Rank, Sparse, Step

__all__ = ["Embed", "Rank", "Sparse", "add_columns"]


def add_columns(
    frame: daft.DataFrame, *steps: Step, batch_size: int = 1024, use_process: bool | None = None
) -> daft.DataFrame:
    """The frame with the columns that the steps make. Nothing is computed before it is asked for.

    Args:
        frame: The frame.
        *steps: :class:`Embed`, :class:`Sparse` or :class:`Rank`. A step sees the columns of the steps before it.
            Vectors of float32 have Daft's type for embeddings.
        batch_size: The most rows that a model gets at a time.
        use_process: Whether models run in processes of their own. None: as Daft decides.

    Raises:
        InvalidArgumentError: A column is missing, or does not hold texts.
    """
    for step in steps:
        step.check(frame.column_names)
        for column in step.columns:
            kind = frame.schema()[column].dtype
            if kind != daft.DataType.string():
                step.refuse(column, kind, f"frame[{column!r}].cast(daft.DataType.string())")
        fields = step.fields()
        made = daft.DataType.struct({field.name: _type(field.type) for field in fields})
        function = daft.func.batch(return_dtype=made, unnest=True, batch_size=batch_size, use_process=use_process)
        kept = [name for name in frame.column_names if name not in {field.name for field in fields}]
        names = [*step.columns, *_names_of_rows(frame, step)]
        computed = function(_function(step, names, fields))(*(frame[name] for name in names))
        frame = frame.select(*(frame[name] for name in kept), computed)
    return frame


def _names_of_rows(frame: daft.DataFrame, step: Step) -> list[str]:
    """Columns by which an error can name a row."""
    kinds = {column.name: column.dtype for column in frame.schema()}
    short = [name for name, kind in kinds.items() if kind.is_integer() or kind.is_string()]
    return [name for name in short if name not in step.columns][:2]


def _type(kind: pa.DataType) -> daft.DataType:
    if pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32():
        return daft.DataType.embedding(daft.DataType.float32(), kind.list_size)
    return daft.DataType.from_arrow_type(kind)


def _function(step: Step, names: list[str], fields: list[pa.Field]) -> Callable[..., pa.Array]:
    def compute(*series: daft.Series) -> pa.Array:
        table = step(pa.table([part.to_arrow() for part in series], names=names))
        columns = [table[field.name].combine_chunks() for field in fields]
        return pa.StructArray.from_arrays(columns, fields=fields)

    return compute
