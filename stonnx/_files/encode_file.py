"""``stonnx encode``: a file of texts becomes a file of results, in constant memory, resumable, never torn."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stonnx._arguments import check_integer
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._files import inputs
from stonnx._files.encode_rows import encode_rows
from stonnx._files.formats import InputFormat, read_windows
from stonnx._files.part_file import (
    SavePoint,
    append,
    finish,
    open_part,
    part_paths,
    publish,
    refuse_existing,
    resume,
    save,
)
from stonnx._files.results import DTYPES, EMBEDDING, Kind, OutputFormat, Shape, checked
from stonnx._files.writers import OUTPUT_SUFFIXES, WRITERS

# Enough to tell apart inputs of the same size and modification time. Hashing everything could take minutes.
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodeFileReport:
    """The report of a run of :func:`encode_file`.

    ``rows`` counts all rows of the output; ``resumed_rows`` of them came from an earlier run that was interrupted.
    ``dimension`` is the width of a row, 0 for one score each.
    ``restarted`` says why an earlier run could not be continued, or is None. ``failed_rows`` of the rows do not have a
    result, and their error field says why.
    """

    rows: int
    resumed_rows: int
    dimension: int
    seconds: float
    output: Path
    restarted: str | None = None
    failed_rows: int = 0


def encode_file(
    encode: Callable[[list[Any]], Any],
    source: Path | None,
    output: Path,
    *,
    identity: Mapping[str, object],
    kind: Kind = EMBEDDING,
    input_format: InputFormat | None = None,
    output_format: OutputFormat | None = None,
    text_field: str = "text",
    query_field: str | None = None,
    error_field: str | None = None,
    window: int = 4096,
    overwrite: bool = False,
    dimension: int | None = None,
    dtype: str = "float32",
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> EncodeFileReport:
    r"""Encode every row of a file of texts into a file of results.

    A run that was interrupted, even by ``kill -9`` or a full disk, is continued by the next run that has an equal
    ``identity``, formats, ``text_field`` and input (size, modification time, SHA-256 of the first MiB). Standard input
    and pipes start over.

    Args:
        encode: Turns n texts into the results that ``kind`` describes, of float32, int8 or uint8; deterministic. Never
            called with [].
        source: UTF-8 text, one row a line (``\n`` or ``\r\n``), JSONL, a CSV or TSV table whose first row names the
            columns, all unpacked if the name ends in .gz; or Parquet. None: read ``stdin``.
        output: The file to write: ``.npy`` [rows, dim]; ``.safetensors`` with a tensor of that shape; ``.npz`` for
            sparse vectors; ``.jsonl``, each record plus the fields of ``kind``, which replace existing ones; or
            ``.parquet``, all columns plus those. A row that is a bare text has it under ``text_field``.
        identity: Everything that decides the results, as JSON values: the model's hash, the options.
        kind: Dense vectors, sparse vectors, or scores of pairs.
        input_format: None: ``jsonl`` for .jsonl and .ndjson, ``csv`` for .csv, ``tsv`` for .tsv and .tab, ``parquet``
            for .parquet and .pq, otherwise ``lines``.
        output_format: None: by the suffix of ``output``.
        text_field: The field of a JSONL object, or the column of a table, that holds the text.
        query_field: The one that holds the query, for pairs: ``encode`` gets (query, text) then.
        error_field: None: a row that does not have a text that can be encoded is an error. A name: such a row gets null
            for a result, and this field says why; it is null for the other rows. For JSONL and Parquet outputs.
        window: Texts held and encoded at a time; it bounds the memory. It may differ between a run and its resumption.
        overwrite: Replace an existing ``output``.
        dimension: The width of the output when the input is empty; None: 0. Otherwise unused.
        dtype: The dtype of the output when the input is empty. Otherwise unused.
        stdin: The stream to read when ``source`` is None; None: standard input.
        progress: Called after each window with (bytes read, bytes in all), for streams with (rows, None).

    Raises:
        InvalidArgumentError: An argument is outside what is allowed.
        InvalidInputError: A line is not UTF-8 or not allowed JSON; ``index`` is its row.
        UnsupportedError: The kind of input is not supported, or a result for JSONL output is not finite.
        MissingDependencyError: Parquet needs pyarrow.
        FileExistsError: ``output`` exists, and ``overwrite`` is False.
        BlockingIOError: Another run is writing the same output.
        OSError: A file cannot be read or written; the subclass and ``errno`` say why.
        RuntimeError: ``encode`` returned another result than documented above.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> directory = Path(tempfile.mkdtemp())
        >>> _ = (directory / "texts.txt").write_text("a\nbb\n\n", encoding="utf-8")
        >>> def encode(texts):
        ...     return np.array([[len(text), 0.5] for text in texts], np.float32)
        >>> output = directory / "texts.npy"
        >>> report = encode_file(encode, directory / "texts.txt", output, identity={"model": "lengths"})
        >>> report.rows, report.dimension
        (3, 2)
        >>> np.load(output, mmap_mode="r").tolist()
        [[1.0, 0.5], [2.0, 0.5], [0.0, 0.5]]
    """
    started = time.perf_counter()
    window = check_integer("window", window)
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    read_as, write_as = _formats(kind, source, output, input_format, output_format)
    writer, fields = WRITERS[write_as], _fields(text_field, query_field)
    _check_error_field(error_field, kind, fields, write_as)
    writer.check()
    # A link stays as it is: the run writes the file that it points to.
    target = output.resolve() if output.is_symlink() else output
    if source is not None and source.resolve() in {path.resolve() for path in (target, *part_paths(target))}:
        raise InvalidArgumentError(f"{source} would be both read and written. Name another output.")
    refuse_existing(target, overwrite)

    with inputs.open_source(source, stdin) as stream:
        fingerprint = _fingerprint(stream) if source is not None else None
        format_facts = {"input": read_as, "output": write_as, "text_field": text_field, "query_field": query_field}
        format_facts["error_field"] = error_field
        settings = _settings(identity, fingerprint, format_facts)
        with open_part(target) as to:
            resumed, restarted = resume(to, settings, writer.header_size)
            done = resumed or SavePoint(0, 0, writer.header_size, dimension or 0, dtype)
            if resumed is not None:
                stream.seek(done.input_bytes)
            for rows in read_windows(
                stream,
                read_as,
                name=str(source or "standard input"),
                text_field=text_field,
                query_field=query_field,
                window=window,
                first_row=done.rows,
                offset=done.input_bytes,
                keep=writer.keep,
                keep_failed=error_field is not None,
            ):
                if not rows.rows:
                    append(to, writer.body(kind, None, rows, fields, error_field))
                    continue
                rows, results = encode_rows(encode, rows, kind, error_field)
                shape = checked(kind, results, len(rows.rows))
                _check_unchanged(shape, done)
                length = append(to, writer.body(kind, results, rows, fields, error_field))
                failed = done.failed_rows + sum(row.problem is not None for row in rows.rows)
                done = SavePoint(done.rows + shape.rows, rows.end, length, shape.width, shape.dtype, failed)
                if settings is not None:
                    save(to, settings, done)
                if progress is not None:
                    known = fingerprint is not None and source is not None and not inputs.is_compressed(source)
                    progress(*((rows.end, fingerprint["size"]) if known and fingerprint else (done.rows, None)))
            if source is not None and fingerprint is not None and _changed(stream, fingerprint):
                raise InvalidInputError(
                    f"{source} changed while it was encoded, so its results could be of both contents. Run the same "
                    "command again when nothing writes to it."
                )
            made = Shape(done.rows, done.dimension, done.dtype)
            write = writer.finish
            if write is None:
                publish(to, writer.header(kind, made), overwrite)
            else:
                finish(to, lambda part, target: write(kind, made, part, target, error_field), overwrite)
    resumed_rows = resumed.rows if resumed is not None else 0
    seconds = time.perf_counter() - started
    return EncodeFileReport(done.rows, resumed_rows, done.dimension, seconds, output, restarted, done.failed_rows)


def encode_to_stream(
    encode: Callable[[list[Any]], Any],
    source: Path | None,
    sink: BinaryIO,
    *,
    kind: Kind = EMBEDDING,
    input_format: InputFormat | None = None,
    text_field: str = "text",
    query_field: str | None = None,
    error_field: str | None = None,
    window: int = 4096,
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Write the JSONL of :func:`encode_file` to a stream, row by row, and return the number of rows.

    Raises:
        InvalidInputError, UnsupportedError, OSError: As for :func:`encode_file`.
    """
    read_as, rows_done = inputs.input_format(source, input_format), 0
    name, fields = str(source or "standard input"), _fields(text_field, query_field)
    _check_error_field(error_field, kind, fields, "jsonl")
    with inputs.open_source(source, stdin) as stream:
        for rows in read_windows(
            stream,
            read_as,
            name=name,
            text_field=text_field,
            query_field=query_field,
            window=window,
            keep_failed=error_field is not None,
        ):
            rows, results = encode_rows(encode, rows, kind, error_field)
            checked(kind, results, len(rows.rows))
            for block in WRITERS["jsonl"].body(kind, results, rows, fields, error_field):
                sink.write(block)
            sink.flush()
            rows_done += len(rows.rows)
            if progress is not None:
                known = source is not None and source.is_file() and not inputs.is_compressed(source)
                progress(rows.end if known else rows_done, None)
    return rows_done


