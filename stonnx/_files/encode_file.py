"""``stonnx encode``: a text file of any size becomes an embeddings file, in constant memory, resumable, never torn."""

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

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidArgumentError
from stonnx._files import inputs
from stonnx._files.formats import (
    DTYPES,
    OUTPUT_SUFFIXES,
    WRITERS,
    InputFormat,
    OutputFormat,
    read_windows,
)
from stonnx._files.part_file import SavePoint, append, open_part, part_paths, publish, refuse_existing, resume, save

# Enough to tell apart inputs of the same size and modification time. Hashing everything could take minutes.
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodeFileReport:
    """The report of a run of :func:`encode_file`.

    ``rows`` counts all rows of the output; ``resumed_rows`` of them came from an earlier run that was interrupted.
    ``restarted`` says why an earlier run could not be continued, or is None.
    """

    rows: int
    resumed_rows: int
    dimension: int
    seconds: float
    output: Path
    restarted: str | None = None


def encode_file(
    encode: Callable[[list[str]], npt.NDArray[Any]],
    source: Path | None,
    output: Path,
    *,
    identity: Mapping[str, object],
    input_format: InputFormat | None = None,
    output_format: OutputFormat | None = None,
    text_field: str = "text",
    window: int = 4096,
    overwrite: bool = False,
    dimension: int | None = None,
    dtype: str = "float32",
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> EncodeFileReport:
    r"""Encode every row of a text file into an embeddings file.

    A run that was interrupted, even by ``kill -9`` or a full disk, is continued by the next run that has an equal
    ``identity``, formats, ``text_field`` and input (size, modification time, SHA-256 of the first MiB). Standard input
    and pipes start over.

    Args:
        encode: Turns n texts into an array [n, dim] of float32, int8 or uint8; deterministic. Never called with [].
        source: UTF-8 text, one row a line (``\n`` or ``\r\n``), JSONL, or a CSV or TSV table whose first row names the
            columns; unpacked if the name ends in .gz. None: read ``stdin``.
        output: The file to write: ``.npy`` [rows, dim]; ``.safetensors`` with the tensor ``embeddings`` [rows, dim];
            or ``.jsonl``, each record plus an ``embedding`` list, which replaces an existing one. A row that is not a
            JSON object becomes ``{text_field: text, "embedding": [...]}``.
        identity: Everything that decides the embeddings, as JSON values: the model's hash, the options.
        input_format: None: ``jsonl`` for .jsonl and .ndjson, ``csv`` for .csv, ``tsv`` for .tsv and .tab, otherwise
            ``lines``.
        output_format: None: by the suffix of ``output``.
        text_field: The field of a JSONL object, or the column of a table, that holds the text.
        window: Texts held and encoded at a time; it bounds the memory. It may differ between a run and its resumption.
        overwrite: Replace an existing ``output``.
        dimension: The width of the output when the input is empty; None: 0. Otherwise unused.
        dtype: The dtype of the output when the input is empty. Otherwise unused.
        stdin: The stream to read when ``source`` is None; None: standard input.
        progress: Called after each window with (bytes read, bytes in all), for streams with (rows, None).

    Raises:
        InvalidArgumentError: An argument is outside what is allowed.
        InvalidInputError: A line is not UTF-8 or not allowed JSON; ``index`` is its row.
        UnsupportedError: The kind of input is not supported, or an embedding for JSONL output is not finite.
        FileExistsError: ``output`` exists, and ``overwrite`` is False.
        BlockingIOError: Another run is writing the same output.
        OSError: A file cannot be read or written; the subclass and ``errno`` say why.
        RuntimeError: ``encode`` returned another result than documented above.

    Example:
        >>> import tempfile
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
    if window < 1:
        raise InvalidArgumentError(f"window is {window}; it must be 1 or more.")
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    read_as, write_as = _formats(source, output, input_format, output_format)
    writer = WRITERS[write_as]
    # A link stays as it is: the run writes the file that it points to.
    target = output.resolve() if output.is_symlink() else output
    if source is not None and source.resolve() in {path.resolve() for path in (target, *part_paths(target))}:
        raise InvalidArgumentError(f"{source} would be both read and written. Name another output.")
    refuse_existing(target, overwrite)

    with inputs.open_source(source, stdin) as stream:
        fingerprint = _fingerprint(stream) if source is not None else None
        settings = _settings(identity, fingerprint, input=read_as, output=write_as, text_field=text_field)
        with open_part(target) as to:
            resumed, restarted = resume(to, settings, writer.header_size)
            done = resumed or SavePoint(0, 0, writer.header_size, dimension or 0, dtype)
            if resumed is not None:
                stream.seek(done.input_bytes)
            for rows, end in read_windows(
                stream,
                read_as,
                name=str(source or "standard input"),
                text_field=text_field,
                window=window,
                first_row=done.rows,
                offset=done.input_bytes,
            ):
                vectors = _checked(encode([row.text for row in rows]), len(rows), done)
                length = append(to, writer.body(vectors, rows, text_field))
                done = SavePoint(done.rows + len(rows), end, length, vectors.shape[1], vectors.dtype.name)
                if settings is not None:
                    save(to, settings, done)
                if progress is not None:
                    known = fingerprint is not None and source is not None and not inputs.is_compressed(source)
                    progress(*((end, fingerprint["size"]) if known and fingerprint else (done.rows, None)))
            publish(to, writer.header(done.rows, done.dimension, done.dtype), overwrite)
    resumed_rows = resumed.rows if resumed is not None else 0
    return EncodeFileReport(done.rows, resumed_rows, done.dimension, time.perf_counter() - started, output, restarted)


def encode_to_stream(
    encode: Callable[[list[str]], npt.NDArray[Any]],
    source: Path | None,
    sink: BinaryIO,
    *,
    input_format: InputFormat | None = None,
    text_field: str = "text",
    window: int = 4096,
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Write the JSONL of :func:`encode_file` to a stream, row by row, and return the number of rows.

    Raises:
        InvalidInputError, UnsupportedError, OSError: As for :func:`encode_file`.
    """
    read_as, rows_done = inputs.input_format(source, input_format), 0
    name = str(source or "standard input")
    with inputs.open_source(source, stdin) as stream:
        for rows, _ in read_windows(stream, read_as, name=name, text_field=text_field, window=window):
            vectors = encode([row.text for row in rows])
            for block in WRITERS["jsonl"].body(vectors, rows, text_field):
                sink.write(block)
            sink.flush()
            rows_done += len(rows)
            if progress is not None:
                progress(rows_done, None)
    return rows_done


def _formats(
    source: Path | None, output: Path, input_format: InputFormat | None, output_format: OutputFormat | None
) -> tuple[InputFormat, OutputFormat]:
    read_as = inputs.input_format(source, input_format)
    if output_format is None:
        output_format = OUTPUT_SUFFIXES.get(output.suffix.lower())
        if output_format is None:
            raise InvalidArgumentError(
                f"{output} does not say in its name what to write; {', '.join(OUTPUT_SUFFIXES)} do. "
                f"Rename it, or choose one with --output-format: {', '.join(WRITERS)}."
            )
    if output_format not in WRITERS:
        raise InvalidArgumentError(f"output_format is {output_format!r}; allowed are {', '.join(WRITERS)}.")
    return read_as, output_format


def _fingerprint(stream: BinaryIO) -> dict[str, Any] | None:
    """Facts that identify an input without reading all of it; None for a pipe, which cannot be read twice."""
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        return None
    start = hashlib.sha256(stream.read(_FINGERPRINT_BYTES)).hexdigest()
    stream.seek(0)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256_of_first_mib": start}


def _settings(
    identity: Mapping[str, object], fingerprint: dict[str, Any] | None, **formats: str
) -> dict[str, Any] | None:
    """The values that must be equal to continue a run, or None if it can never be continued."""
    try:
        known = json.loads(json.dumps(dict(identity), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"identity cannot become JSON ({error}). Use strings, numbers, booleans, None, and lists or dicts of them."
        ) from error
    return None if fingerprint is None else {"identity": known, "format": formats, "input": fingerprint}


def _checked(vectors: npt.NDArray[Any], rows: int, done: SavePoint) -> npt.NDArray[Any]:
    """Check the result of ``encode`` against its contract: a missing row would shift every embedding after it."""
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or len(vectors) != rows:
        found = f"shape {list(vectors.shape)}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise RuntimeError(f"Internal error: encode returned {found} for {rows} texts, not an array [{rows}, dim].")
    name = vectors.dtype.name
    if name not in DTYPES:
        raise RuntimeError(f"Internal error: encode returned dtype {name}; allowed are {', '.join(DTYPES)}.")
    if done.rows and (vectors.shape[1], name) != (done.dimension, done.dtype):
        raise RuntimeError(
            f"Internal error: encode returned {vectors.shape[1]} dimensions of {name} after row {done.rows}; all rows "
            f"before have {done.dimension} of {done.dtype}."
        )
    return vectors
