"""Turns a checkpoint into a bundle: read, trace, graft, rewrite, save, verify, and only then move into place."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._arguments import check_choice
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import (
    Probe,
    Scalar,
    Source,
    write_manifest,
)
from stonnx._engine import probe as probe_module
from stonnx._engine.engine import Engine
from stonnx._errors import FidelityError, InvalidArgumentError
from stonnx._hub.download import missing_for_pytorch
from stonnx._tasks import DTYPES, TASKS, Task
from stonnx_export.calibration.measure import random_sequences, read_texts, text_sequences
from stonnx_export.calibration.texts import CALIBRATION_TEXTS
from stonnx_export.checkpoint.modules import Transformer, is_code
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.checkpoint.repository_code import Trust
from stonnx_export.fp16 import half_range
from stonnx_export.graph.save import check_finite
from stonnx_export.heads import graft
from stonnx_export.heads.rows import add_query_rows, row_mask_of
from stonnx_export.image_graph import ImageGraph
from stonnx_export.kernels import outline
from stonnx_export.kernels.bfloat16 import HalfWeights
from stonnx_export.kernels.mixed import MixedQuantization
from stonnx_export.lower_precision import LowerPrecision
from stonnx_export.originals.load import SourceKind, commit_of, find_checkpoint, open_checkpoint, whole_checkpoint
from stonnx_export.originals.original import Original
from stonnx_export.originals.text_limits import text_limit
from stonnx_export.originals.token_rows import token_rows
from stonnx_export.passes import PassResult
from stonnx_export.recipes import RECIPES, Recipe
from stonnx_export.stages import Advance, Stages
from stonnx_export.verify.artefact import try_bundle
from stonnx_export.verify.compare import verify_fidelity
from stonnx_export.verify.figures import ToleranceError, check, reaches
from stonnx_export.verify.images import ImageToleranceError
from stonnx_export.verify.scored_pairs import read_pairs, spearman_drop
from stonnx_export.verify.sixteen_bits import compare_as_loaded
from stonnx_export.write import model_card
from stonnx_export.write.bundle import _manifest, clear, write_routes, written_for
from stonnx_export.write.finish import count, finish
from stonnx_export.write.staging import check_target, staging_directory

# The stage that gives up static scales.
_OWN_SCALES = "giving every token a scale of its own"


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
    trust_remote_code: bool = False,
    show_progress: bool | None = None,
) -> Path:
    """Export a checkpoint to a bundle and verify it against the original.

    The bundle appears at ``output`` only after everything has been written and verified. An export that fails or is
    interrupted leaves nothing there.

    Args:
        model: A checkpoint directory, or a Hub id. A bare name belongs to ``sentence-transformers/``.
        output: Directory of the bundle. None: ``MODEL-DTYPE`` in the current directory.
        dtype: The recipe: see ``stonnx_export.RECIPES``.
        calibrate: A text file, one text in a line, from which int8 takes the ranges of its values. None: it takes them
            from texts of its own and from random tokens, which is as good for most models.
        pairs: A CSV file of scored pairs (text, text, number), for the drop of Spearman's correlation in the report.
        task: ``"embedding"``, ``"sparse"``, ``"rerank"`` or ``"multivector"``. None: the task of the checkpoint.
        source: ``"torch"`` takes the PyTorch weights; ``"onnx"`` takes the ONNX file that the checkpoint has in
            ``onnx/model.onnx`` or ``model.onnx``, and does not need PyTorch. ``"auto"`` takes the weights if they are
            there and PyTorch is installed, otherwise the ONNX file.
        overwrite: Replace a bundle that exists at ``output`` already.
        name: The name of the source in the manifest. None: ``model`` as it was given.
        revision, token, cache_folder, local_files_only: As for a download from the Hub.
        trust_remote_code: Run code from the checkpoint's repository, which its network, tokenizer or modules may need.
            That code can do whatever you can do: read it first. Without this setting, a checkpoint that needs such code
            is refused. The bundle never needs it.
        show_progress: Print each stage on standard error. None: print if that is a terminal.

    Returns:
        The directory of the bundle.

    Raises:
        ModelNotFoundError: The checkpoint does not exist.
        UnsupportedError: A module or setting of the checkpoint cannot be exported.
        MissingDependencyError: The source needs a package that is not installed.
        FidelityError: The result is further from the original than the recipe tolerates.
        ExportError: The output directory is in the way, or cannot be written.
    """
    check_choice("dtype", dtype, DTYPES)
    recipe = RECIPES[dtype]
    if source not in typing.get_args(SourceKind):
        raise InvalidArgumentError(
            f"source {source!r} is not known. Allowed: {', '.join(typing.get_args(SourceKind))}."
        )
    lower = recipe.precision_of_weights
    if calibrate is not None and (lower is None or not lower.calibrates):
        raise InvalidArgumentError(f"calibrate is for recipes that quantize, and {dtype} does not. Leave it out.")
    texts = read_texts(calibrate) if calibrate is not None else None
    scored = read_pairs(pairs) if pairs is not None else None
    label = os.fspath(model)
    target = Path(output) if output is not None else Path(f"{label.rstrip('/').rsplit('/', 1)[-1]}-{recipe.name}")
    check_target(target, overwrite)
    stage = Stages(sys.stderr.isatty() if show_progress is None else show_progress)
    with staging_directory(target, overwrite) as staging, ExitStack() as stack:
        with stage("reading the checkpoint"):
            onnx = source == "onnx" or (source == "auto" and missing_for_pytorch() is not None)
            trust = Trust(local_files_only) if trust_remote_code else None
            directory = find_checkpoint(
                label, task, revision, token, cache_folder, local_files_only, onnx, code=trust is not None
            )
            whole = whole_checkpoint(directory, task, token, cache_folder, local_files_only, code=trust is not None)
            commit = commit_of(directory)
            directory, base = stack.enter_context(whole)
            checkpoint, original = open_checkpoint(directory, task, source, trust, base)
        with stage("reading the network"):
            graphs = {route: original.graph(route) for route in checkpoint.routes}
            rows = {
                route: token_rows(graph.graph, checkpoint.routes[route][0], original.tokenizer(route).backend)
                for route, graph in graphs.items()
            }
            image_original = original.images()
            images = ImageGraph(image_original, checkpoint, recipe) if image_original is not None else None
        with stage("building the graph"):
            results = [
                result
                for route, graph in graphs.items()
                for result in _build(graph, checkpoint, route, original, recipe)
            ]
            if images is not None:
                images.build()
        lowered: dict[str, LowerPrecision] = {}
        if lower is not None:
            with stage(lower.stage) as advance:
                lowered = {
                    route: _calibrate(lower, graph, checkpoint, route, original, texts, advance)
                    for route, graph in graphs.items()
                }
                if images is not None:
                    images.calibrate(advance)
        pinned = revision if base is None else revision or commit
        origin = Source(name or label, pinned, checkpoint.weights_sha256, base)
        known: dict[str, npt.NDArray[np.float32]] = {}
        refines, holds = bool(lowered) and checkpoint.task in recipe.aim, True
        while True:
            with stage("writing the files"):
                built, more, safe = _lower(graphs, lowered)
                outlines = [outline.run(graph, recipe.outline) for graph in built.values()]
                routes = write_routes(built, safe, rows, checkpoint, original, staging)
                kept = tuple(name for result in results for name in result.kept)
                kept += tuple(name for precision in lowered.values() for name in precision.kept)
                manifest = _manifest(checkpoint, routes, recipe, origin, kept, original.loaded, staging)
                halved = tuple(name for precision in lowered.values() for name in precision.halved)
                manifest = dataclasses.replace(manifest, kernels=outline.kernels(outlines), halved=halved)
                if images is not None:
                    tower = images.write(staging)
                    files = {**manifest.files, **hash_files(staging, written_for(tower.graph, staging))}
                    manifest = dataclasses.replace(manifest, image=tower, files=files)
                write_manifest(staging, manifest)
            try:
                with stage("verifying against the original"):
                    # Verify the file itself, whether this machine has kernels or not.
                    engine = Engine(open_bundle(staging), device="cpu", kernels=False)
                    fidelity = verify_fidelity(engine, original, recipe.tolerance[checkpoint.task], known=known)
                    if scored is not None:
                        drop = spearman_drop(engine, original, scored, known)
                        fidelity = dataclasses.replace(fidelity, spearman_drop=drop)
                        check(fidelity)
                    if images is not None:
                        manifest = dataclasses.replace(manifest, image=images.verify(engine, original.name))
                    fidelity = dataclasses.replace(fidelity, as_loaded=compare_as_loaded(engine, original))
                if not refines or reaches(fidelity, recipe.aim[checkpoint.task]):
                    break
                refines = _refine(lowered, stage)
                # If the aim is missed, the refinement is taken back, unless the tolerance needs it.
                if not refines and not (holds and _restore(lowered)):
                    break
                clear(staging)
            except ToleranceError as error:
                # A graph that is close enough stays as it is.
                of_images = images is not None and isinstance(error, ImageToleranceError)
                far = images.lowered if images is not None and of_images else lowered
                holds = holds and far is not lowered
                refines = refines and (far is not lowered or _refine(lowered, stage))
                if not (refines and far is lowered) and not _keep_more(far, stage):
                    raise FidelityError(f"{error} Nothing was written.{_worst_layers(far)}") from None
                clear(staging)
            except FidelityError as error:
                raise FidelityError(f"{error} Nothing was written.") from None
        with stage("writing the manifest"):
            saturates = any(route.saturation_safe for route in routes.values())
            safe_engine = None
            if saturates:
                safe_engine = Engine(open_bundle(staging), device="cpu", form="saturation-safe", kernels=False)
            probe_module.write(
                staging, manifest, engine.named_routes, safe_engine.named_routes if safe_engine else None
            )
            if manifest.image is not None:
                engines = [engine, safe_engine] if safe_engine is not None else [engine]
                probe_module.write_image_vectors(staging, [each.images for each in engines])
            files = {**manifest.files, **hash_files(staging, [probe_module.FILE])}
            probe = Probe(probe_module.FILE, recipe.probe_cosine)
            rewrites = count([*results, *more, *(found.result for found in outlines)])
            manifest = dataclasses.replace(manifest, fidelity=fidelity, files=files, probe=probe, rewrites=rewrites)
            (staging / model_card.NAME).write_text(model_card.render(manifest), encoding="utf-8")
            write_manifest(staging, manifest)
        with stage("opening the bundle"):
            try:
                try_bundle(staging, manifest, original, recipe.tolerance[checkpoint.task])
            except FidelityError as error:
                raise FidelityError(f"{error} Nothing was written.") from error.__cause__
    return target


def _build(graph: ir.Model, checkpoint: Checkpoint, route: str, original: Original, recipe: Recipe) -> list[PassResult]:
    add_query_rows(graph, checkpoint.routes[route])
    results = [rewrite(graph) for rewrite in recipe.network_passes]
    if recipe.lowering is not None:
        limit = text_limit(checkpoint, route, original)
        results.append(recipe.lowering(graph, half_range.sequences(original.tokenizer(route), limit)))
    if is_code(checkpoint.routes[route]):
        graft.name_outputs(graph, checkpoint.task, checkpoint.activation)
    else:
        chain, tokenizer = checkpoint.routes[route], original.tokenizer(route)
        is_classifier = TASKS[checkpoint.task].gives_labels and len(chain) == 1
        late = TASKS[checkpoint.task].row_mask is not None
        rows = row_mask_of(chain, tokenizer.backend, tokenizer.unknown_token_id) if late else None
        if not is_classifier:
            graft.graft(graph, chain, task=checkpoint.task, rows=rows)
        if TASKS[checkpoint.task].gives_labels:
            graft.graft_scores(graph, checkpoint.activation or "identity")
    check_finite(graph)
    results += [rewrite(graph) for rewrite in recipe.passes]
    finish(graph)
    return results


def _calibrate(
    lower: type[MixedQuantization] | type[HalfWeights],
    graph: ir.Model,
    checkpoint: Checkpoint,
    route: str,
    original: Original,
    texts: list[str] | None,
    advance: Advance,
) -> LowerPrecision:
    limit, tokenizer = text_limit(checkpoint, route, original), original.tokenizer(route)
    if limit is None or not isinstance(checkpoint.routes[route][0], Transformer):  # a table, and no products
        return lower(graph, [])
    known = [*text_sequences(tokenizer, CALIBRATION_TEXTS, limit), *random_sequences(tokenizer, limit)]
    if texts is None or lower is not MixedQuantization:
        return lower(graph, known, advance=advance)
    return MixedQuantization(graph, text_sequences(tokenizer, texts, limit), known, advance)


def _lower(
    graphs: dict[str, ir.Model], lowered: dict[str, LowerPrecision]
) -> tuple[dict[str, ir.Model], list[PassResult], dict[str, dict[str, Scalar]]]:
    """The graphs to write, the results of lowering them, and each route's values that are safe from saturation."""
    built, results, safe = dict(graphs), [], {}
    for route, precision in lowered.items():
        built[route], more, safe[route] = precision.apply()
        built[route].graph.sort()
        results += more
    return built, results, safe


