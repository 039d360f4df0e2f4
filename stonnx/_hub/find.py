"""A model name or path to the directory of a bundle: naming rules, downloads, export on first use.

The only file that knows ``huggingface_hub``. It imports the package only to look up a name.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from stonnx._bundle.bundle import Bundle, open_bundle
from stonnx._bundle.manifest import MANIFEST_NAME
from stonnx._bundle.replaced import is_bundle, nearest_bundle
from stonnx._errors import ModelFileError, ModelNotFoundError, UnsupportedError
from stonnx._hub.download import CHECKPOINT_FILES, download
from stonnx._hub.first_use import exported, local_identity
from stonnx._hub.names import full_name
from stonnx._hub.repair import open_download
from stonnx._tasks import Task

logger = logging.getLogger("stonnx")


def find_bundle(
    name_or_path: str | os.PathLike[str],
    *,
    task: Task,
    dtype: str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    local_files_only: bool = False,
) -> Bundle:
    """Open and verify a bundle, after downloading or exporting it if necessary.

    A damaged bundle in a cache, stonnx's or the Hub's, is made again.

    Args:
        name_or_path: A directory, or the id of a Hub repository. An open bundle is returned as it is.
        task: The task of the model. It decides which Hub organization a bare name belongs to.
        dtype: The recipe for an export on first use. None: ``fp32``, or the recipe of an existing bundle.
        cache_folder: The directory for downloads. None: the Hugging Face cache.
        revision: Branch, tag or commit of the repository.
        token: Hub token for private repositories.
        local_files_only: Never ask the network.

    Raises:
        ModelNotFoundError: The name does not lead to a model.
        MissingDependencyError: There is a checkpoint without a bundle, and the exporter is not installed.
        BundleIntegrityError: The bundle in a cache is damaged, and cannot be made again.
        ExportError: The cache cannot be written.
    """
    if isinstance(name_or_path, Bundle):
        return _with_dtype(name_or_path, dtype)
    name = os.fspath(name_or_path)
    path = Path(name)
    if path.is_file():
        there = f" instead: {path.parent}" if is_bundle(path.parent) else ", which `stonnx export` makes, or a Hub id."
        raise ModelFileError(f"Path {name} is a file, not a directory. Pass the directory of a bundle{there}")
    if name and is_bundle(path):  # an empty name would be the working directory
        return _with_dtype(open_bundle(path), dtype)
    if name and path.is_dir():
        if any((path / file).is_file() for file in CHECKPOINT_FILES):
            return exported(name, local_identity(path), task, dtype)
        raise ModelNotFoundError(
            f"{name} is not a model: it has neither {MANIFEST_NAME} (a bundle) nor {' or '.join(CHECKPOINT_FILES)} "
            "(a checkpoint). Make a bundle with: stonnx export MODEL -o DIRECTORY"
        )
    if not name or name.count("/") > 1 or "\\" in name or name.startswith((".", "~", "/")):
        raise ModelNotFoundError(
            f"{name!r} is not a directory here, and not a Hub id of the form organization/name."
            f"{nearest_bundle(name)} Make a bundle with: stonnx export MODEL -o DIRECTORY"
        )
    typed, name = name, full_name(name, task)
    directory = download(name, revision, token, cache_folder, local_files_only, typed=typed)
    if (directory / MANIFEST_NAME).is_file():
        place = {"repo_id": name, "cache_dir": cache_folder, "token": token}
        return _with_dtype(open_download(directory, place, local_files_only), dtype)
    # The directory of a snapshot is named after its commit: that identifies the weights.
    return exported(str(directory), f"{name}@{directory.name}", task, dtype, name=name)


def _with_dtype(bundle: Bundle, dtype: str | None) -> Bundle:
    recipe = bundle.manifest.recipe
    if dtype is not None and dtype != recipe:
        raise UnsupportedError(
            f"{bundle.directory} was exported as {recipe!r}, not as {dtype!r}, and stonnx does not convert silently. "
            f"Export that precision from the checkpoint: stonnx export MODEL --dtype {dtype}"
        )
    return bundle
