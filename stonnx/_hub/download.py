"""Bundles and checkpoints from the Hub. The only file that knows ``huggingface_hub``'s downloads."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest
from stonnx._bundle.replaced import nearest_bundle
from stonnx._errors import (
    BundleFormatError,
    ModelNotFoundError,
)

# A directory with one of these is a checkpoint that can be exported.
CHECKPOINT_FILES = ("modules.json", "config.json", "adapter_config.json")

# The files of a checkpoint to download: settings, tokenizer and weights, but not the same weights in other formats.
_DOWNLOADED = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors"]

# The weights of a folder without *.safetensors.
_DOWNLOADED_BIN = "pytorch_model*.bin"

# The same with the network as ONNX, and PyTorch's weights of the small modules only, which lie in their own folders.
_DOWNLOADED_ONNX = [
    *("*.json", "*.txt", "*.jinja", "*.model", "*/model.safetensors", "*/pytorch_model.bin"),
    *("model.onnx", "model.onnx[._]data", "*/model.onnx", "*/model.onnx[._]data"),
]

# The files of a repository that transformers imports.
_DOWNLOADED_CODE = ["*.py"]

# Never downloaded: files in the folder of another program.
_NOT_DOWNLOADED = ["openvino/*"]


def missing_for_pytorch() -> str | None:
    """The first missing package of those that an export from PyTorch weights needs."""
    return next((name for name in ("torch", "sentence_transformers") if _is_missing(name)), None)


def is_exporter_missing() -> bool:
    """Whether exports are impossible here. With the exporter but without PyTorch, an ONNX file can be exported."""
    return missing_for_pytorch() is not None and _is_missing("onnx_ir")


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ImportError:  # an import hook refuses it
        return True


def download(
    name: str,
    revision: str | None,
    token: bool | str | None,
    cache_folder: str | None,
    local_files_only: bool,
    *,
    typed: str | None = None,
    onnx: bool | None = None,
    code: bool = False,
) -> Path:
    """The directory of a bundle or checkpoint from the Hub. Of a checkpoint, it has the files that an export needs.

    ``typed`` is the name as the user wrote it, for errors. ``onnx`` says whether the network should come as an ONNX
    file. None: if PyTorch is not installed. If that form is missing, the other one is downloaded. ``code``: Python
    files too. Only an exporter that was told to trust them runs them.
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
            # Straight from the cache: even for a cached file, the client's download function may use the network.
            cached = huggingface_hub.try_to_load_from_cache(name, MANIFEST_NAME, cache_folder, revision)
            directory = Path(cached).parent if isinstance(cached, str) else None
            if directory is not None and all((directory / file).is_file() for file in _listed(directory)):
                return directory
        # If a file is not in the cache and there is no network, the client tries for half a minute. So this does not
        # ask for the manifest of a cached checkpoint: if there is one by now, the snapshot below brings it. If nothing
        # is cached, a single request finds out first whether the Hub answers.
        if not _has_checkpoint(**place, revision=revision):
            cached = huggingface_hub.try_to_load_from_cache(name, MANIFEST_NAME, cache_folder, revision)
            try:
                if not isinstance(cached, str) and not local_files_only and not HF_HUB_OFFLINE:
                    _ask_hub(name, revision, token)
                return _download_bundle(revision, place)
            except LocalEntryNotFoundError:  # not in the cache; it is an EntryNotFoundError too
                if not local_files_only:
                    raise
            except EntryNotFoundError:
                pass
        snapshot = _download_checkpoint(
            revision, place, missing_for_pytorch() is not None if onnx is None else onnx, code
        )
        if not any(snapshot.iterdir()):  # a download was interrupted at its first file
            raise FileNotFoundError("no file of it is there")
        return _download_bundle(snapshot.name, place) if (snapshot / MANIFEST_NAME).is_file() else snapshot
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = f"{name} is not a directory here, and"
        if typed not in (None, name):
            said = f"{typed!r} is not a directory here. As the name of a model it stands for {name}, which"
        where = "in the local cache" if local_files_only else "on the Hub or in the local cache"
        found = f"was not found {where}: {str(error).splitlines()[0]}"
        if HF_HUB_OFFLINE and not local_files_only:
            found = "is not in the local cache. HF_HUB_OFFLINE is set, so the Hub was not asked."
        if isinstance(error, _NoAnswerError):
            found = f"is not in the local cache, and {error}"
        raise ModelNotFoundError(
            f"{said} {found}\n"
            f"Check the name, or pass the directory of a checkpoint, or of a bundle.{nearest_bundle(typed or name)} "
            "A bundle is made with: stonnx export MODEL -o DIRECTORY"
        ) from None  # the message has the reason; the traceback of an HTTP client is a page long


class _NoAnswerError(OSError):
    """The Hub does not answer."""


def _ask_hub(name: str, revision: str | None, token: bool | str | None) -> None:
    """Ask the Hub for a bundle with one request. The client's download functions repeat it for half a minute.

    Raises:
        EntryNotFoundError, HfHubHTTPError: The Hub says that there is none.
        _NoAnswerError: The Hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT, HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import HfHubHTTPError

    url = huggingface_hub.hf_hub_url(name, MANIFEST_NAME, revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url, token=token, timeout=HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError as error:
        # A busy Hub: the client waits and asks again.
        if error.response.status_code != 429 and error.response.status_code < 500:
            raise
    except Exception as error:  # each version of the client uses another HTTP package, which has errors of its own
        raise _NoAnswerError(f"the Hub at {ENDPOINT} cannot be reached: {error}") from error


def _download_checkpoint(revision: str | None, place: Mapping[str, Any], onnx: bool, code: bool) -> Path:
    """The files for an export: the network as an ONNX file or with PyTorch's weights, in one format of these."""
    import huggingface_hub

    def fetch(wanted: list[str], unwanted: list[str] | None = None) -> Path:
        ignored = [*_NOT_DOWNLOADED, *(unwanted or [])]
        return Path(
            huggingface_hub.snapshot_download(
                revision=revision, allow_patterns=wanted, ignore_patterns=ignored, **place
            )
        )

    if is_exporter_missing():
        # These files identify the commit, and so tell whether a bundle of it is here already. That is enough.
        return fetch([*CHECKPOINT_FILES])
    for as_onnx in (onnx, not onnx):
        if as_onnx:
            snapshot = fetch(_DOWNLOADED_ONNX)
        else:
            snapshot = fetch([*_DOWNLOADED, *_DOWNLOADED_CODE] if code else _DOWNLOADED)
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
    """The files of a bundle. None if its manifest cannot be read: loading the bundle reports that."""
    try:
        return read_manifest(directory).files
    except BundleFormatError:
        return ()


def _has_checkpoint(**place: Any) -> bool:
    """Whether files of a repository are in the cache, without a manifest."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(huggingface_hub.snapshot_download(**place | {"local_files_only": True}))
    except LocalEntryNotFoundError:
        return False
    # A download that was interrupted at its first file leaves an empty snapshot, which may become a bundle.
    return any(snapshot.iterdir()) and not (snapshot / MANIFEST_NAME).is_file()
