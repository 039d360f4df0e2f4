"""From a checkpoint to a bundle: read, trace, graft, rewrite, save, verify, and only then move into place."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tokenizers
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

import stonnx
from stonnx import _probe
from stonnx._bundle import (
    DEFAULT_ROUTE,
    SCHEMA_VERSION,
    Manifest,
    Module,
    Probe,
    Route,
    Scalar,
    Source,
    Task,
    TensorSpec,
    TokenizerSpec,
    hash_files,
    write_manifest,
)
from stonnx._engine import Engine
from stonnx._errors import (
    ExportError,
    FidelityError,
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
)
from stonnx._hub import download, missing_for_pytorch
from stonnx._names import full_name
from stonnx_export import half_range, heads, model_card
from stonnx_export.calibration import random_sequences, read_texts, text_sequences
from stonnx_export.checkpoint import Checkpoint, read_checkpoint
from stonnx_export.graph import OPSET, check_finite, save
from stonnx_export.limits import respect_positions, text_limit
from stonnx_export.modules import Normalize, Transformer, describe
from stonnx_export.original import Original
from stonnx_export.passes import PassResult, float16
from stonnx_export.quantize import Advance, Quantization
from stonnx_export.recipes import RECIPES, Recipe
from stonnx_export.scored_pairs import read_pairs, spearman_drop
from stonnx_export.staging import check_target, staging_directory
from stonnx_export.verify import ToleranceError, check, verify

logger = logging.getLogger("stonnx")

# What the network is made from: PyTorch's weights, or an ONNX file of the checkpoint.
SourceKind = Literal["auto", "torch", "onnx"]


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "fp32",
    calibrate: str | os.PathLike[str] | None = None,
    pairs: str | os.PathLike[str] | None = None,
    task: Task | None = None,
    source: SourceKind = "auto",
    overwrite: bool = False,
    name: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    show_progress: bool | None = None,
) -> Path:
    """Export a checkpoint to a bundle and verify it against the original.

    Nothing appears at ``output`` before everything has been written and verified; an export that fails or is
    interrupted leaves nothing there.

    Args:
        model: A checkpoint directory, or a Hub id. A bare name belongs to ``sentence-transformers/``.
        output: Directory of the bundle. None: ``MODEL-DTYPE`` in the current directory.
        dtype: The recipe: see ``stonnx_export.RECIPES``.
        calibrate: A text file, one text in a line, from which int8 takes the ranges of its values. None: from random
            tokens, which is as good for most models and needs no texts.
        pairs: A CSV file of scored pairs (text, text, number), for the drop of Spearman's correlation in the report.
        task: ``"embedding"``, ``"sparse"`` or ``"rerank"``. None: what the checkpoint is for.
        source: ``"torch"`` takes the PyTorch weights; ``"onnx"`` takes the ONNX file that the checkpoint has in
            ``onnx/model.onnx`` or ``model.onnx``, and needs no PyTorch. ``"auto"``: the weights where they are there
            and PyTorch is installed, otherwise the ONNX file.
        overwrite: Replace a bundle that is there already.
        name: How the manifest names the source. None: ``model`` as it was given.
        revision, token, cache_folder, local_files_only: As for a download from the Hub.
        show_progress: Print each stage on standard error. None: where that is a terminal.

    Returns:
        The directory of the bundle.

    Raises:
        ModelNotFoundError: There is no checkpoint.
        UnsupportedError: A module or setting of it cannot be exported.
        MissingDependencyError: The source needs a package that is not installed.
        FidelityError: The result is further from the original than the recipe tolerates.
        ExportError: The output directory is in the way, or cannot be written.
    """
    recipe = RECIPES.get(dtype)
    if recipe is None:
        raise InvalidArgumentError(f"dtype {dtype!r} is not known. Allowed: {', '.join(RECIPES)}.")
    if source not in typing.get_args(SourceKind):
        raise InvalidArgumentError(
            f"source {source!r} is not known. Allowed: {', '.join(typing.get_args(SourceKind))}."
        )
    if calibrate is not None and not recipe.quantize:
        raise InvalidArgumentError(f"calibrate is for recipes that quantize, and {dtype} does not. Leave it out.")
    texts = read_texts(calibrate) if calibrate is not None else None
    scored = read_pairs(pairs) if pairs is not None else None
    label = os.fspath(model)
    target = Path(output) if output is not None else Path(f"{label.rstrip('/').rsplit('/', 1)[-1]}-{recipe.name}")
    check_target(target, overwrite)
    stage = _Stages(sys.stderr.isatty() if show_progress is None else show_progress)
    with staging_directory(target, overwrite) as staging:
        with stage("reading the checkpoint"):
            onnx = source == "onnx" or (source == "auto" and missing_for_pytorch() is not None)
            directory = _find_checkpoint(label, task, revision, token, cache_folder, local_files_only, onnx)
            checkpoint, original = _open_checkpoint(directory, task, source)
        with stage("reading the network"):
            graphs = {route: original.graph(route) for route in checkpoint.routes}
        with stage("building the graph"):
            results = [
                result
                for route, graph in graphs.items()
                for result in _build(graph, checkpoint, route, original, recipe)
            ]
        quantizations = {}
        if recipe.quantize:
            with stage("calibrating") as advance:
                quantizations = {
                    route: _calibrate(graph, checkpoint, route, original, texts, advance)
                    for route, graph in graphs.items()
                }
        origin = Source(name or label, revision, checkpoint.weights_sha256)
        known: dict[str, npt.NDArray[np.float32]] = {}
        while True:
            with stage("writing the files"):
                built, more, safe = _quantize(graphs, quantizations)
                routes = _write_routes(built, safe, checkpoint, original, staging)
                kept = tuple(name for result in results for name in result.kept)
                kept += tuple(name for quantization in quantizations.values() for name in quantization.kept)
                manifest = _manifest(checkpoint, routes, recipe, origin, kept, staging)
                write_manifest(staging, manifest)
            try:
                with stage("verifying against the original"):
                    engine = Engine(staging, device="cpu")
                    fidelity = verify(engine, original, recipe.tolerance[checkpoint.task], known=known)
                    if scored is not None:
                        drop = spearman_drop(engine, original, scored, known)
                        fidelity = dataclasses.replace(fidelity, spearman_drop=drop)
                        check(fidelity)
                break
            except ToleranceError as error:
                if not _keep_more(quantizations, stage):
                    raise FidelityError(f"{error} Nothing was written.{_worst_layers(quantizations)}") from None
                _clear(staging)
            except FidelityError as error:
                raise FidelityError(f"{error} Nothing was written.") from None
        with stage("writing the manifest"):
            saturates = any(route.saturation_safe for route in routes.values())
            safe_engine = Engine(staging, device="cpu", form="saturation-safe") if saturates else None
            _probe.write(staging, manifest, engine.named_routes, safe_engine.named_routes if safe_engine else None)
            files = {**manifest.files, **hash_files(staging, [_probe.FILE])}
            probe = Probe(_probe.FILE, recipe.probe_cosine)
            rewrites = _count([*results, *more])
            manifest = dataclasses.replace(manifest, fidelity=fidelity, files=files, probe=probe, rewrites=rewrites)
            (staging / model_card.NAME).write_text(model_card.render(manifest), encoding="utf-8")
            write_manifest(staging, manifest)
    return target


class _Stages:
    """Prints what is being done, how far it is where that is known, and how long it took."""

    def __init__(self, show: bool) -> None:
        self._show = show

    @contextmanager
    def __call__(self, text: str) -> Iterator[Advance]:
        start = time.perf_counter()
        again = ""

        def advance(done: int, total: int) -> None:
            nonlocal again
            # A file would have a line of all of them.
            if sys.stderr.isatty():
                again = f"\r{text} ..."
                self._print(f"{again} {done} of {total}")

        self._print(f"{text} ...")
        try:
            yield advance
        except BaseException:
            self._print(" failed\n")
            raise
        # As wide as what it takes the place of.
        self._print(f"{again} {f'{time.perf_counter() - start:.1f} s':<{12 if again else 0}}\n")

    def _print(self, text: str) -> None:
        if self._show:
            print(text, end="", file=sys.stderr, flush=True)


def _open_checkpoint(directory: Path, task: Task | None, source: SourceKind) -> tuple[Checkpoint, Original]:
    """What a checkpoint says about itself, and the original that computes its vectors."""
    checkpoint = read_checkpoint(directory, task)
    if _choose_source(checkpoint, source) == "torch":
        original = _load_original(checkpoint)
    else:
        checkpoint, original = _load_onnx_original(checkpoint)
    respect_positions(checkpoint, original)
    return checkpoint, original


def load_original(name: str, task: Task | None, source: SourceKind) -> Original:
    """The original behind a checkpoint directory or Hub id.

    Raises:
        ModelNotFoundError, UnsupportedError, MissingDependencyError, ExportError: As for :func:`export`.
    """
    onnx = source == "onnx" or (source == "auto" and missing_for_pytorch() is not None)
    _, original = _open_checkpoint(_find_checkpoint(name, task, None, None, None, False, onnx), task, source)
    return original


def _find_checkpoint(
    name: str,
    task: Task | None,
    revision: str | None,
    token: bool | str | None,
    cache_folder: str | None,
    local_files_only: bool,
    onnx: bool,
) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelNotFoundError(f"{name} is a file. Pass the directory of the checkpoint.")
    if not name or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"{name!r} is no directory here, and no Hub id of the form organization/name.")
    return download(full_name(name, task or "embedding"), revision, token, cache_folder, local_files_only, onnx=onnx)


def _choose_source(checkpoint: Checkpoint, source: SourceKind) -> SourceKind:
    missing = missing_for_pytorch()
    if source == "onnx" or (source == "torch" and missing is None):
        return source
    folders = {*checkpoint.folders.values()}
    weights = any(list(folder.glob(pattern)) for folder in folders for pattern in ("*.safetensors", "*.bin"))
    if source == "auto":
        if weights and missing is None:
            return "torch"
        with _exporter_needed():
            from stonnx_export.original_onnx import is_exportable
        if is_exportable(checkpoint):
            return "onnx"
        if not weights:
            raise ModelNotFoundError(
                f"{checkpoint.directory} has no weights that can be exported: neither PyTorch's (*.safetensors, *.bin) "
                "nor an ONNX file (onnx/model.onnx or model.onnx). Download the checkpoint again with one of them."
            )
    raise MissingDependencyError(
        f"{checkpoint.directory} is to be exported from its PyTorch weights, and {missing} is not installed. Install "
        'the exporter with: pip install "stonnx[cpu,export]"\n'
        "Without PyTorch, a checkpoint that has onnx/model.onnx can be exported from that: --source onnx"
    )


def _load_original(checkpoint: Checkpoint) -> Original:
    with _exporter_needed():
        from stonnx_export.original_torch import TorchOriginal

    try:
        return TorchOriginal(checkpoint)
    except stonnx.StonnxError:
        raise
    except Exception as error:  # of transformers, safetensors or torch, for whatever the checkpoint lacks
        raise ExportError(
            f"sentence-transformers cannot load {checkpoint.directory}: {type(error).__name__}: {error}"
        ) from error


def _load_onnx_original(checkpoint: Checkpoint) -> tuple[Checkpoint, Original]:
    """The checkpoint too: without modules.json, its chain is what the ONNX file turns out to have."""
    with _exporter_needed():
        from stonnx_export.original_onnx import OnnxOriginal

    original = OnnxOriginal(checkpoint)
    return original.checkpoint, original


@contextmanager
def _exporter_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"The exporter needs {error.name or error}, which is not installed. Install it with: pip install "
            '"stonnx[cpu,export]"'
        ) from error


def _build(graph: ir.Model, checkpoint: Checkpoint, route: str, original: Original, recipe: Recipe) -> list[PassResult]:
    results = [rewrite(graph) for rewrite in recipe.network_passes]
    if recipe.half:
        sequences = half_range.sequences(original.tokenizer(route), text_limit(checkpoint, route, original))
        results.append(float16.run(graph, half_range.largest_values(graph, sequences)))
    if checkpoint.task == "rerank":
        heads.graft_scores(graph, checkpoint.activation or "identity")
    else:
        heads.graft(graph, checkpoint.routes[route], task=checkpoint.task)
    check_finite(graph)
    results += [rewrite(graph) for rewrite in recipe.passes]
    RemoveUnusedNodesPass()(graph)
    # The tracer notes the stack of each node, with the paths of this machine.
    ClearMetadataAndDocStringPass()(graph)
    graph.graph.sort()
    graph.producer_name, graph.producer_version = "stonnx", stonnx.__version__
    return results


def _calibrate(
    graph: ir.Model, checkpoint: Checkpoint, route: str, original: Original, texts: list[str] | None, advance: Advance
) -> Quantization:
    limit, tokenizer = text_limit(checkpoint, route, original), original.tokenizer(route)
    if limit is None or not isinstance(checkpoint.routes[route][0], Transformer):  # a table, and no products
        return Quantization(graph, [])
    random = random_sequences(tokenizer, limit)
    if texts is None:
        return Quantization(graph, random, advance=advance)
    return Quantization(graph, text_sequences(tokenizer, texts, limit), random, advance)


def _quantize(
    graphs: dict[str, ir.Model], quantizations: dict[str, Quantization]
) -> tuple[dict[str, ir.Model], list[PassResult], dict[str, dict[str, Scalar]]]:
    """The graphs to write, what quantizing did, and each route's values that are safe from saturation."""
    built, results, safe = dict(graphs), [], {}
    for route, quantization in quantizations.items():
        built[route], more, safe[route] = quantization.apply()
        built[route].graph.sort()
        results += more
    return built, results, safe


