"""Many input files, and this process's share of them: an output file for each, named after its contents.

The name of an output has a hash of the input's content, the bundle and the options. So an existing file is complete and
right, and the same command again does only the missing files: under any scheduler, after any kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stonnx._errors import InvalidArgumentError, StonnxError, UnsupportedError
from stonnx._files import inputs
from stonnx._files.encode_file import EncodeFileReport
from stonnx._files.part_file import remove_leftovers

# Of the name of an input, so much is in the name of its output: file systems allow 255 bytes, with all endings.
_NAME_BYTES = 180


@dataclass(frozen=True)
class Shard:
    """Share number ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/8"`` is the second of eight.

        Raises:
            InvalidArgumentError: It has another form, or the index is outside the count.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise InvalidArgumentError(
                f"A shard is i/n with i from 1 to n, such as 1/8 to 8/8 for eight processes; got {text!r}."
            )
        return cls(index, count)

    def of(self, sources: Iterable[Path]) -> list[Path]:
        """The files of this shard: every ``count``-th of the sorted list, so that all processes agree."""
        return sorted(set(sources))[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class FileResult:
    """The result for one input.

    ``error`` is None if its output exists. ``rows`` or ``dimension`` is None if an earlier run made it, and neither the
    output nor the manifest of that run says it. ``dimension`` is 0 for one score a row. ``failed_rows`` counts rows
    without a result, whose error field says why; None as for ``rows``.
    """

    input: str
    output: str | None
    rows: int | None = None
    dimension: int | None = None
    error: str | None = None
    failed_rows: int | None = None


@dataclass(frozen=True)
class ShardReport:
    """The report of :func:`encode_files`: the results in the order of the files, and the file that lists them."""

    manifest: Path
    results: Sequence[FileResult] = field(default_factory=tuple)

    @property
    def failed(self) -> list[FileResult]:
        """The inputs without an output."""
        return [result for result in self.results if result.error is not None]


def encode_files(
    encode: Callable[[Path, Path], EncodeFileReport],
    sources: Sequence[Path],
    directory: Path,
    *,
    suffix: str,
    identity: Mapping[str, object],
    shard: Shard,
    shape: Callable[[Path], tuple[int | None, int | None]],
    told: Callable[[FileResult], object] = lambda result: None,
) -> ShardReport:
    """Encode the files of a shard into a directory. A failed file is noted, and the others go on.

    Args:
        encode: Makes the complete output (second argument) of an input, or none.
        sources: All files, of all shards.
        directory: The directory for outputs, made if it is missing. All shards may share it.
        suffix: The suffix of the outputs, as ``.npy``.
        identity: Everything that decides the embeddings, except the content of the input, as JSON values.
        shard: The share of the files to do here.
        shape: Reads rows and dimensions from an output, None if it does not say them; raises ValueError or OSError if
            the output is not complete.
        told: Called with the result of each file as soon as it is known.

    Returns:
        The report. ``shard-i-of-n.json`` has the same, and is written after each file.

    Raises:
        InvalidArgumentError: ``directory`` is a file.
        OSError: The directory cannot be made, or the manifest cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgumentError(
            f"{directory} is a file, is below one, or is a link to nothing. Several inputs need a directory: "
            "-o DIRECTORY"
        ) from error
    manifest = directory / f"shard-{shard.index}-of-{shard.count}.json"
    before = _read(manifest)
    earlier = {result.output: result for result in before}
    results: list[FileResult] = []
    todo = shard.of(sources)
    # Until the end, it is not complete, whatever an earlier run said of earlier inputs.
    _write(manifest, shard, before, complete=False)
    for position, source in enumerate(todo, start=1):
        result = _encode_one(encode, source, directory, suffix, identity, shape)
        if result.error is None and result.output in earlier:
            known = earlier[result.output]
            rows = known.rows if result.rows is None else result.rows
            dimension = known.dimension if result.dimension is None else result.dimension
            failed = known.failed_rows if result.failed_rows is None else result.failed_rows
            result = FileResult(str(source), result.output, rows, dimension, failed_rows=failed)
        results.append(result)
        remaining = {str(later) for later in todo[position:]}
        later_ones = [entry for entry in before if entry.input in remaining]
        _write(manifest, shard, [*results, *later_ones], complete=False)
        told(result)
    _write(manifest, shard, results, complete=all(result.error is None for result in results))
    return ShardReport(manifest, tuple(results))


def output_name(source: Path, suffix: str, identity: Mapping[str, object]) -> str:
    """The name of an output: the name of the input, and a hash of its content and of ``identity``.

    Raises:
        UnsupportedError: The input is a pipe or a device, which cannot be read twice.
        OSError: The input cannot be read.
    """
    # Asked before it is opened: that would wait until a program writes to the pipe.
    if source.exists() and not source.is_file() and not source.is_dir():
        raise UnsupportedError(
            f"{source} is a pipe or a device, which can be read once only, and the name of its output needs its "
            "content first. Write it to a file, or encode it alone: -o FILE"
        )
    with inputs.open_raw(source) as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    told = json.dumps({"content": content, **identity}, sort_keys=True, ensure_ascii=True)
    name = os.fsdecode(os.fsencode(source.name)[:_NAME_BYTES])
    return f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}{suffix}"


def _encode_one(
    encode: Callable[[Path, Path], EncodeFileReport],
    source: Path,
    directory: Path,
    suffix: str,
    identity: Mapping[str, object],
    shape: Callable[[Path], tuple[int | None, int | None]],
) -> FileResult:
    try:
        before = _changes(source)
        output = directory / output_name(source, suffix, identity)
        if os.path.lexists(output):
            return _existing(source, output, shape)
        try:
            report = encode(source, output)
        except FileExistsError:
            # Another process may have been faster: the same name means the same file. Other files can be in the way.
            if not output.is_file():
                raise
            return _existing(source, output, shape)
        if _changes(source) != before:
            output.unlink()  # its name is that of another content
            raise OSError(f"{source} changed while it was encoded. Run the same command again.")
    except (StonnxError, OSError) as error:
        return FileResult(str(source), None, error=str(error))
    except (RuntimeError, ValueError, LookupError, MemoryError, NotImplementedError) as error:
        # A fault of stonnx or of a library for this input must not stop the others.
        return FileResult(str(source), None, error=f"{type(error).__name__}: {error}")
    return FileResult(str(source), output.name, report.rows, report.dimension, failed_rows=report.failed_rows)


def _changes(source: Path) -> object:
    """A value that differs if the file was replaced or written to; None if it is not there."""
    with suppress(OSError):
        status = source.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _existing(source: Path, output: Path, shape: Callable[[Path], tuple[int | None, int | None]]) -> FileResult:
    """The result of an output that is there. Only others than stonnx leave one that is not complete."""
    try:
        if not output.is_file():
            raise ValueError("it is not a file")
        rows, dimension = shape(output)
    except (ValueError, KeyError, OSError) as error:
        problem = f"{output} is there and is not complete ({error}). Delete it, and run the same command again."
        return FileResult(str(source), None, error=problem)
    remove_leftovers(output)
    return FileResult(str(source), output.name, rows, dimension)


def _read(manifest: Path) -> list[FileResult]:
    """The results of an earlier run; empty if there was none, or if its file cannot be read."""
    try:
        return [FileResult(**entry) for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(manifest: Path, shard: Shard, results: Sequence[FileResult], *, complete: bool) -> None:
    data: dict[str, Any] = {
        "shard": str(shard),
        "complete": complete,
        "files": [asdict(result) for result in results],
    }
    # A new file with an unpredictable name, so that nobody can have planted a link there.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{manifest.name}.", dir=manifest.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=2) + "\n")
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, manifest)
    except BaseException:
        os.unlink(temporary)
        raise
