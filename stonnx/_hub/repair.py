"""Finds damaged bundles in a cache, and downloads them again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stonnx._bundle.bundle import Bundle, open_bundle
from stonnx._bundle.held_file import REPAIR
from stonnx._bundle.integrity import is_intact
from stonnx._bundle.manifest import MANIFEST_NAME, NewerSchemaError, read_manifest
from stonnx._bundle.replaced import is_bundle
from stonnx._errors import (
    BundleError,
    BundleIntegrityError,
)

logger = logging.getLogger("stonnx")


def open_download(directory: Path, place: Mapping[str, Any], local_files_only: bool) -> Bundle:
    """Open a bundle in the Hub cache. Damaged files are downloaded again.

    The client itself takes an existing file for the one that it downloaded.
    """
    found = open_cached(directory)
    if isinstance(found, Bundle):
        return found
    damage = found or BundleIntegrityError(f"{directory / MANIFEST_NAME} is missing.")
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Deleting the snapshot is not enough: its files are links.
    label, repository = place["repo_id"], directory.parent.parent
    if local_files_only or HF_HUB_OFFLINE:
        raise cannot_repair(label, damage, "local_files_only or HF_HUB_OFFLINE is set", repository) from damage
    logger.warning("Downloading %s again: %s", label, without_advice(damage))
    again = {**place, "revision": directory.name, "force_download": True}
    try:
        huggingface_hub.hf_hub_download(filename=MANIFEST_NAME, **again)
        manifest = read_manifest(directory)
        for file, entry in manifest.files.items():
            if not is_intact(directory / file, entry):
                huggingface_hub.hf_hub_download(filename=file, **again)
    except BundleError:  # so the bundle on the Hub is damaged
        raise
    # Without a network, the client raises a bare ValueError here, whose cause has the reason.
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise cannot_repair(label, damage, str(error.__cause__ or error).splitlines()[0], repository) from error
    return open_bundle(directory)


def open_cached(directory: Path) -> Bundle | BundleError | None:
    """The bundle in a directory of a cache, or its error; None if the directory does not have one."""
    if not is_bundle(directory):
        return None
    try:
        return open_bundle(directory)
    except NewerSchemaError:
        raise
    except BundleError as error:
        return error


def cannot_repair(label: str, damage: BundleError, reason: str, directory: Path) -> BundleIntegrityError:
    return BundleIntegrityError(
        f"The bundle of {label} in the cache is damaged: {without_advice(damage)} It cannot be made again here "
        f"({reason}). Delete {directory}, and load the model with a network, or with the exporter."
    )


def without_advice(damage: BundleError) -> str:
    """A message without its advice for the user's own bundles."""
    return str(damage).removesuffix(REPAIR).rstrip()
