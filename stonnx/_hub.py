"""A model name or path to the directory of a bundle: naming rules, downloads, export on first use.

The only file that knows ``huggingface_hub``, which is imported when a name has to be looked up, not before.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stonnx._bundle import MANIFEST_NAME, Task, read_manifest
from stonnx._errors import MissingDependencyError, ModelNotFoundError, UnsupportedError

logger = logging.getLogger("stonnx")

# The organization that a bare name belongs to, as in sentence-transformers.
ORGANIZATIONS: dict[Task, str] = {
    "embedding": "sentence-transformers",
    "sparse": "sparse-encoder",
    "rerank": "cross-encoder",
}

# A directory with one of these is a checkpoint that can be exported.
_CHECKPOINT_FILES = ("modules.json", "config.json")
# What of a checkpoint is downloaded: settings, tokenizer and weights, but not the same weights in other formats.
_DOWNLOADED = ["*.json", "*.txt", "*.model", "*.safetensors", "*/*.safetensors", "pytorch_model.bin", "*/*.bin"]
# The same with the network as ONNX, and PyTorch's weights of the small modules only, which lie in their own folders.
_DOWNLOADED_ONNX = [
    *("*.json", "*.txt", "*.model", "*/model.safetensors", "*/pytorch_model.bin"),
    *("model.onnx", "model.onnx[._]data", "*/model.onnx", "*/model.onnx[._]data"),
]


def find_bundle(
    name_or_path: str | os.PathLike[str],
    *,
    task: Task,
    dtype: str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The directory of a bundle, downloaded or exported first where necessary.

    Args:
        name_or_path: A directory, or the id of a Hub repository.
        task: What the model is for; it decides which Hub organization a bare name belongs to.
        dtype: The recipe for an export on first use. None: ``fp32``, or whatever an existing bundle has.
        cache_folder: Where downloads are kept. None: the Hugging Face cache.
        revision: Branch, tag or commit of the repository.
        token: Hub token for private repositories.
        local_files_only: Never ask the network.

    Raises:
        ModelNotFoundError: Nothing is there.
        MissingDependencyError: There is a checkpoint but no bundle, and the exporter is not installed.
    """
    name = os.fspath(name_or_path)
    path = Path(name)
    if path.is_file():
        raise ModelNotFoundError(f"{name} is a file. Pass the directory of the bundle instead: {path.parent}")
    if name and path.is_dir():  # an empty name would be the working directory
        if (path / MANIFEST_NAME).is_file():
            return _with_dtype(path, dtype)
        if any((path / file).is_file() for file in _CHECKPOINT_FILES):
            return _exported(name, _local_identity(path), task, dtype)
        raise ModelNotFoundError(
            f"{name} is no model: it has neither {MANIFEST_NAME} (a bundle) nor {' or '.join(_CHECKPOINT_FILES)} "
            "(a checkpoint that `stonnx export` turns into a bundle)."
        )
    if not name or name.count("/") > 1 or "\\" in name or name.startswith((".", "~", "/")):
        raise ModelNotFoundError(f"{name!r} is no directory here, and no Hub id of the form organization/name.")
    if "/" not in name:
        name = f"{ORGANIZATIONS[task]}/{name}"
    directory = download(name, revision, token, cache_folder, local_files_only)
    if (directory / MANIFEST_NAME).is_file():
        return _with_dtype(directory, dtype)
    # The directory of a snapshot is named after its commit: that identifies the weights.
    return _exported(str(directory), f"{name}@{directory.name}", task, dtype, name=name)


def cache_directory() -> Path:
    """Where bundles exported on first use are kept: ``STONNX_HOME``, or ``stonnx`` in the user's cache directory."""
    home = os.environ.get("STONNX_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stonnx"


def _with_dtype(directory: Path, dtype: str | None) -> Path:
    if dtype is None:
        return directory
    recipe = read_manifest(directory).recipe
    if dtype != recipe:
        raise UnsupportedError(
            f"{directory} was exported as {recipe!r}, not as {dtype!r}, and stonnx does not convert silently. "
            f"Export that precision from the checkpoint: stonnx export MODEL --dtype {dtype}"
        )
    return directory


def _exported(source: str, identity: str, task: Task, dtype: str | None, *, name: str | None = None) -> Path:
    """The bundle of a checkpoint from the cache, exported into it if it is not there yet."""
    label = name or source
    # With the exporter but without PyTorch, a checkpoint may still have an ONNX file: the exporter looks for it.
    if missing_for_pytorch() is not None and _is_missing("onnx_ir"):
        raise MissingDependencyError(
            f"{label} is a checkpoint, not a bundle. Export it once, on a machine that has the exporter "
            f'(pip install "stonnx[cpu,export]"), with: stonnx export {label} -o DIRECTORY\n'
            "Then load DIRECTORY here."
        )
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    recipe = dtype or "fp32"
    digest = hashlib.sha256(f"{identity}\0{task}\0{recipe}".encode()).hexdigest()[:16]
    target = cache_directory() / f"{label.rstrip('/').rsplit('/', 1)[-1]}-{recipe}-{digest}"
    if (target / MANIFEST_NAME).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes that start at once, one exports and the others wait for it.
    with WeakFileLock(target.with_name(target.name + ".lock")):
        if not (target / MANIFEST_NAME).is_file():
            from stonnx_export import export

            logger.warning("Exporting %s to a %s bundle for first use, into %s", label, recipe, target)
            export(source, target, dtype=recipe, task=task, name=name)
    return target


def missing_for_pytorch() -> str | None:
    """The first package that is not there of those that an export from PyTorch weights needs."""
    return next((name for name in ("torch", "sentence_transformers") if _is_missing(name)), None)


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ImportError:  # an import hook refuses it
        return True


def _local_identity(path: Path) -> str:
    """Changes whenever a file of the checkpoint does."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    stats = [f"{file.relative_to(path)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return "\0".join([str(path.resolve()), *stats])


def download(
    name: str,
    revision: str | None,
    token: bool | str | None,
    cache_folder: str | None,
    local_files_only: bool,
    *,
    onnx: bool | None = None,
) -> Path:
    """The directory of a bundle or checkpoint from the Hub; of a checkpoint, what an export needs.

    ``onnx`` says whether the network is to come as an ONNX file. None: where PyTorch is not installed. Either way the
    other form is downloaded where that one is not there.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    place: dict[str, Any] = {"repo_id": name, "cache_dir": cache_folder, "token": token}
    place["local_files_only"] = local_files_only
    try:
        if local_files_only or HF_HUB_OFFLINE:
            # Straight from the cache: even for that, the client's download function may ask the network something.
            cached = huggingface_hub.try_to_load_from_cache(name, MANIFEST_NAME, cache_folder, revision)
            directory = Path(cached).parent if isinstance(cached, str) else None
            if directory is not None and all((directory / file).is_file() for file in read_manifest(directory).files):
                return directory
        # Asked for a file that is not in the cache, the client tries for half a minute where there is no network. So
        # a checkpoint that is there is not asked for a manifest: if it has one by now, its snapshot below brings it.
        if not _has_checkpoint(**place, revision=revision):
            try:
                return _download_bundle(revision, place)
            except LocalEntryNotFoundError:  # not in the cache; it is an EntryNotFoundError too
                if not local_files_only:
                    raise
            except EntryNotFoundError:
                pass
        wanted = [(_DOWNLOADED, ("**/*.safetensors", "**/*.bin")), (_DOWNLOADED_ONNX, ("**/model.onnx",))]
        if missing_for_pytorch() is not None if onnx is None else onnx:
            wanted.reverse()
        for patterns, weights in wanted:
            snapshot = Path(huggingface_hub.snapshot_download(revision=revision, allow_patterns=patterns, **place))
            if (snapshot / MANIFEST_NAME).is_file():
                return _download_bundle(snapshot.name, place)
            if any(list(snapshot.glob(pattern)) for pattern in weights):
                break
        return snapshot
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = "in the local cache" if local_files_only else "on the Hub or in the local cache"
        raise ModelNotFoundError(
            f"{name} is no directory here, and was not found {where}: {str(error).splitlines()[0]}\n"
            "Check the name, or pass the directory of a bundle made with: stonnx export MODEL -o DIRECTORY"
        ) from error


def _download_bundle(revision: str | None, place: Mapping[str, Any]) -> Path:
    import huggingface_hub

    manifest = Path(huggingface_hub.hf_hub_download(filename=MANIFEST_NAME, revision=revision, **place))
    for file in read_manifest(manifest.parent).files:
        # The commit in the path of the manifest pins the other files to the same version.
        huggingface_hub.hf_hub_download(filename=file, revision=manifest.parent.name, **place)
    return manifest.parent


def _has_checkpoint(**place: Any) -> bool:
    """Whether files of a repository are in the cache, and no manifest is among them."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(huggingface_hub.snapshot_download(**place | {"local_files_only": True}))
    except LocalEntryNotFoundError:
        return False
    return not (snapshot / MANIFEST_NAME).is_file()
