"""``stonnx build``: TensorRT engines of a bundle, made ahead of serving."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stonnx._bundle import MANIFEST_NAME, read_manifest, verify_files
from stonnx._errors import InvalidArgumentError, ModelNotFoundError
from stonnx._session import DeviceOptions, GraphFacts, Session


def build(
    bundle: Path, device: str, *, memory_limit: int | None = None, begin: Callable[[str], object] = lambda route: None
) -> Iterator[tuple[str, Path, float]]:
    """Build the engine of each graph of a bundle, or load it where it is built already.

    Args:
        bundle: Its directory.
        device: ``tensorrt``, or ``tensorrt:1`` ...
        memory_limit: What the models that use the engine have as ``DeviceOptions.memory_limit``, in bytes.
        begin: Is called with the name of a route before its engine is built, which can take minutes.

    Yields:
        For each route its name, the directory of its engine, and the seconds that it took.

    Raises:
        ModelNotFoundError: There is no bundle.
        InvalidArgumentError: The device builds nothing.
        DeviceError: The device does not work.
    """
    if device.partition(":")[0] != "tensorrt":
        raise InvalidArgumentError(f"Nothing has to be built for device {device!r}. Allowed: tensorrt, tensorrt:0.")
    if not (bundle / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(f"{bundle} is no bundle: it has no {MANIFEST_NAME}.")
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    options = DeviceOptions(memory_limit=memory_limit, build=True)
    for name, route in manifest.routes.items():
        begin(name)
        start = time.perf_counter()
        session = Session(bundle / route.graph, device=device, facts=GraphFacts.of(manifest, route), options=options)
        assert session.engine_directory is not None  # every session on this device has one
        yield name, session.engine_directory, time.perf_counter() - start