def _keep_more(quantizations: dict[str, Quantization], stage: _Stages) -> bool:
    """Keep more layers in float32; False where there is nothing more to keep."""
    if not quantizations:
        return False
    static = any(quantization.has_static_scales for quantization in quantizations.values())
    with stage("giving every token a scale of its own" if static else "finding the layers that lose most") as advance:
        more = [quantization.keep_more(advance) for quantization in quantizations.values()]
        return any(more)


def _worst_layers(quantizations: dict[str, Quantization]) -> str:
    worst = [quantization.worst for quantization in quantizations.values() if quantization.worst]
    if not worst:
        return ""
    return (
        f" Half of its layers were kept in float32 already; the one that loses most is {', '.join(worst)}. Export it "
        "with --dtype fp32, or calibrate with texts of your own: --calibrate FILE"
    )


def _clear(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def _write_routes(
    graphs: dict[str, ir.Model],
    safe: dict[str, dict[str, Scalar]],
    checkpoint: Checkpoint,
    original: Original,
    directory: Path,
) -> dict[str, Route]:
    routes = {}
    for route, graph in graphs.items():
        prefix = "" if route == DEFAULT_ROUTE else f"{route}-"
        file = _write_graph(graph, directory, f"{prefix}model.onnx")
        routes[route] = Route(
            graph=file,
            opset=OPSET,
            inputs=tuple(_spec(value) for value in graph.graph.inputs),
            outputs=tuple(_spec(value) for value in graph.graph.outputs),
            tokenizer=_write_tokenizer(checkpoint, original, route, directory, f"{prefix}tokenizer.json"),
            saturation_safe=safe.get(route, {}),
        )
    return routes


def _write_graph(graph: ir.Model, directory: Path, name: str) -> str:
    save(graph, directory / name)
    return name


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape, optional=value.const_value is not None)


