"""Write the files of a bundle: graphs, tokenizers, manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import tokenizers

from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import (
    DEFAULT_ROUTE,
    SCHEMA_VERSION,
    Expansion,
    ImageTower,
    Kernels,
    Manifest,
    ModuleSpec,
    Route,
    Scalar,
    Source,
    TensorSpec,
    TokenizerSpec,
    TokenPooling,
)
from stonnx._errors import UnsupportedError
from stonnx._tasks import TASKS
from stonnx._version import __version__
from stonnx_export.checkpoint.modules import HierarchicalTokenPooling, Normalize, QueryExpansion, Transformer, describe
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.graph.builder import OPSET
from stonnx_export.graph.save import save
from stonnx_export.originals.original import LoadReport, Original, OriginalTokenizer
from stonnx_export.originals.text_limits import limits_of_tasks, text_limit
from stonnx_export.recipes import Recipe

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal


def clear(directory: Path) -> None:
    """Delete the files of a directory, before they are written again."""
    for file in directory.iterdir():
        file.unlink()


def write_routes(
    graphs: dict[str, ir.Model],
    safe: dict[str, dict[str, Scalar]],
    token_rows: dict[str, int | None],
    checkpoint: Checkpoint,
    original: Original,
    directory: Path,
) -> dict[str, Route]:
    """Write the graphs and tokenizers of all routes. Returns their entries in the manifest."""
    routes = {}
    for route, graph in graphs.items():
        prefix = "" if route == DEFAULT_ROUTE else f"{route}-"
        file = _write_graph(graph, directory, f"{prefix}model.onnx")
        routes[route] = Route(
            graph=file,
            opset=OPSET,
            inputs=tuple(_spec(value) for value in graph.graph.inputs),
            outputs=tuple(_spec(value) for value in graph.graph.outputs),
            tokenizer=_write_tokenizer(
                checkpoint, original, route, directory, f"{prefix}tokenizer.json", token_rows.get(route)
            ),
            saturation_safe=safe.get(route, {}),
        )
    return routes


def write_image_tower(
    graph: ir.Model,
    original: ImageOriginal,
    directory: Path,
    *,
    precision: str,
    saturation_safe: Mapping[str, Scalar],
    kept: tuple[str, ...],
    kernels: Kernels | None,
    rewrites: Mapping[str, int],
) -> ImageTower:
    """Write the graph of images. Returns its entry in the manifest."""
    return ImageTower(
        graph=_write_graph(graph, directory, "image-model.onnx"),
        opset=OPSET,
        inputs=tuple(_spec(value) for value in graph.graph.inputs),
        outputs=tuple(_spec(value) for value in graph.graph.outputs),
        processor=original.processor,
        tokens=original.patches + 1,
        precision=precision,
        saturation_safe=saturation_safe,
        kept=kept,
        kernels=kernels,
        rewrites=rewrites,
    )


def _write_graph(graph: ir.Model, directory: Path, name: str) -> str:
    save(graph, directory / name)
    return name


def written_for(graph: str, directory: Path) -> list[str]:
    """The file of a graph, and that of its weights if they were too many for it."""
    return sorted(file.name for file in directory.iterdir() if file.name.startswith(graph))


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape, optional=value.const_value is not None)


def _write_tokenizer(
    checkpoint: Checkpoint, original: Original, route: str, directory: Path, name: str, token_rows: int | None
) -> TokenizerSpec:
    source = original.tokenizer(route)
    limit = text_limit(checkpoint, route, original)
    # A copy, because the original stays as it is. The file has the settings too, for use without stonnx.
    first, positions = checkpoint.routes[route][0], checkpoint.max_positions
    expansion = first.query_expansion if isinstance(first, Transformer) else None
    query, document = limits_of_tasks(checkpoint, route, chat=source.chat is not None)
    copy = tokenizers.Tokenizer.from_str(source.backend.to_str())
    if limit is None:
        copy.no_truncation()
    else:
        copy.enable_truncation(limit, strategy="longest_first", direction=source.truncation_side)
    copy.enable_padding(
        direction="right",
        pad_id=source.pad_token_id,
        pad_type_id=source.pad_token_type_id,
        pad_token=copy.id_to_token(source.pad_token_id) or "[PAD]",
    )
    copy.save(str(directory / name))
    return TokenizerSpec(
        file=name,
        max_seq_length=limit,
        max_positions=positions if isinstance(first, Transformer) else None,
        pad_token_id=source.pad_token_id,
        pad_token_type_id=source.pad_token_type_id,
        truncation_side=source.truncation_side,
        add_special_tokens=source.add_special_tokens,
        special_token_ids=source.special_token_ids,
        token_rows=token_rows,
        chat=source.chat,
        query_length=query,
        document_length=document,
        expansion=None if expansion is None else _expansion(expansion, source),
    )


def _expansion(settings: QueryExpansion, source: OriginalTokenizer) -> Expansion:
    token = source.filling_token_id if settings.token is None else source.backend.token_to_id(settings.token)
    if source.chat is not None:
        raise UnsupportedError(
            "The model reads texts through a chat template, and query_expansion fills up its queries. "
            "sentence-transformers refuses the two together, because it would cut the text off. Take the chat template "
            "away (chat_template.jinja, or chat_template in tokenizer_config.json), or set query_expansion to null."
        )
    if source.pads_left:
        raise UnsupportedError(
            "The tokenizer pads on the left (padding_side in tokenizer_config.json), so sentence-transformers puts the "
            "tokens of query_expansion before a query. A bundle has them after it. If the model was trained that way, "
            "set padding_side to 'right'; if not, set query_expansion to null."
        )
    if token is None:
        raise UnsupportedError(
            f"Queries are filled up to {settings.length} tokens, and the tokenizer has neither a mask token nor one "
            "for the end of a text. Name a token of its vocabulary: token in query_expansion, in the settings of the "
            "Transformer module."
        )
    return Expansion(token, settings.length, settings.attend)


def _manifest(
    checkpoint: Checkpoint,
    routes: dict[str, Route],
    recipe: Recipe,
    source: Source,
    kept: tuple[str, ...],
    loaded: LoadReport,
    directory: Path,
) -> Manifest:
    widths = {name: route.outputs[0].shape[-1] for name, route in routes.items()}
    width = widths[checkpoint.default_route]
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{size} for {name!r}" for name, size in widths.items())
        raise UnsupportedError(
            f"{checkpoint.directory} has a Router whose routes give results of unequal sizes: {found}. Texts of one "
            "route cannot be compared with those of another. Give all routes the same size, for example with Dense."
        )
    labels = TASKS[checkpoint.task].gives_labels
    chain = checkpoint.chain
    poolings = tuple(module for module in chain if isinstance(module, HierarchicalTokenPooling))
    return Manifest(
        schema_version=SCHEMA_VERSION if any(route.tokenizer.chat for route in routes.values()) else 1,
        task=checkpoint.task,
        source=source,
        architecture=checkpoint.architecture,
        modules=tuple(ModuleSpec(*describe(module)) for module in checkpoint.chain),
        routes=routes,
        precision=recipe.precision,
        recipe=recipe.name,
        requires_cpu_features=recipe.requires_cpu_features,
        embedding_dimension=None if labels else int(width),
        normalized=isinstance(chain[-1], Normalize) or (bool(poolings) and poolings[-1].normalize_embeddings),
        similarity_fn_name=checkpoint.similarity_fn_name,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
        truncate_dim=checkpoint.truncate_dim,
        num_labels=int(width) if labels else None,
        labels=checkpoint.labels,
        activation=checkpoint.activation,
        files=hash_files(directory, sorted(file.name for file in directory.iterdir())),
        exporter=_versions(),
        fidelity=None,
        default_route=checkpoint.default_route,
        needs_task=checkpoint.needs_task,
        max_active_dims=checkpoint.max_active_dims,
        kept=kept,
        remote_code=loaded.remote_code,
        unused_weights=loaded.unused_weights,
        token_poolings=tuple(TokenPooling(**dataclasses.asdict(module)) for module in poolings),
    )


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "sentence-transformers", "onnx", "onnx-ir", "onnxruntime")
    versions = {"stonnx": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime has other names for other devices
            continue
    return versions
