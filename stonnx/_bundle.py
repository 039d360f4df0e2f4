"""The bundle: what lies in its directory, and the manifest ``stonnx.json`` that describes it.

This file is the contract between the exporter, which writes manifests, and the runtime, which reads them. A bundle is a
directory with one ONNX graph for each route (``model.onnx``), ``tokenizer.json``, ``stonnx.json`` and a model card.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from stonnx._errors import BundleFormatError, BundleIntegrityError

MANIFEST_NAME = "stonnx.json"
# Raised by one whenever an older runtime would read a newer manifest wrongly. New optional fields do not need it.
SCHEMA_VERSION = 1
# The route of every model that has only one graph.
DEFAULT_ROUTE = "default"

Task = Literal["embedding", "sparse", "rerank"]
# The class that runs each task, here and in sentence-transformers.
CLASS_OF_TASK: Mapping[Task, str] = {
    "embedding": "SentenceTransformer",
    "sparse": "SparseEncoder",
    "rerank": "CrossEncoder",
}

# The output that is the result of each task.
OUTPUT_OF_TASK: Mapping[str, str] = {
    "embedding": "sentence_embedding",
    "sparse": "sparse_embedding",
    "rerank": "logits",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """What was exported: a Hub id or path as it was given, and a hash that pins the weights."""

    name: str
    revision: str | None
    weights_sha256: str | None


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph. Dimensions are numbers or the names ``batch`` and ``sequence``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    # An optional input has a default inside the graph: bare onnxruntime runs without it.
    optional: bool = False


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become ids. It overrides the truncation and padding that ``tokenizer.json`` carries by itself."""

    file: str
    # None: texts are never cut.
    max_seq_length: int | None
    # The number of positions the network has: max_seq_length can be raised up to here. None: no such limit.
    max_positions: int | None
    pad_token_id: int
    pad_token_type_id: int
    truncation_side: Literal["left", "right"]
    add_special_tokens: bool
    special_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Scalar:
    """A scalar initializer of a graph: its dtype as numpy names it, and its value."""

    dtype: str
    value: float


@dataclass(frozen=True)
class Route:
    """One graph and the tokenizer in front of it. Attention masks are right-padded."""

    graph: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tokenizer: TokenizerSpec
    # int8 graphs only: values that take the place of initializers where the CPU adds two 8-bit products in 16 bits (x86
    # without VNNI), so that the sum cannot saturate.
    saturation_safe: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    """A module of the original chain that is now part of the graph, with its settings."""

    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fidelity:
    """How close the bundle is to the original: measured by the exporter, on the texts that it describes."""

    compared_with: str
    # Texts, or pairs of texts. A reranker's cosines are those of its logits over all pairs, label by label.
    texts: int
    cosine_mean: float
    cosine_min: float
    max_abs_difference: float
    # The largest difference of one text's vector between being encoded alone, in a batch, and with more padding.
    batch_invariance: float
    # Bounds by the names of these figures; a figure without a bound is for information.
    tolerance: Mapping[str, float]
    # The cosine that 99 of 100 texts exceed.
    cosine_p1: float | None = None
    # The lowest cosine between a text's vector alone, and in a batch or with more padding.
    invariance_cosine: float | None = None
    # The share of each text's ten nearest neighbours that stay the same, on average.
    neighbours_overlap: float | None = None
    # Sparse vectors: the share of active dimensions that both have, of those that either has.
    active_overlap: float | None = None
    # Rerankers: Spearman's correlation of a label's logits over all pairs, the lowest of all labels.
    rank_correlation: float | None = None
    # Where scored pairs were given: Spearman's correlation x 100 with the scores, the original's less the bundle's.
    spearman_drop: float | None = None