def _fields(text_field: str, query_field: str | None) -> tuple[str, ...]:
    if query_field == text_field:
        raise InvalidArgumentError(f"The query and the text cannot both be in the field {text_field!r}.")
    return (text_field,) if query_field is None else (query_field, text_field)


def _check_error_field(error_field: str | None, kind: Kind, fields: tuple[str, ...], write_as: OutputFormat) -> None:
    if error_field is None:
        return
    if write_as not in ("jsonl", "parquet"):
        raise InvalidArgumentError(
            f"A {write_as} file has no field {json.dumps(error_field)} for the rows without a result. Choose "
            "--output-format jsonl or parquet, or leave out --error-field."
        )
    if not error_field or error_field in (*fields, *kind.fields):
        raise InvalidArgumentError(
            f"The field for errors is named {json.dumps(error_field)}; it must have a name that is not one of "
            f"{', '.join(map(json.dumps, (*fields, *kind.fields)))}."
        )


def _formats(
    kind: Kind,
    source: Path | None,
    output: Path,
    input_format: InputFormat | None,
    output_format: OutputFormat | None,
) -> tuple[InputFormat, OutputFormat]:
    read_as = inputs.input_format(source, input_format)
    if output_format is None:
        output_format = OUTPUT_SUFFIXES.get(output.suffix.lower())
        if output_format is None:
            if output.is_dir():
                raise InvalidArgumentError(
                    f"{output} is a directory. For a file in it, end its name with /: -o {output}/"
                )
            raise InvalidArgumentError(
                f"{output} does not say in its name what to write; .{', .'.join(kind.formats)} do. "
                f"Rename it, choose one with --output-format: {', '.join(kind.formats)}, or end it with / to have a "
                "directory."
            )
    if output_format not in kind.formats:
        holds = f"{kind.shape} fits into" if output_format in WRITERS else "allowed are"
        raise InvalidArgumentError(f"output_format is {output_format!r}; {holds} {', '.join(kind.formats)}.")
    return read_as, output_format


