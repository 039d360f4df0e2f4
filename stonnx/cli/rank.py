"""``stonnx rank``: the passages of a file, ordered by a reranker's score."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from stonnx._tasks import tasks_giving
from stonnx.cli._commands import Commands
from stonnx.cli._passages import add_arguments, check_task, print_hits, read_passages


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx rank``."""
    parser = commands.add_parser(
        "rank",
        help="order the passages of a file by a reranker's score for a query",
        description="Score every passage of a file for a query with a reranker, and print the best. A reranker "
        "reads the query and each passage together, so it is exact and slow: for more than some hundred passages, let "
        "`stonnx search` find candidates first.",
        epilog='example: stonnx rank ms-marco-MiniLM-L6-v2-fp32 "why does bread rise?" passages.txt --top-k 3',
    )
    add_arguments(parser, "a reranker: directory of a bundle or checkpoint, or Hub id")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the best passages."""
    from stonnx.cross_encoder import CrossEncoder

    instead = shlex.join(["stonnx", "search", arguments.model, arguments.query, arguments.file])
    remedy = f"rank needs a reranker, such as a cross-encoder/... model. With this one: {instead}"
    check_task(arguments.model, tasks_giving("scores"), remedy)
    rows = read_passages(arguments)
    model = CrossEncoder(arguments.model, device=arguments.device, threads=arguments.threads)
    hits: Any = model.rank(arguments.query, [str(row.text) for row in rows], top_k=arguments.top_k)
    print_hits(hits, rows, arguments.json)