@dataclass(frozen=True)
class Probe:
    """Texts with the vectors that the exporter got, and the lowest cosine to them that a machine may reach."""

    file: str
    cosine_min: float


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file in the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of ``stonnx.json``."""

    schema_version: int
    task: Task
    source: Source
    architecture: str
    modules: tuple[Module, ...]
    routes: Mapping[str, Route]
    precision: str
    recipe: str
    # CPU features without which the graph would run wrongly, in the kernel's names. Empty: runs everywhere.
    requires_cpu_features: tuple[str, ...]
    embedding_dimension: int | None
    normalized: bool
    similarity_fn_name: str | None
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    # Rerankers only: number of labels, their names, and the activation that turns logits into scores.
    num_labels: int | None
    labels: tuple[str, ...]
    activation: str | None
    files: Mapping[str, FileEntry]
    exporter: Mapping[str, str]
    fidelity: Fidelity | None
    # The route of texts that are called neither query nor document.
    default_route: str = DEFAULT_ROUTE
    # Sparse vectors only: how many values of each the model keeps, unless told otherwise.
    max_active_dims: int | None = None
    # What stays in float32 for accuracy, by the names of the first results: matrix products of int8 bundles, operators
    # of fp16 ones.
    kept: tuple[str, ...] = ()
    # Whether a text that is called neither is refused: there are routes, and the default one is only the first of them.
    needs_task: bool = False
    # How often each rewrite of the graph fired, over all routes.
    rewrites: Mapping[str, int] = field(default_factory=dict)
    probe: Probe | None = None


class NewerSchemaError(BundleFormatError):
    """A manifest that only a newer stonnx can read: nothing is wrong with the bundle."""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``stonnx.json`` into a directory."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read and validate ``stonnx.json``.

    Raises:
        BundleFormatError: It is no JSON, lacks a field, has a field of another type, names a file outside the bundle,
            or was written with a newer schema.
    """
    path = directory / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # covers broken JSON and broken UTF-8
        raise BundleFormatError(f"{path} is not readable JSON ({error}). {_EXPORT_AGAIN}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleFormatError(f"{path} is no stonnx manifest: it has no schema_version. {_EXPORT_AGAIN}")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path} has schema_version {version}; this stonnx knows versions up to {SCHEMA_VERSION}. "
            "Upgrade with: pip install -U stonnx"
        )
    manifest = _decode(Manifest, data, path, "")
    for name in (*manifest.files, *_referenced_files(manifest)):
        # A manifest comes from outside: it may only ever name plain files beside itself.
        if Path(name).name != name or name in ("", ".", "..") or set(name) & {"\\", ":"} or not name.isprintable():
            raise BundleFormatError(f"{path} names {name!r}, which is no file directly inside the bundle.")
    for name in _referenced_files(manifest):
        if name not in manifest.files:
            raise BundleFormatError(f"{path} uses {name!r} without listing its hash under 'files'. {_EXPORT_AGAIN}")
        if manifest.files[name].size < 1:
            raise BundleFormatError(f"{path} lists {name!r} as a file of {manifest.files[name].size} bytes.")
    if manifest.default_route not in manifest.routes:
        raise BundleFormatError(f"{path} has the default route {manifest.default_route!r} but no graph for it.")
    for route_name, route in manifest.routes.items():
        limit = route.tokenizer.max_seq_length
        if limit is not None and not 1 <= limit < 2**31:
            raise BundleFormatError(
                f"{path}: routes.{route_name}.tokenizer.max_seq_length must be a number of tokens, found {limit}."
            )
    return manifest


def hash_files(directory: Path, names: typing.Iterable[str]) -> dict[str, FileEntry]:
    """Size and SHA-256 of files in a directory."""
    return {name: FileEntry((directory / name).stat().st_size, _sha256(directory / name)) for name in names}


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Hash every file of a bundle: it has to be there with the size and hash that the manifest has.

    Raises:
        BundleIntegrityError: A file is missing, truncated, changed, or cannot be read.
    """
    for name, entry in manifest.files.items():
        _verify_file(directory / name, entry)


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a file has its size and hash."""
    try:
        _verify_file(path, entry)
    except BundleIntegrityError:
        return False
    return True


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        found = path.stat()
        # A link may lead anywhere, as in the Hub cache, because the hash decides. But not to a device or a pipe, from
        # which reading may never end.
        if not stat.S_ISREG(found.st_mode):
            raise BundleIntegrityError(f"{path} cannot be read: it is no plain file. {REPAIR}")
        size = found.st_size
        intact = size == entry.size and _sha256(path) == entry.sha256
    except FileNotFoundError:
        raise BundleIntegrityError(f"{path} is missing, but listed in {MANIFEST_NAME}. {REPAIR}") from None
    except BundleIntegrityError:
        raise
    except OSError as error:
        raise BundleIntegrityError(f"{path} cannot be read: {error.strerror}. {REPAIR}") from error
    if size != entry.size:
        raise BundleIntegrityError(
            f"{path} has {size:,} bytes instead of {entry.size:,}: it is truncated or changed. {REPAIR}"
        )
    if not intact:
        raise BundleIntegrityError(f"{path} has changed since it was exported (SHA-256 differs). {REPAIR}")


_EXPORT_AGAIN = "Export the model again with: stonnx export MODEL -o DIRECTORY"
# The end of the message about a damaged bundle that is the user's own.
REPAIR = "Copy the bundle again, or export the model again with: stonnx export MODEL -o DIRECTORY"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _referenced_files(manifest: Manifest) -> list[str]:
    probe = [manifest.probe.file] if manifest.probe is not None else []
    return [*(name for route in manifest.routes.values() for name in (route.graph, route.tokenizer.file)), *probe]


def _decode(kind: type[_T], value: Any, path: Path, where: str) -> _T:
    """Turn JSON data into dataclasses, checking every type. Unknown keys are left alone: later versions add some."""
    if not isinstance(value, dict):
        raise BundleFormatError(f"{path}: {where or 'the manifest'} must be an object, found {_name(value)}.")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{part.name}" if where else part.name
        if part.name in value:
            arguments[part.name] = _decode_value(hints[part.name], value[part.name], path, name)
        elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            raise BundleFormatError(f"{path} lacks the field {name!r}. {_EXPORT_AGAIN}")
    return kind(**arguments)


def _decode_value(hint: Any, value: Any, path: Path, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
        raise BundleFormatError(f"{path}: {where} is {value!r}, allowed are {', '.join(map(repr, arguments))}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [argument for argument in arguments if argument is not type(None)]
        for member in members[:-1]:
            if isinstance(member, type) and isinstance(value, member):
                return value
        return _decode_value(members[-1], value, path, where)
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type[Any], hint), value, path, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode_value(arguments[0], item, path, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode_value(arguments[1], item, path, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BundleFormatError(f"{path}: {where} must be {_describe(hint)}, found {_name(value)}.")


def _describe(hint: Any) -> str:
    return {tuple: "a list", Mapping: "an object"}.get(typing.get_origin(hint), getattr(hint, "__name__", str(hint)))


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
