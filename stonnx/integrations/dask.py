"""Dask: columns of vectors, sparse vectors and scores of a dataframe.

Each worker process loads the bundle once, and its model has as many threads as the worker. The new columns have Arrow
types, and lose nothing on the way to Parquet. Needs ``dask[dataframe]``.

Example:
    >>> from stonnx.integrations.dask import Embed, add_columns
    >>> frame = dask.dataframe.read_parquet("passages")  # doctest: +SKIP
    >>> add_columns(frame, Embed("all-MiniLM-L6-v2-fp32")).to_parquet("vectors")  # doctest: +SKIP
"""

from __future__ import annotations

import sys

import pandas as pd
import pyarrow as pa
from dask.dataframe import DataFrame

from stonnx.integrations._steps import Embed, Rank, Sparse, Step

__all__ = ["Embed", "Rank", "Sparse", "add_columns"]


def add_columns(frame: DataFrame, *steps: Step) -> DataFrame:
    """The frame with the columns that the steps make. Nothing is computed before it is asked for.

    Args:
        frame: The frame.
        *steps: :class:`Embed`, :class:`Sparse` or :class:`Rank`. A step sees the columns of the steps before it.

    Raises:
        InvalidArgumentError: A column is missing, or does not hold texts.
    """
    meta: pd.DataFrame = frame._meta
    fields = []
    for step in steps:
        step.check(meta.columns)
        for column in step.columns:
            kind = meta[column].dtype
            if not (pd.api.types.is_string_dtype(kind) or pd.api.types.is_object_dtype(kind)):
                step.refuse(column, kind, f"frame[{column!r}].astype(str)")
        fields.append(step.fields())
        meta = meta.assign(**{field.name: pd.Series(dtype=pd.ArrowDtype(field.type)) for field in fields[-1]})
    return frame.map_partitions(_apply, steps, fields, meta=meta)


def _apply(part: pd.DataFrame, steps: tuple[Step, ...], fields: list[list[pa.Field]]) -> pd.DataFrame:
    threads = _threads()
    for step, made in zip(steps, fields, strict=True):
        part = step.on(threads)(part)
        for field in made:
            column = pa.array(part[field.name], field.type, from_pandas=True)
            part[field.name] = pd.Series(pd.arrays.ArrowExtensionArray(column), index=part.index)
    return part


def _threads() -> int | None:
    """The threads of this worker; None outside of a cluster."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        threads: int = distributed.get_worker().state.nthreads
    except ValueError:  # it is not a worker
        return None
    return threads
