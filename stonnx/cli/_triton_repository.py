"""A model repository for Triton Inference Server, written complete or not at all.

``NAME/config.pbtxt`` says what the model takes and gives, ``NAME/1/model.py`` runs ``stonnx.integrations.triton``, and
``NAME/1/bundle`` is a copy of the bundle, or a link to it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import MANIFEST_NAME, Manifest
from stonnx._disk import exchange, try_lock
from stonnx._errors import InvalidArgumentError, UnsupportedError

# Triton's own word for devices with an index of their own for each instance.
_ON_GPU = ("cuda", "tensorrt", "migraphx")

_MODEL = '''\
"""Written by `stonnx triton`. The code is in stonnx.integrations.triton."""

import os
import pathlib

try:
    from stonnx.integrations.triton import TritonModel
except ImportError as error:
    raise ImportError(
        f"{error}. tritonserver needs stonnx in the Python environment of its backend: install it there with "
        'pip install "stonnx[cpu]", and start tritonserver with the bin directory of that environment first in PATH.'
    ) from error


class TritonPythonModel(TritonModel):
    bundle = pathlib.Path(os.path.abspath(__file__)).parent / "bundle"
'''


@dataclass(frozen=True)
class Serving:
    """How Triton runs the model.

    Attributes:
        device: The device of the model, as ``"cpu"`` or ``"cuda"``; ``"cuda:1"`` uses that GPU alone.
        instances: Copies of the model, on each GPU or on the CPU.
        threads: Threads of each on the CPU. None: as many as the process may use CPUs.
        max_batch_size: The most texts of a request, and of requests that run together.
        max_queue_size: The most requests that wait; further ones are refused. 0: any number.
        timeout: Seconds after which a request that waits is refused. A request may ask for less or more.
    """

    device: str = "cpu"
    instances: int = 1
    threads: int | None = None
    max_batch_size: int = 64
    max_queue_size: int = 1024
    timeout: float = 10.0


def write_repository(
    bundle: Path, repository: Path, name: str, serving: Serving, *, link: bool = False, overwrite: bool = False
) -> Path:
    """Write the model of a bundle into a repository, which is made if it is missing.

    Args:
        bundle: The directory of the bundle.
        repository: The directory that Triton gets as ``--model-repository``.
        name: The name of the model there.
        serving: How Triton runs it.
        link: Link to the bundle instead of copying it.
        overwrite: Replace a model of that name.

    Returns:
        The directory of the model.

    Raises:
        InvalidArgumentError: The name cannot be one, or is taken.
        BundleError: The bundle cannot be used.
        UnsupportedError: The task of the bundle has no form for Triton.
        OSError: The repository cannot be written. Nothing is left in it.
    """
    if not name or name in (".", "..") or any(character in name for character in '/\\"\n') or name.startswith("."):
        raise InvalidArgumentError(
            f"{name!r} cannot be the name of a model. Choose letters, digits, '_', '-' and '.': --name NAME"
        )
    target = repository / name
    if os.path.lexists(target) and not overwrite:
        raise InvalidArgumentError(
            f"{target} exists already. Choose another name with --name, or replace the model with --overwrite."
        )
    manifest = open_bundle(bundle).manifest
    with _staging(repository, name) as staging:
        version = staging / "1"
        version.mkdir()
        if link:
            (version / "bundle").symlink_to(bundle.resolve(), target_is_directory=True)
        else:
            (version / "bundle").mkdir()
            for file in (MANIFEST_NAME, *manifest.files):
                (version / "bundle" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / file, version / "bundle" / file)
            # An export may have replaced the bundle during the copy.
            manifest = open_bundle(version / "bundle").manifest
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        (staging / "config.pbtxt").write_text(render_config(name, manifest, serving), encoding="utf-8")
        for path in [*staging.rglob("*"), staging]:
            if not path.is_symlink():
                _sync(path)
        _move(staging, target)
    _sync(repository)
    return target


def render_config(name: str, manifest: Manifest, serving: Serving) -> str:
    """The text of ``config.pbtxt``.

    Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
    """
    base, _, number = serving.device.partition(":")
    on_gpu = base in _ON_GPU
    texts, results = _tensors(manifest)
    inputs = [f'  {{ name: "{tensor}", data_type: TYPE_STRING, dims: [ 1 ] }}' for tensor in texts]
    outputs = [f'  {{ name: "{tensor}", data_type: {kind}, dims: [ {size} ] }}' for tensor, kind, size in results]
    parameters = {"device": base if on_gpu else serving.device}
    if serving.threads is not None:
        parameters["threads"] = str(serving.threads)
    gpus = f", gpus: [ {number} ]" if on_gpu and number else ""
    lines = [
        f"# {manifest.source.name}, {manifest.precision}. Written by `stonnx triton`.".replace("\n", " "),
        f"name: {json.dumps(name, ensure_ascii=False)}",
        'backend: "python"',
        f"max_batch_size: {serving.max_batch_size}",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
        f"instance_group [ {{ kind: {'KIND_GPU' if on_gpu else 'KIND_CPU'}, count: {serving.instances}{gpus} }} ]",
        "# Requests that wait while the model runs are merged. There is no delay to wait for company.",
        "dynamic_batching {",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {round(serving.timeout * 1e6)}",
        "    allow_timeout_override: true",
        f"    max_queue_size: {serving.max_queue_size}",
        "  }",
        "}",
        *(
            f'parameters {{ key: "{key}", value {{ string_value: {json.dumps(value)} }} }}'
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensors(manifest: Manifest) -> tuple[list[str], list[tuple[str, str, int]]]:
    """The inputs, all of them texts, and the outputs: name, type and size. ``stonnx.integrations.triton`` has both."""
    width = manifest.truncate_dim or manifest.embedding_dimension or -1
    tensors = {
        "embedding": (["text"], [("embedding", "TYPE_FP32", width)]),
        "sparse": (["text"], [("indices", "TYPE_INT32", -1), ("values", "TYPE_FP32", -1)]),
        "rerank": (["query", "text"], [("scores", "TYPE_FP32", manifest.num_labels or 1)]),
    }
    if manifest.task not in tensors:
        raise UnsupportedError(
            f"stonnx triton does not write models for the task {manifest.task!r}, only for {', '.join(tensors)}."
        )
    return tensors[manifest.task]


@contextmanager
def _staging(repository: Path, name: str) -> Iterator[Path]:
    """A new directory in the repository, removed if the block fails. It is locked, so that leftovers are known."""
    made = [directory for directory in (repository, *repository.parents) if not directory.exists()]
    repository.mkdir(parents=True, exist_ok=True)
    staging = repository / f".{name}.part"
    try:
        try:
            staging.mkdir()
        except FileExistsError:
            if staging.is_symlink():
                raise
        place = os.open(staging, os.O_RDONLY)
        try:
            if try_lock(place) is False:
                raise InvalidArgumentError(
                    f"Another `stonnx triton` is writing {repository / name}. Wait for it, or choose --name."
                )
            for left in staging.iterdir():  # by a run that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)  # what is there after success is the model that was replaced
        finally:
            os.close(place)
    except BaseException:
        for directory in made:  # the innermost first
            try:
                directory.rmdir()
            except OSError:
                break
        raise


def _move(staging: Path, target: Path) -> None:
    """Put the finished directory into its place, in one step if something is there already."""
    if not os.path.lexists(target):
        os.rename(staging, target)
        return
    if target.is_symlink() or not exchange(staging, target):
        raise OSError(
            errno.EEXIST,
            "It exists, and this file system cannot replace a directory in one step. Remove it",
            str(target),
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
