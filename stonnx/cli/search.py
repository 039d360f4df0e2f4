"""``stonnx search``: the passages of a file that are nearest to a query."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._errors import InvalidArgumentError
from stonnx._tasks import tasks_giving
from stonnx.cli._commands import Commands
from stonnx.cli._passages import add_arguments, check_task, print_hits, read_passages


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx search``."""
    parser = commands.add_parser(
        "search",
        help="find the passages of a file that are nearest to a query",
        description="Encode the passages of a file and a query, and print the nearest passages. For more than one "
        "query, encode the passages once: stonnx encode MODEL FILE -o FILE.npy --document",
        epilog='example: stonnx search all-MiniLM-L6-v2-fp32 "why does bread rise?" passages.txt --top-k 3',
    )
    add_arguments(parser, "an embedding model or a sparse encoder: directory of a bundle or checkpoint, or Hub id")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="NPY",
        help="vectors of the passages that `stonnx encode MODEL FILE -o NPY --document` wrote, instead of encoding",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the nearest passages."""
    from stonnx._load import load_model
    from stonnx.util import semantic_search

    instead = shlex.join(["stonnx", "rank", arguments.model, arguments.query, arguments.file])
    remedy = f"search needs an embedding model. With this one: {instead}"
    check_task(arguments.model, tasks_giving("dense", "sparse"), remedy)
    if arguments.file.endswith(".npy"):
        right = shlex.join(["stonnx", "search", arguments.model, arguments.query])
        raise InvalidArgumentError(
            f"{arguments.file} holds vectors, and search prints texts. Pass the file that they were made from: "
            f"{right} FILE --embeddings {shlex.quote(arguments.file)}"
        )
    rows = read_passages(arguments)
    stored = None if arguments.embeddings is None else _stored(arguments.embeddings, len(rows))
    model: Any = load_model(arguments.model, device=arguments.device, threads=arguments.threads)
    check_task(model.info.directory, tasks_giving("dense", "sparse"), remedy)
    query = model.encode_query([arguments.query])
    if stored is not None and stored.shape[1] != query.shape[1]:
        raise InvalidArgumentError(
            f"{arguments.embeddings} has vectors of {stored.shape[1]} dimensions, and {arguments.model} gives "
            f"{query.shape[1]}. Encode the passages with this model, and without --truncate-dim."
        )
    corpus = model.encode_document([row.text for row in rows]) if stored is None else stored
    (hits,) = semantic_search(query, corpus, top_k=arguments.top_k, score_function=model.similarity)
    print_hits(hits, rows, arguments.json)


def _stored(path: Path, rows: int) -> npt.NDArray[Any]:
    """The vectors of the passages, mapped into memory."""
    advice = "Make it from the same file with: stonnx encode MODEL FILE -o FILE.npy --document"
    try:
        vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is not a .npy file of vectors ({error}). {advice}") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InvalidArgumentError(
            f"{path} holds {vectors.dtype} of the shape {list(vectors.shape)}, and search needs float32 vectors "
            f"[passages, dimensions]. {advice}"
        )
    if len(vectors) != rows:
        raise InvalidArgumentError(f"{path} has {len(vectors):,} vectors, and the file {rows:,} passages. {advice}")
    return vectors
