"""Input files of texts: the format that a name stands for, and the opening of such a file."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from stonnx._errors import InvalidArgumentError, UnsupportedError
from stonnx._files.formats import INPUT_FORMATS, INPUT_SUFFIXES, InputFormat

_READ_BUFFER = 1 << 20
_COMPRESSED = ".gz"

# Kinds of files that are not supported, and a way to convert each.
_UNPACK = "Unpack it first, or compress with gzip, which is read as it is."
_TABLE = "Save it as CSV, or as JSONL: pandas.read_{}(FILE).to_json(FILE, orient='records', lines=True)"
_REMEDIES: Mapping[str, str] = {
    ".json": "Write one record a line: jq -c '.[]' FILE.json > FILE.jsonl. If it is so already: --input-format jsonl",
    **dict.fromkeys((".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"), _UNPACK),
    **{f".{kind}": _TABLE.format(kind) for kind in ("feather", "orc")},
    ".arrow": _TABLE.format("feather"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _TABLE.format("excel")),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".odt", ".epub", ".rtf"), "Extract its text first, one text a line."),
    **dict.fromkeys(
        (".npy", ".npz", ".safetensors", ".onnx", ".bin", ".pt"), "It holds numbers. Pass a file of texts."
    ),
}


def input_format(source: Path | None, chosen: InputFormat | None = None) -> InputFormat:
    """The format of an input: the chosen one, or the one that its name stands for. None, standard input, has lines.

    Raises:
        InvalidArgumentError: The format does not exist.
        UnsupportedError: The name stands for a kind of file that is not supported; the message says how to convert it.
    """
    if chosen is not None:
        if chosen not in INPUT_FORMATS:
            raise InvalidArgumentError(f"input_format is {chosen!r}; allowed are {', '.join(INPUT_FORMATS)}.")
        return chosen
    if source is None:
        return "lines"
    name = Path(source.stem) if is_compressed(source) else source
    suffix = name.suffix.lower()
    if suffix in _REMEDIES:
        raise UnsupportedError(f"stonnx does not read {source} as it is. {_REMEDIES[suffix]}")
    if INPUT_SUFFIXES.get(suffix) == "parquet" and name != source:
        raise UnsupportedError(f"stonnx does not read {source} as it is. Unpack it first: gunzip {source}")
    return INPUT_SUFFIXES.get(suffix, "lines")


def is_compressed(source: Path) -> bool:
    """Whether a file is unpacked while it is read."""
    return source.suffix.lower() == _COMPRESSED


def open_raw(source: Path) -> io.BufferedReader:
    """A file opened for reading, as it is.

    Raises:
        OSError: It cannot be read; the message says what to do.
    """
    try:
        return cast(io.BufferedReader, source.open("rb", buffering=_READ_BUFFER))
    except OSError as error:
        problem = (
            f"Cannot read {source}: {error.strerror}. Check the path; it must be a file of texts that you may read."
        )
        raise OSError(error.errno, problem) from error


@contextmanager
def open_source(source: Path | None, stdin: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """A file opened for reading, unpacked if it ends in .gz; None is standard input.

    Raises:
        OSError: It cannot be read, or is damaged; the message says what to do.
    """
    if source is None:
        yield stdin if stdin is not None else sys.stdin.buffer
        return
    with open_raw(source) as raw:
        if not is_compressed(source):
            yield raw
            return
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise OSError(f"{source} is not an intact gzip file: {error}. Test it with: gzip -t {source}") from error
