"""``stonnx triton``: a model repository for Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from stonnx._device.providers import PROVIDERS
from stonnx._errors import InvalidArgumentError
from stonnx.cli._arguments import positive_integer, require_bundle
from stonnx.cli._commands import Commands
from stonnx.cli._triton_repository import Serving, write_repository


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx triton``."""
    defaults = Serving()
    parser = commands.add_parser(
        "triton",
        help="write a model repository for Triton Inference Server",
        description="Write a model into a repository of Triton Inference Server. It takes texts and gives vectors, "
        "sparse indices and values, or scores. tritonserver needs stonnx in the environment of its Python backend.",
    )
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="REPOSITORY", help="the model repository, made if missing"
    )
    parser.add_argument("--name", help="name of the model (default: the name of the bundle's directory)")
    parser.add_argument(
        "--link", action="store_true", help="link to the bundle (default: copy it, so that the repository is complete)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    parser.add_argument("--device", default=defaults.device, help=f"where it runs (default: {defaults.device})")
    parser.add_argument(
        "--instances", type=positive_integer, default=defaults.instances, help="copies of the model (default: 1)"
    )
    parser.add_argument(
        "--threads", type=positive_integer, help="threads of each on the CPU (default: as many as it may use CPUs)"
    )
    parser.add_argument(
        "--max-batch-size",
        type=positive_integer,
        default=defaults.max_batch_size,
        metavar="TEXTS",
        help=f"the most texts of a request, and of requests that run together (default: {defaults.max_batch_size})",
    )
    parser.add_argument(
        "--max-queue-size",
        type=positive_integer,
        default=defaults.max_queue_size,
        metavar="REQUESTS",
        help=f"the most requests that wait; Triton refuses further ones (default: {defaults.max_queue_size})",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=defaults.timeout,
        metavar="SECONDS",
        help=f"Triton refuses a request that waited so long (default: {defaults.timeout:g})",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the model, and print how to serve it."""
    bundle: Path = arguments.bundle
    require_bundle(bundle, "triton")
    known = [provider.device for provider in PROVIDERS]
    if arguments.device.partition(":")[0] not in known:
        raise InvalidArgumentError(f"--device {arguments.device!r} is not known. Allowed: {', '.join(known)}.")
    if not 0 < arguments.timeout < 1e9:
        raise InvalidArgumentError(f"--timeout must be a positive number of seconds, got {arguments.timeout:g}.")
    serving = Serving(
        device=arguments.device,
        instances=arguments.instances,
        threads=arguments.threads,
        max_batch_size=arguments.max_batch_size,
        max_queue_size=arguments.max_queue_size,
        timeout=arguments.timeout,
    )
    name = bundle.resolve().name if arguments.name is None else arguments.name
    target = write_repository(
        bundle, arguments.output, name, serving, link=arguments.link, overwrite=arguments.overwrite
    )
    how = f"a link to {bundle.resolve()}" if arguments.link else "a copy of the bundle"
    print(f"{target}: the model {name!r}, with {how}. Serve it with:")
    print(f"tritonserver --model-repository {arguments.output}")