def _keep_more(lowered: dict[str, LowerPrecision], stage: Stages) -> bool:
    """Keep more layers in float32; False if there is nothing more to keep."""
    if not lowered:
        return False
    static = any(precision.has_static_scales for precision in lowered.values())
    search = next(iter(lowered.values())).search
    with stage(_OWN_SCALES if static else search) as advance:
        more = [precision.keep_more(advance) for precision in lowered.values()]
        return any(more)


def _refine(lowered: dict[str, LowerPrecision], stage: Stages) -> bool:
    """Come closer to the recipe's aim; False if nothing that is worth it is left to do."""
    static = any(precision.has_static_scales for precision in lowered.values())
    with stage(_OWN_SCALES if static else "finding the blocks that lose most") as advance:
        more = [precision.refine(advance) for precision in lowered.values()]
        return any(more)


def _restore(lowered: dict[str, LowerPrecision]) -> bool:
    """Take back what :func:`_refine` did, because it was not enough; False if that was nothing."""
    restored = [precision.restore() for precision in lowered.values()]
    return any(restored)


def _worst_layers(lowered: dict[str, LowerPrecision]) -> str:
    worst = [precision.worst for precision in lowered.values() if precision.worst]
    if not worst:
        return ""
    calibrate = any(precision.calibrates for precision in lowered.values())
    return (
        f" Half of its layers were kept in float32 already; the one that loses most is {', '.join(worst)}. Export it "
        f"with --dtype fp32{', or calibrate with texts of your own: --calibrate FILE' if calibrate else ''}"
    )
