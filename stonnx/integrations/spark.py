"""Spark: columns of vectors, sparse vectors and scores, computed by the Python workers of the executors.

Each Python worker loads the bundle once and keeps it for its later tasks. The model of a worker has as many threads as
``spark.task.cpus`` (1, unless it is set). Needs ``pyspark`` and ``pyarrow``.

Example:
    >>> from stonnx.integrations.spark import Embed, add_columns
    >>> frame = spark.read.text("passages.txt")  # doctest: +SKIP
    >>> embed = Embed("all-MiniLM-L6-v2-fp32", column="value")  # doctest: +SKIP
    >>> add_columns(frame, embed).write.parquet("vectors")  # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import CharType, StringType, StructField, StructType, VarcharType

from stonnx.integrations._steps import Embed, Rank, Sparse, Step

__all__ = ["Embed", "Rank", "Sparse", "add_columns"]


def add_columns(frame: DataFrame, *steps: Step) -> DataFrame:
    """The frame with the columns that the steps make. Nothing is computed before an action asks for it.

    Args:
        frame: The frame.
        *steps: :class:`Embed`, :class:`Sparse` or :class:`Rank`. A step sees the columns of the steps before it.

    Raises:
        InvalidArgumentError: A column is missing, or does not hold texts.
    """
    schema = frame.schema
    for step in steps:
        step.check(schema.names)
        for column in step.columns:
            kind = schema[column].dataType
            if not isinstance(kind, StringType | CharType | VarcharType):
                remedy = f'frame.withColumn({column!r}, frame[{column!r}].cast("string"))'
                step.refuse(column, kind.simpleString(), remedy)
        made = {field.name: StructField(field.name, from_arrow_type(_list(field.type))) for field in step.fields()}
        schema = StructType([*(field for field in schema.fields if field.name not in made), *made.values()])
    threads = int(frame.sparkSession.conf.get("spark.task.cpus", "1") or 1)
    return frame.mapInArrow(functools.partial(_map, steps=[step.on(threads) for step in steps]), schema)


def _map(batches: Iterator[pa.RecordBatch], steps: list[Step]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for step in steps:
            batch = step(batch)
        columns = [column.cast(_list(column.type)) for column in batch.columns]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _list(kind: pa.DataType) -> pa.DataType:
    """Spark has lists of any size only."""
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind
