"""A model name or path to the directory of a bundle: naming rules, downloads, export on first use.

The only file that knows ``huggingface_hub``, which is imported when a name has to be looked up, not before.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stonnx._bundle import MANIFEST_NAME, REPAIR, NewerSchemaError, Task, is_intact, read_manifest
from stonnx._cache import cache_directory
from stonnx._errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    ExportError,
    MissingDependencyError,
    ModelNotFoundError,
    UnsupportedError,
)
from stonnx._names import full_name
from stonnx._verified import verify_ahead

logger = logging.getLogger("stonnx")

# A directory with one of these is a checkpoint that can be exported.
_CHECKPOINT_FILES = ("modules.json", "config.json")
# What of a checkpoint is downloaded: settings, tokenizer and weights, but not the same weights in other formats.
_DOWNLOADED = ["*.json", "*.txt", "*.model", "*.safetensors"]
# The weights of a folder that has no *.safetensors.
_DOWNLOADED_BIN = "pytorch_model*.bin"
# The same with the network as ONNX, and PyTorch's weights of the small modules only, which lie in their own folders.
_DOWNLOADED_ONNX = [
    *("*.json", "*.txt", "*.model", "*/model.safetensors", "*/pytorch_model.bin"),
    *("model.onnx", "model.onnx[._]data", "*/model.onnx", "*/model.onnx[._]data"),
]
# Never: what is in the folder of another program.
_NOT_DOWNLOADED = ["openvino/*"]


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

    A bundle of a cache, ours or the Hub's, is checked, and made again where it is damaged.

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
        BundleIntegrityError: The bundle in a cache is damaged, and cannot be made again.
        ExportError: The cache cannot be written.
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
    name = full_name(name, task)
    directory = download(name, revision, token, cache_folder, local_files_only)
    if (directory / MANIFEST_NAME).is_file():
        place = {"repo_id": name, "cache_dir": cache_folder, "token": token}
        _repair_download(directory, place, local_files_only)
        return _with_dtype(directory, dtype)
    # The directory of a snapshot is named after its commit: that identifies the weights.
    return _exported(str(directory), f"{name}@{directory.name}", task, dtype, name=name)


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
    """The bundle of a checkpoint from the cache, exported into it if it is not there yet, or damaged."""
    label, recipe = name or source, dtype or "fp32"
    digest = hashlib.sha256(f"{identity}\0{task}\0{recipe}".encode()).hexdigest()[:16]
    target = cache_directory() / f"{label.rstrip('/').rsplit('/', 1)[-1]}-{recipe}-{digest}"
    there, damage = (target / MANIFEST_NAME).is_file(), _damage(target)
    if there and damage is None:
        return target
    if is_exporter_missing():
        if damage is not None:
            raise _cannot_repair(label, damage, "the exporter is not installed", target) from damage
        raise MissingDependencyError(
            f"{label} is a checkpoint, not a bundle. Export it once, on a machine that has the exporter "
            f'(pip install "stonnx[cpu,export]"), with: stonnx export {label} -o DIRECTORY\n'
            "Then load DIRECTORY here."
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(target))
        except OSError as error:
            if damage is not None:
                raise _cannot_repair(label, damage, f"{error.filename}: {error.strerror}", target) from error
            raise ExportError(
                f"{label} is a checkpoint, and the bundle made of it cannot be kept in {target.parent}: "
                f"{error.strerror}. Set STONNX_HOME to a directory that can be written."
            ) from error
        there, damage = (target / MANIFEST_NAME).is_file(), _damage(target)
        if not there or damage is not None:
            from stonnx_export import export

            what = "for first use" if damage is None else f"again: {_without_advice(damage)}"
            logger.warning("Exporting %s to a %s bundle %s, into %s", label, recipe, what, target)
            if not there:  # nor can anybody use what is left of it
                shutil.rmtree(target, ignore_errors=True)
            export(source, target, dtype=recipe, task=task, name=name, overwrite=True)
    return target


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Of several processes that start at once, one exports and the others wait for it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(target.name + ".lock")):
        yield


def _repair_download(directory: Path, place: Mapping[str, Any], local_files_only: bool) -> None:
    """See that a bundle in the Hub cache is whole, and download again what is damaged.

    The client takes a file that is there for the one that it downloaded.
    """
    damage = _damage(directory)
    if damage is None:
        return
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Deleting the snapshot would not do: its files are links.
    label, repository = place["repo_id"], directory.parent.parent
    if local_files_only or HF_HUB_OFFLINE:
        raise _cannot_repair(label, damage, "the Hub is not to be asked", repository) from damage
    logger.warning("Downloading %s again: %s", label, _without_advice(damage))
    again = {**place, "revision": directory.name, "force_download": True}
    try:
        huggingface_hub.hf_hub_download(filename=MANIFEST_NAME, **again)
        manifest = read_manifest(directory)
        for file, entry in manifest.files.items():
            if not is_intact(directory / file, entry):
                huggingface_hub.hf_hub_download(filename=file, **again)
    except BundleError:  # so it is on the Hub
        raise
    # Without a network, the client raises a bare ValueError here, and says what happened in its cause.
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _cannot_repair(label, damage, str(error.__cause__ or error).splitlines()[0], repository) from error
    verify_ahead(directory, manifest)


def _damage(directory: Path) -> BundleError | None:
    """What is wrong with the files of a bundle in a cache; None where all is well, or where there is none."""
    if not (directory / MANIFEST_NAME).is_file():
        return None
    try:
        verify_ahead(directory, read_manifest(directory))
    except NewerSchemaError:
        raise
    except BundleError as error:
        return error
    return None


def _cannot_repair(label: str, damage: BundleError, reason: str, directory: Path) -> BundleIntegrityError:
    return BundleIntegrityError(
        f"The bundle of {label} in the cache is damaged: {_without_advice(damage)} It cannot be made again here "
        f"({reason}). Delete {directory}, and load the model where that is possible."
    )


def _without_advice(damage: BundleError) -> str:
    """A message without its advice for bundles that are the user's own."""
    return str(damage).removesuffix(REPAIR).rstrip()


def missing_for_pytorch() -> str | None:
    """The first package that is not there of those that an export from PyTorch weights needs."""
    return next((name for name in ("torch", "sentence_transformers") if _is_missing(name)), None)


def is_exporter_missing() -> bool:
    """Whether nothing can be exported here: with the exporter but without PyTorch, an ONNX file still can."""
    return missing_for_pytorch() is not None and _is_missing("onnx_ir")


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
            if directory is not None and all((directory / file).is_file() for file in _listed(directory)):
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
        snapshot = _download_checkpoint(revision, place, missing_for_pytorch() is not None if onnx is None else onnx)
        return _download_bundle(snapshot.name, place) if (snapshot / MANIFEST_NAME).is_file() else snapshot
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = "in the local cache" if local_files_only else "on the Hub or in the local cache"
        raise ModelNotFoundError(
            f"{name} is no directory here, and was not found {where}: {str(error).splitlines()[0]}\n"
            "Check the name, or pass the directory of a bundle made with: stonnx export MODEL -o DIRECTORY"
        ) from error


def _download_checkpoint(revision: str | None, place: Mapping[str, Any], onnx: bool) -> Path:
    """What an export needs: the network as an ONNX file or with PyTorch's weights, in one format of these."""
    import huggingface_hub

    def fetch(wanted: list[str], unwanted: list[str] | None = None) -> Path:
        ignored = [*_NOT_DOWNLOADED, *(unwanted or [])]
        return Path(
            huggingface_hub.snapshot_download(
                revision=revision, allow_patterns=wanted, ignore_patterns=ignored, **place
            )
        )

    if is_exporter_missing():
        # These say which commit it is, and so whether a bundle of it is here already. Nothing else would be of use.
        return fetch([*_CHECKPOINT_FILES])
    for as_onnx in (onnx, not onnx):
        if as_onnx:
            snapshot = fetch(_DOWNLOADED_ONNX)
        else:
            snapshot = fetch(_DOWNLOADED)
            there = {file.parent.relative_to(snapshot) for file in snapshot.rglob("*.safetensors")}
            snapshot = fetch(
                [_DOWNLOADED_BIN, f"*/{_DOWNLOADED_BIN}"], [(folder / _DOWNLOADED_BIN).as_posix() for folder in there]
            )
        weights = ("**/model.onnx",) if as_onnx else ("**/*.safetensors", "**/*.bin")
        if any(list(snapshot.glob(pattern)) for pattern in weights):
            break
    return snapshot


def _download_bundle(revision: str | None, place: Mapping[str, Any]) -> Path:
    import huggingface_hub

    manifest = Path(huggingface_hub.hf_hub_download(filename=MANIFEST_NAME, revision=revision, **place))
    for file in _listed(manifest.parent):
        # The commit in the path of the manifest pins the other files to the same version.
        huggingface_hub.hf_hub_download(filename=file, revision=manifest.parent.name, **place)
    return manifest.parent


def _listed(directory: Path) -> Collection[str]:
    """The files of a bundle. None where its manifest cannot be read: who loads it finds that, too."""
    try:
        return read_manifest(directory).files
    except BundleFormatError:
        return ()


def _has_checkpoint(**place: Any) -> bool:
    """Whether files of a repository are in the cache, and no manifest is among them."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(huggingface_hub.snapshot_download(**place | {"local_files_only": True}))
    except LocalEntryNotFoundError:
        return False
    return not (snapshot / MANIFEST_NAME).is_file()