def _fingerprint(stream: BinaryIO) -> dict[str, Any] | None:
    """Facts that identify an input without reading all of it; None for a pipe, which cannot be read twice."""
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        return None
    start = hashlib.sha256(stream.read(_FINGERPRINT_BYTES)).hexdigest()
    stream.seek(0)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256_of_first_mib": start}


def _changed(stream: BinaryIO, fingerprint: Mapping[str, Any]) -> bool:
    """Whether something has written to an input since its fingerprint was taken."""
    status = os.fstat(stream.fileno())
    return (status.st_size, status.st_mtime_ns) != (fingerprint["size"], fingerprint["mtime_ns"])


def _settings(
    identity: Mapping[str, object], fingerprint: dict[str, Any] | None, formats: Mapping[str, object]
) -> dict[str, Any] | None:
    """The values that must be equal to continue a run, or None if it can never be continued."""
    try:
        known = json.loads(json.dumps(dict(identity), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"identity cannot become JSON ({error}). Use strings, numbers, booleans, None, and lists or dicts of them."
        ) from error
    return None if fingerprint is None else {"identity": known, "format": dict(formats), "input": fingerprint}


def _check_unchanged(now: Shape, before: SavePoint) -> None:
    """Check that all windows have one width and one dtype."""
    if before.rows and (now.width, now.dtype) != (before.dimension, before.dtype):
        raise RuntimeError(
            f"Internal error: encode returned {now.width} dimensions of {now.dtype} after row {before.rows}; all rows "
            f"before have {before.dimension} of {before.dtype}."
        )