def _write_tokenizer(
    checkpoint: Checkpoint, original: Original, route: str, directory: Path, name: str
) -> TokenizerSpec:
    source = original.tokenizer(route)
    limit = text_limit(checkpoint, route, original)
    # A copy: the original stays as it is. The file carries the settings too, for use without stonnx.
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
        max_positions=checkpoint.max_positions if isinstance(checkpoint.routes[route][0], Transformer) else None,
        pad_token_id=source.pad_token_id,
        pad_token_type_id=source.pad_token_type_id,
        truncation_side=source.truncation_side,
        add_special_tokens=source.add_special_tokens,
        special_token_ids=source.special_token_ids,
    )


def _manifest(
    checkpoint: Checkpoint,
    routes: dict[str, Route],
    recipe: Recipe,
    source: Source,
    kept: tuple[str, ...],
    directory: Path,
) -> Manifest:
    width = routes[checkpoint.default_route].outputs[0].shape[-1]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        task=checkpoint.task,
        source=source,
        architecture=checkpoint.architecture,
        modules=tuple(Module(*describe(module)) for module in checkpoint.chain),
        routes=routes,
        precision=recipe.precision,
        recipe=recipe.name,
        requires_cpu_features=recipe.requires_cpu_features,
        embedding_dimension=None if checkpoint.task == "rerank" else int(width),
        normalized=isinstance(checkpoint.chain[-1], Normalize),
        similarity_fn_name=checkpoint.similarity_fn_name,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
        truncate_dim=checkpoint.truncate_dim,
        num_labels=int(width) if checkpoint.task == "rerank" else None,
        labels=checkpoint.labels,
        activation=checkpoint.activation,
        files=hash_files(directory, sorted(file.name for file in directory.iterdir())),
        exporter=_versions(),
        fidelity=None,
        default_route=checkpoint.default_route,
        needs_task=checkpoint.needs_task,
        max_active_dims=checkpoint.max_active_dims,
        kept=kept,
    )


def _count(results: list[PassResult]) -> dict[str, int]:
    """How often each pass fired, in the order of the passes. What a pass declined is logged, for DEBUG."""
    counts: dict[str, int] = {}
    for result in results:
        counts[result.name] = counts.get(result.name, 0) + result.fired
        for reason in result.declined:
            logger.debug("%s declined: %s", result.name, reason)
    return counts


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "sentence-transformers", "onnx", "onnx-ir", "onnxruntime")
    versions = {"stonnx": stonnx.__version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime has other names for other devices
            continue
    return versions
