"""Find a checkpoint, choose PyTorch or ONNX as the source of its network, and load the original."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from stonnx._bundle.manifest import Source
from stonnx._errors import (
    ExportError,
    MissingDependencyError,
    ModelFileError,
    ModelNotFoundError,
    StonnxError,
    UnsupportedError,
)
from stonnx._exporter import exporter_needed
from stonnx._hub.download import download, missing_for_pytorch
from stonnx._hub.names import full_name
from stonnx._tasks import Task
from stonnx_export.checkpoint.modules import reads_images
from stonnx_export.checkpoint.read import Checkpoint, read_checkpoint
from stonnx_export.checkpoint.repository_code import Trust, refuse_network_code, refuse_tokenizer_code
from stonnx_export.originals.original import Original
from stonnx_export.originals.text_limits import respect_positions

# The source of the network: PyTorch's weights, or an ONNX file of the checkpoint.
SourceKind = Literal["auto", "torch", "onnx"]


def open_checkpoint(
    directory: Path, task: Task | None, source: SourceKind, trust: Trust | None = None, base: Source | None = None
) -> tuple[Checkpoint, Original]:
    """The data of a checkpoint, and the original that computes its vectors. ``base`` is the model of an adapter.

    Raises:
        UnsupportedError: The checkpoint needs code of its repository, and ``trust`` is None.
    """
    checkpoint = dataclasses.replace(
        read_checkpoint(directory, task, trust), base=base.name if base is not None else None
    )
    if _choose_source(checkpoint, source) == "torch":
        if trust is None:
            refuse_network_code(checkpoint.network_code, has_onnx=_has_onnx(checkpoint))
            refuse_tokenizer_code(checkpoint.tokenizer_code, can_run=True)
        original = _load_original(checkpoint)
    else:
        refuse_tokenizer_code(checkpoint.tokenizer_code, can_run=False)
        checkpoint, original = _load_onnx_original(checkpoint)
    respect_positions(checkpoint, original)
    return checkpoint, original


@contextmanager
def load_original(name: str, task: Task | None, source: SourceKind, trust: Trust | None = None) -> Iterator[Original]:
    """The original of a checkpoint directory or Hub id.

    Raises:
        ModelNotFoundError, UnsupportedError, MissingDependencyError, ExportError: As for :func:`export`.
    """
    onnx = source == "onnx" or (source == "auto" and missing_for_pytorch() is not None)
    directory = find_checkpoint(name, task, None, None, None, False, onnx, code=trust is not None)
    with whole_checkpoint(directory, task) as (whole, base):
        _, original = open_checkpoint(whole, task, source, trust, base)
        yield original


@contextmanager
def whole_checkpoint(
    directory: Path,
    task: Task | None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    *,
    code: bool = False,
) -> Iterator[tuple[Path, Source | None]]:
    """A checkpoint, with the model that it changes if it is an adapter, and where that model comes from.

    Raises:
        ModelNotFoundError, MissingDependencyError, UnsupportedError: The model is missing, or cannot be changed so.
    """
    missing = missing_for_pytorch()
    if missing is not None:
        if (directory / "adapter_config.json").is_file():
            raise MissingDependencyError(
                f"{directory} is an adapter, which PyTorch merges into its model, and {missing} is not installed. "
                'Install the exporter with: pip install "stonnx[cpu,export,adapters]"'
            )
        yield directory, None
        return
    from stonnx_export.originals.adapter import with_base

    def find(name: str) -> Path:
        return find_checkpoint(name, task, None, token, cache_folder, local_files_only, False, code=code)

    with with_base(directory, find, commit_of) as found:
        yield found


def find_checkpoint(
    name: str,
    task: Task | None,
    revision: str | None,
    token: bool | str | None,
    cache_folder: str | None,
    local_files_only: bool,
    onnx: bool,
    *,
    code: bool = False,
) -> Path:
    """The directory of a checkpoint. ``code``: with the Python files of its repository."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelFileError(f"Path {name} is a file, not a directory. Pass the directory of the checkpoint.")
    if not name or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"{name!r} is not a directory here, and not a Hub id of the form organization/name.")
    full = full_name(name, task or "embedding")
    return download(full, revision, token, cache_folder, local_files_only, typed=name, onnx=onnx, code=code)


def commit_of(directory: Path) -> str | None:
    """The commit of a directory that comes from the Hub, whose client calls it after that; None for others."""
    return directory.name if directory.parent.name == "snapshots" else None


def _choose_source(checkpoint: Checkpoint, source: SourceKind) -> SourceKind:
    missing = missing_for_pytorch()
    if checkpoint.base is not None and source == "onnx":
        raise UnsupportedError(
            f"{checkpoint.directory} is an adapter for {checkpoint.base!r}. PyTorch merges the two: --source torch"
        )
    if reads_images(checkpoint.chain):
        _check_images(checkpoint, source)
        source = "torch"
    if source == "onnx" or (source == "torch" and missing is None):
        return source
    folders = {*checkpoint.folders.values()}
    weights = any(list(folder.glob(pattern)) for folder in folders for pattern in ("*.safetensors", "*.bin"))
    if source == "auto":
        if weights and missing is None:
            return "torch"
        if _has_onnx(checkpoint):
            return "onnx"
        if not weights:
            raise ModelNotFoundError(
                f"{checkpoint.directory} has no weights that can be exported: neither PyTorch's (*.safetensors, *.bin) "
                "nor an ONNX file (onnx/model.onnx or model.onnx). Download the checkpoint again with one of them."
            )
    raise MissingDependencyError(
        f"{missing} is not installed, and the export of the PyTorch weights of {checkpoint.directory} needs it. "
        'Install the exporter with: pip install "stonnx[cpu,export]"\n'
        "Without PyTorch, a checkpoint that has onnx/model.onnx can be exported from that: --source onnx"
    )


def _check_images(checkpoint: Checkpoint, source: SourceKind) -> None:
    """Check what the export of a network that reads images needs."""
    if source == "onnx":
        raise UnsupportedError(
            f"{checkpoint.directory} reads texts and images, and is exported from its PyTorch weights only: --source "
            "torch"
        )
    if importlib.util.find_spec("PIL") is None:
        raise MissingDependencyError(
            f"{checkpoint.directory} reads images, and its export needs pillow, which is not installed. Install it "
            'with: pip install "stonnx[image]"'
        )


def _has_onnx(checkpoint: Checkpoint) -> bool:
    with exporter_needed():
        from stonnx_export.originals.from_onnx import is_exportable

    return is_exportable(checkpoint)


def _load_original(checkpoint: Checkpoint) -> Original:
    with exporter_needed():
        from stonnx_export.originals.adapter import does_not_load
        from stonnx_export.originals.from_torch import TorchOriginal

    try:
        return TorchOriginal(checkpoint)
    except StonnxError:
        raise
    except Exception as error:  # of transformers, safetensors or torch, for whatever the checkpoint lacks
        if checkpoint.base is not None:
            raise does_not_load(checkpoint.directory, checkpoint.base, error) from error
        raise ExportError(
            f"sentence-transformers cannot load {checkpoint.directory}: {type(error).__name__}: {error}"
        ) from error


def _load_onnx_original(checkpoint: Checkpoint) -> tuple[Checkpoint, Original]:
    """The original, and the checkpoint: without modules.json, the ONNX file decides which chain it has."""
    with exporter_needed():
        from stonnx_export.originals.from_onnx import OnnxOriginal

    original = OnnxOriginal(checkpoint)
    return original.checkpoint, original
