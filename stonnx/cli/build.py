"""``stonnx build``: TensorRT engines of a bundle, made before serving."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stonnx._bundle.bundle import open_bundle
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.opening import open_session
from stonnx._errors import InvalidArgumentError
from stonnx.cli._arguments import positive_integer, require_bundle
from stonnx.cli._commands import Commands


def build(
    bundle: Path, device: str, *, memory_limit: int | None = None, begin: Callable[[str], object] = lambda route: None
) -> Iterator[tuple[str, Path, float]]:
    """Build the engine of each graph of a bundle, or load it if it is built already.

    Args:
        bundle: Its directory.
        device: ``tensorrt``, or ``tensorrt:1`` ...
        memory_limit: The ``DeviceOptions.memory_limit`` of the models that use the engine, in bytes.
        begin: Called with the name of a route before its engine is built, which can take minutes.

    Yields:
        For each route its name, the directory of its engine, and the seconds that it took.

    Raises:
        ModelNotFoundError: The path is not a bundle.
        InvalidArgumentError: The device does not build engines.
        DeviceError: The device does not work.
    """
    if device.partition(":")[0] != "tensorrt":
        raise InvalidArgumentError(f"Nothing has to be built for device {device!r}. Allowed: tensorrt, tensorrt:0.")
    require_bundle(bundle, "build")
    opened = open_bundle(bundle)
    options = DeviceOptions(memory_limit=memory_limit, build=True)
    for name, route in opened.manifest.routes.items():
        begin(name)
        start = time.perf_counter()
        load = functools.partial(
            open_session,
            name=bundle / route.graph,
            device=device,
            facts=GraphFacts.of(opened.manifest, route),
            options=options,
        )
        session = opened.load_graph(route.graph, load)
        assert session.engine_directory is not None  # every session on this device has one
        yield name, session.engine_directory, time.perf_counter() - start


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx build``."""
    parser = commands.add_parser(
        "build",
        help="build a TensorRT engine ahead of serving",
        description="Build the TensorRT engines of a bundle for this GPU. That takes minutes, so loading a model does "
        "not do it.",
    )
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--device", default="tensorrt", help="tensorrt or tensorrt:1 ... (default: tensorrt)")
    parser.add_argument(
        "--memory-limit",
        type=positive_integer,
        metavar="BYTES",
        help="the DeviceOptions.memory_limit of the models that use it (default: none)",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Build the engines, and print the place of each."""

    def begin(route: str) -> None:
        print(
            f"Building the engine of the graph {route!r} of {arguments.bundle} for {arguments.device}. This can take "
            "minutes, and prints nothing meanwhile.",
            file=sys.stderr,
            flush=True,
        )

    start = time.perf_counter()
    built = build(arguments.bundle, arguments.device, memory_limit=arguments.memory_limit, begin=begin)
    for route, directory, seconds in built:
        print(f"{route}: {directory}, {seconds:.1f} s", flush=True)
    print(f"Done after {time.perf_counter() - start:.1f} s.", file=sys.stderr)
