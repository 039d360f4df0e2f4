"""The bundle: the files in its directory, and the manifest ``stonnx.json`` that describes it.

This file is the contract between the exporter, which writes manifests, and the runtime, which reads them. A bundle is a
directory with one ONNX graph for each route (``model.onnx``), ``tokenizer.json``, ``stonnx.json`` and a model card.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stonnx._decode import Decoder
from stonnx._errors import BundleFormatError
from stonnx._tasks import TASKS, Task

MANIFEST_NAME = "stonnx.json"

EXPORT_AGAIN = "Export the model again with: stonnx export MODEL -o DIRECTORY"

# Raise it by one whenever an older runtime would read a newer manifest wrongly. New optional fields do not need it.
# Version 2 has chat templates. A manifest without one is of version 1, so that older runtimes read it too.
SCHEMA_VERSION = 2

# The route of every model that has only one graph.
DEFAULT_ROUTE = "default"


@dataclass(frozen=True)
class Source:
    """The source of the export: a Hub id or path as it was given, and a hash that pins the weights."""

    name: str
    revision: str | None
    weights_sha256: str | None
    # Adapters only: the model that the adapter changes. The hash of the weights covers both.
    base: Source | None = None


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph. Dimensions are numbers or the names ``batch`` and ``sequence``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    # An optional input has a default inside the graph: bare onnxruntime runs without it.
    optional: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """The form in which a chat model reads its texts, for each kind of input: literal texts and slots take turns.

    A form begins and ends with a literal text, which may be empty. A slot is ``query``, ``document``, ``text`` or
    ``prompt``; with ``|trim`` after it, the text loses the whitespace at its ends. None: there is no such form.
    """

    pair: tuple[str, ...] | None = None
    pair_with_prompt: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None
    text_with_prompt: tuple[str, ...] | None = None
    # Whether a text that is cut gets the tokens back with which every text ends.
    restores_ending: bool = True
    # The contents of chat messages that the template reads: "text" is a str, "parts" a list of {"type": "text", ...}.
    contents: tuple[str, ...] = ("text",)
    # If the template reads the task: the forms of texts that are called queries or documents.
    of_query: ChatTemplate | None = None
    of_document: ChatTemplate | None = None


@dataclass(frozen=True)
class Expansion:
    """Tokens that fill up queries (https://arxiv.org/abs/2004.12832, section 3.2). Their vectors are results too."""

    token_id: int
    # A query has at least so many tokens after it.
    length: int
    # Whether other tokens attend to them.
    attend: bool


@dataclass(frozen=True)
class TokenizerSpec:
    """The way from texts to ids. It overrides the truncation and padding in ``tokenizer.json``."""

    file: str
    # None: the tokenizer never cuts texts.
    max_seq_length: int | None
    # The number of positions the network has: max_seq_length can be raised up to here. None: no such limit.
    max_positions: int | None
    pad_token_id: int
    pad_token_type_id: int
    truncation_side: Literal["left", "right"]
    add_special_tokens: bool
    special_token_ids: tuple[int, ...]
    # Rows of the network's table of tokens, if the tokenizer has ids beyond them. None: every id has a row.
    token_rows: int | None = None
    # Chat models only. Such a manifest has the schema version 2.
    chat: ChatTemplate | None = None
    # Limits of texts that are called queries or documents. None: max_seq_length.
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None


@dataclass(frozen=True)
class Scalar:
    """A scalar initializer of a graph: its dtype as numpy names it, and its value."""

    dtype: str
    value: float


@dataclass(frozen=True)
class Route:
    """One graph and the tokenizer that feeds it. Attention masks are right-padded."""

    graph: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tokenizer: TokenizerSpec
    # int8 graphs only: values that replace initializers if the CPU adds two 8-bit products in 16 bits (x86 without
    # VNNI), so that the sum cannot saturate.
    saturation_safe: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageProcessor:
    """The way from an image to the numbers that the graph of images reads, in this order.

    It is that of transformers' CLIPImageProcessor on pillow. The image is in RGB first.
    """

    # Resize to this: {"shortest_edge": n}, or {"height": h, "width": w}. None: leave the size alone.
    size: Mapping[str, int] | None
    # The filter to resize with, by its number in pillow.
    resample: int
    # Height and width of the middle to keep, filled up with black. None: keep everything.
    crop: tuple[int, ...] | None
    # Multiply by this. None: keep whole numbers from 0 to 255.
    rescale_factor: float | None
    # Subtract and divide, for each channel. None: neither.
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    # A transparent PIL image or array is put on white, or its transparency is passed over. Files are always the latter.
    transparency: Literal["white", "dropped"]


@dataclass(frozen=True)
class ImageTower:
    """The graph that reads images, of a model that reads texts as well."""

    graph: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    processor: ImageProcessor
    # The patches of an image and what the network adds to them: its work in the tokens of a text.
    tokens: int
    precision: str
    # The `texts` of the report are images. The others are as in Route and in Manifest.
    fidelity: Fidelity | None = None
    saturation_safe: Mapping[str, Scalar] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    kernels: Kernels | None = None
    rewrites: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleSpec:
    """A module of the original chain that is now part of the graph, with its settings."""

    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenPooling:
    """Clusters of a text's vectors, whose means take their place: see ``HierarchicalTokenPooling``."""

    pool_factor: float
    num_protected_tokens: int
    normalize_embeddings: bool
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class SixteenBits:
    """How close a bundle is to its checkpoint as sentence-transformers loads it by default: in 16 bits."""

    # bfloat16 or float16.
    dtype: str
    texts: int
    cosine_mean: float
    cosine_min: float
    # Relative to the largest value if that is over 1.
    max_abs_difference: float


@dataclass(frozen=True)
class Fidelity:
    """How close the bundle is to the original: measured by the exporter, on the texts that it describes."""

    compared_with: str
    # Texts, or pairs of texts. A reranker's cosines are those of its logits over all pairs, label by label. If a text
    # has a vector for each token, the figures are those of these vectors.
    texts: int
    cosine_mean: float
    cosine_min: float
    max_abs_difference: float
    # The largest difference of one text's vector between being encoded alone, in a batch, and with more padding.
    batch_invariance: float
    # Bounds by the names of these figures. A figure without a bound is for information only.
    tolerance: Mapping[str, float]
    # The cosine that 99 of 100 texts exceed.
    cosine_p1: float | None = None
    # The lowest cosine between a text's vector alone, and in a batch or with more padding.
    invariance_cosine: float | None = None
    # The share of each text's ten nearest neighbours that stay the same, on average. Vectors for each token: by MaxSim.
    neighbours_overlap: float | None = None
    # Sparse vectors: the share of active dimensions that both have, of those that either has.
    active_overlap: float | None = None
    # Rerankers: Spearman's correlation of a label's logits over all pairs, the lowest of all labels. Vectors for each
    # token: that of a query's MaxSim with all documents, the lowest of all queries.
    rank_correlation: float | None = None
    # If scored pairs were given: Spearman's correlation x 100 with the scores, the original's less the bundle's.
    spearman_drop: float | None = None
    # Checkpoints of 16 bits only: the figures above use their weights in float32, as the bundle computes.
    as_loaded: SixteenBits | None = None


@dataclass(frozen=True)
class Probe:
    """Texts with the vectors that the exporter got, and the lowest cosine to them that a machine may reach."""

    file: str
    cosine_min: float


@dataclass(frozen=True)
class Kernels:
    """The blocks of the graphs that native kernels can run; onnxruntime runs them as stock operators without those.

    ``operators`` is the version of their contract, kernels/OPERATORS.md in stonnx's repository. ``blocks`` counts them
    by operator. ``stock`` has the reasons why other blocks are not among them, and for how many each reason holds.
    """

    operators: int
    blocks: Mapping[str, int]
    stock: Mapping[str, int] = field(default_factory=dict)


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
    modules: tuple[ModuleSpec, ...]
    routes: Mapping[str, Route]
    precision: str
    recipe: str
    # CPU features that the graph needs to be right, in the kernel's names. Empty: it runs everywhere.
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
    # The route of texts that are not called query or document.
    default_route: str = DEFAULT_ROUTE
    # Sparse vectors only: how many values of each the model keeps, unless told otherwise.
    max_active_dims: int | None = None
    # Parts in float32 for accuracy, and parts of int8 bundles in bfloat16, by the names of their first results.
    kept: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()
    # Whether a text without such a name is refused: there are routes, and the default is only the first of them.
    needs_task: bool = False
    # How often each rewrite of the graph fired, over all routes.
    rewrites: Mapping[str, int] = field(default_factory=dict)
    probe: Probe | None = None
    # Classes of the checkpoint's own repository that the exporter ran because the user trusted them.
    remote_code: tuple[str, ...] = ()
    # Weights of the checkpoint that its network, and so this bundle, does not have a place for.
    unused_weights: tuple[str, ...] = ()
    # None: the bundle is older than the kernels, or its recipe does not have any.
    kernels: Kernels | None = None
    # Poolings of the vectors of each token, in order.
    token_poolings: tuple[TokenPooling, ...] = ()
    # None: the model reads texts only.
    image: ImageTower | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """The files of all graphs, those of texts first."""
        image = () if self.image is None else (self.image.graph,)
        return (*(route.graph for route in self.routes.values()), *image)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels: those of the checkpoint, or ``LABEL_0`` and so on. Empty for vectors."""
        return self.labels or tuple(f"LABEL_{index}" for index in range(self.num_labels or 0))


class NewerSchemaError(BundleFormatError):
    """A manifest that only a newer stonnx can read. The bundle is not damaged."""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``stonnx.json`` into a directory."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read and validate ``stonnx.json``.

    Raises:
        BundleFormatError: It is not JSON, lacks a field, has a field of another type, names a file outside the bundle,
            or was written with a newer schema.
    """
    path = directory / MANIFEST_NAME
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """Validate the contents of a ``stonnx.json``; ``path`` is its name in messages.

    Raises:
        BundleFormatError: As for :func:`read_manifest`.
    """
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # covers broken JSON and broken UTF-8
        raise BundleFormatError(f"{path} is not readable JSON ({error}). {EXPORT_AGAIN}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleFormatError(f"{path} is not a stonnx manifest: it has no schema_version. {EXPORT_AGAIN}")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path} has schema_version {version}; this stonnx knows versions up to {SCHEMA_VERSION}. "
            "Upgrade with: pip install -U stonnx"
        )
    task = data.get("task")
    if "task" in data and not (isinstance(task, str) and task in TASKS):
        raise BundleFormatError(f"{path}: task is {task!r}, allowed are {', '.join(map(repr, TASKS))}.")
    decode = Decoder(
        BundleFormatError,
        whole="the manifest",
        before=f"{path}: ",
        lacking=lambda field: f"{path} lacks the field {field!r}. {EXPORT_AGAIN}",
    )
    manifest = decode(Manifest, data)
    for name in (*manifest.files, *_referenced_files(manifest)):
        # A manifest comes from outside, so it may only name plain files beside itself.
        if Path(name).name != name or name in ("", ".", "..") or set(name) & {"\\", ":"} or not name.isprintable():
            raise BundleFormatError(f"{path} names {name!r}, which is not a file directly inside the bundle.")
    for name in _referenced_files(manifest):
        if name not in manifest.files:
            raise BundleFormatError(f"{path} uses {name!r} without listing its hash under 'files'. {EXPORT_AGAIN}")
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


def _referenced_files(manifest: Manifest) -> list[str]:
    probe = [manifest.probe.file] if manifest.probe is not None else []
    tokenizers = (route.tokenizer.file for route in manifest.routes.values())
    return [*manifest.graphs, *tokenizers, *probe]
