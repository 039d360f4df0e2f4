"""Parquet, which pyarrow reads and writes: the rows of an input, and the file that windows of results become.

A Parquet file cannot be continued: its end describes all of it. So a run appends each window of rows to its part file
as Arrow, with its length before it, and makes the Parquet file of them at the end, which takes seconds.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from stonnx._arrow import import_pyarrow
from stonnx._errors import InvalidInputError, UnsupportedError
from stonnx._files.rows import Keep, Row, Text, Window, check_text

# A window has fewer rows if rows are long, so that its memory is bounded.
_WINDOW_BYTES = 64 << 20
# Read so much of a column at a time. Otherwise a row group, which may have a million rows, is read as a whole.
_READ_BUFFER = 1 << 20
# The rows of so many bytes are a row group of the output.
_ROW_GROUP_BYTES = 32 << 20
_LENGTH_BYTES = 8
# Marks a column of JSON texts, which stand for values that have no common type.
_AS_JSON = {b"stonnx": b"json"}


def read_parquet(
    stream: BinaryIO,
    *,
    name: str,
    fields: Sequence[str],
    window: int,
    first_row: int,
    keep: Keep,
    keep_failed: bool = False,
) -> Iterator[Window]:
    """Read rows from ``first_row`` on, at most ``window`` at a time.

    Args:
        stream: An open file. It can be anywhere.
        name: The name of the input, for messages.
        fields: The column of the texts, or those of the queries and the texts of pairs.
        window: The most rows of a window.
        first_row: The row to begin with.
        keep: The columns to read beside these: none, all as JSON records, or all as a table.
        keep_failed: Whether a row without a text is a row that says so, instead of an error.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        UnsupportedError: The stream cannot be read from the middle.
        InvalidInputError: A column does not exist or does not hold texts, or a row has no text; ``index`` is the row.
        OSError: The file is damaged.
    """
    pa = import_pyarrow()
    if not stream.seekable() or name.endswith(".gz"):
        raise UnsupportedError(
            f"{name} cannot be read as Parquet: its end has to be read first. Unpack it, or name the file instead of "
            "standard input."
        )
    size = stream.seek(0, os.SEEK_END)
    try:
        file = pa.parquet.ParquetFile(stream, buffer_size=_READ_BUFFER, pre_buffer=False)
        _check_columns(pa, file.schema_arrow, name, fields, keep)
        total, groups, skipped = file.metadata.num_rows, list(range(file.num_row_groups)), first_row
        while groups and skipped >= file.metadata.row_group(groups[0]).num_rows:
            skipped -= file.metadata.row_group(groups.pop(0)).num_rows
        columns = list(fields) if keep == "nothing" else None
        index = first_row
        if not total and keep == "table":
            yield Window([], size, _decoded(pa, pa.RecordBatch.from_pylist([], file.schema_arrow)))
        for group in groups:
            facts = file.metadata.row_group(group)
            most = max(1, min(window, _WINDOW_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
            for batch in file.iter_batches(batch_size=most, row_groups=[group], columns=columns, use_threads=False):
                if skipped >= batch.num_rows:
                    skipped -= batch.num_rows
                    continue
                batch, skipped = batch.slice(skipped), 0
                problems: dict[int, str] | None = {} if keep_failed else None
                texts = [_texts(batch.column(field), name, field, index, problems) for field in fields]
                pairs: Sequence[Text] = texts[0] if len(fields) == 1 else list(zip(*texts, strict=True))
                records = _records(batch, name, index) if keep == "records" else [None] * len(pairs)
                rows = [
                    Row(text, record, (problems or {}).get(position))
                    for position, (text, record) in enumerate(zip(pairs, records, strict=True))
                ]
                index += len(rows)
                yield Window(rows, size * index // total, _decoded(pa, batch) if keep == "table" else None)
    except pa.ArrowNotImplementedError as error:
        raise UnsupportedError(f"{name} has a column that pyarrow does not read: {error}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise OSError(
            f"{name} is not an intact Parquet file: {error}. Write it again, or download it again."
        ) from error


def _check_columns(pa: Any, schema: Any, name: str, fields: Sequence[str], keep: Keep) -> None:
    twice = sorted({column for column in schema.names if schema.names.count(column) > 1} - {*fields})
    if twice and keep != "nothing":
        raise InvalidInputError(
            f"{name} has two columns {json.dumps(twice[0])}, and the output could not keep both. Rename one."
        )
    for field in fields:
        option = "--field" if field == fields[-1] else "--query-field"
        of_texts = [column.name for column in schema if _holds_texts(pa, column.type)]
        others = (
            f"Its columns of texts: {', '.join(map(json.dumps, of_texts[:20])) or 'none'}. Choose one with {option}."
        )
        if schema.names.count(field) != 1:
            found = "two columns" if field in schema.names else "no column"
            raise InvalidInputError(f"{name} has {found} {json.dumps(field)}. {others}")
        if not _holds_texts(pa, schema.field(field).type):
            raise InvalidInputError(
                f"{name} has no texts in the column {json.dumps(field)}, but {schema.field(field).type}. {others}"
            )


def _holds_texts(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind))


def _records(batch: Any, name: str, first_row: int) -> list[str]:
    """The rows as JSON objects; an error names the first row, counted from 1."""
    try:
        return [_as_json(record) for record in batch.to_pylist()]
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{name}: a text of a row from {first_row + 1} to {first_row + batch.num_rows} is not valid UTF-8 "
            f"({error.reason}). Write it again, or to a .npy file, which does not have the other columns.",
            first_row,
        ) from error


def _texts(column: Any, name: str, field: str, first_row: int, problems: dict[int, str] | None) -> list[str]:
    """The texts of a column. An error names the row, counted from 1; with ``problems``, it is noted there instead."""
    texts = []
    for position, value in enumerate(column):
        where = f"{name}, row {first_row + position + 1}"
        try:
            text = value.as_py()
            if text is None:
                raise ValueError(
                    f"the column {json.dumps(field)} has no value. Drop such rows first, or put an empty text there."
                )
            texts.append(check_text(text, "text"))
        except ValueError as error:
            problem = str(error)
            if isinstance(error, UnicodeDecodeError):
                problem = f"the column {json.dumps(field)} is not valid UTF-8 ({error.reason})."
            if problems is None:
                raise InvalidInputError(f"{where}: {problem}", first_row + position) from error
            problems.setdefault(position, f"{where}: {problem}")
            texts.append("")
    return texts


def _decoded(pa: Any, batch: Any) -> Any:
    """The same batch with plain columns in place of dictionaries, which differ from window to window."""
    arrays = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _as_json(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(record), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, bytes as Base64, NaN as null, others as texts."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def window_bytes(window: Window, fields: Sequence[str], results: Mapping[str, Any]) -> bytes:
    """A window with columns of results, as a part file has it: the length, and an Arrow stream.

    Args:
        window: The rows.
        fields: The names of their texts, for rows without a record.
        results: Arrow arrays by name. They replace columns of the window.
    """
    pa = import_pyarrow()
    if window.table is not None:
        table = window.table
        kept = {column.name: (column, table.column(column.name)) for column in table.schema}
    else:
        records = [_record(row, fields) for row in window.rows]
        names = dict.fromkeys(name for record in records for name in record)
        kept = {name: _column(pa, name, [record.get(name) for record in records]) for name in names}
    kept = {name: found for name, found in kept.items() if name not in results}
    added = {name: (pa.field(name, array.type), array) for name, array in results.items()}
    columns = [*kept.values(), *added.values()]
    batch = pa.RecordBatch.from_arrays(
        [array for _, array in columns], schema=pa.schema([field for field, _ in columns])
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream = bytes(sink.getvalue())
    return len(stream).to_bytes(_LENGTH_BYTES, "little") + stream


def _record(row: Row, fields: Sequence[str]) -> Mapping[str, Any]:
    if row.record is None:
        texts = [row.text] if isinstance(row.text, str) else row.text
        return dict(zip(fields, texts, strict=True))
    record: Mapping[str, Any] = json.loads(row.record)
    return record


def _column(pa: Any, name: str, values: Sequence[Any]) -> tuple[Any, Any]:
    """A column of JSON values: of their common type, or of JSON texts."""
    try:
        array = pa.array(values)
        # Arrow would make 1.0 of a true between floats.
        if not any(isinstance(value, bool) for value in values) or pa.types.is_boolean(array.type):
            return pa.field(name, array.type), array
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    return pa.field(name, pa.string(), metadata=_AS_JSON), _json_texts(pa, values)


def _json_texts(pa: Any, values: Sequence[Any]) -> Any:
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def write_parquet(part: Path, target: BinaryIO, results: Mapping[str, Any]) -> None:
    """Make the Parquet file of all windows of a part file.

    Windows can have different types for a column of JSON. A common one is taken, as float of integers and floats;
    values without one become JSON texts.

    Args:
        part: The part file.
        target: The file to write.
        results: Types of the columns of results, for a part file without windows.
    """
    pa = import_pyarrow()
    fields: dict[str, Any] = {}
    for batch in _windows(pa, part):
        for field in batch.schema:
            fields[field.name] = field if field.name not in fields else _common(pa, fields[field.name], field)
    # Columns that first appeared later stand before the results all the same.
    names = [name for name in fields if name not in results] + list(results)
    schema = pa.schema([fields.get(name) or pa.field(name, results[name]) for name in names])
    with pa.parquet.ParquetWriter(target, _without_marks(pa, schema), use_dictionary=False) as writer:
        pending: list[Any] = []
        for batch in _windows(pa, part):
            pending.append(_fitted(pa, batch, schema))
            if sum(each.nbytes for each in pending) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(pending))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_batches(pending))


def _windows(pa: Any, part: Path) -> Iterator[Any]:
    with part.open("rb") as file:
        while head := file.read(_LENGTH_BYTES):
            yield from pa.ipc.open_stream(file.read(int.from_bytes(head, "little")))


def _common(pa: Any, one: Any, other: Any) -> Any:
    if one.equals(other, check_metadata=True):
        return one
    if _is_json(one) or _is_json(other):
        return pa.field(one.name, pa.string(), metadata=_AS_JSON)
    try:
        schemas = [pa.schema([field]) for field in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:
        return pa.field(one.name, pa.string(), metadata=_AS_JSON)


def _is_json(field: Any) -> bool:
    return bool((field.metadata or {}).get(b"stonnx") == b"json")


def _without_marks(pa: Any, schema: Any) -> Any:
    return pa.schema([field.remove_metadata() if _is_json(field) else field for field in schema])


def _fitted(pa: Any, batch: Any, schema: Any) -> Any:
    """A batch with the columns of the schema."""
    arrays = []
    for field in schema:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        own, array = batch.schema.field(field.name), batch.column(field.name)
        if _is_json(field) and not _is_json(own):
            array = _json_texts(pa, array.to_pylist())
        elif own.type != field.type:
            array = pa.array(array.to_pylist(), field.type)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=_without_marks(pa, schema))


def parquet_shape(path: Path, column: str) -> tuple[int, int | None]:
    """Rows of a Parquet file, and the width of a column: None of lists of different lengths, 0 of numbers.

    Raises:
        ValueError: It is not an intact Parquet file.
    """
    pa = import_pyarrow()
    try:
        file = pa.parquet.ParquetFile(path)
    except OSError as error:
        raise ValueError(str(error)) from error
    with file:
        kind = file.schema_arrow.field(column).type
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else None if pa.types.is_list(kind) else 0
        return file.metadata.num_rows, width
