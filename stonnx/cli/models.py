"""``stonnx models``."""

from __future__ import annotations

import argparse

from stonnx._tasks import TASKS
from stonnx.cli._commands import Commands


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx models``."""
    parser = commands.add_parser(
        "models",
        help="list published models, and recommend one",
        description="List the published models of the guide, or rank those that fit and say which to take.",
    )
    parser.add_argument("--task", help=" or ".join(TASKS))
    parser.add_argument("--for", dest="use", metavar="USE", help="general, search, multilingual, rerank, ...")
    parser.add_argument(
        "--language", action="append", default=[], metavar="CODE", help="a language it must know; may be repeated"
    )
    parser.add_argument("--max-dim", type=int, metavar="N", help="vectors of at most N dimensions")
    preference = parser.add_mutually_exclusive_group()
    preference.add_argument("--fast", dest="prefer", action="store_const", const="fast", help="rank by speed")
    preference.add_argument("--best", dest="prefer", action="store_const", const="best", help="rank by quality")
    parser.add_argument("--json", action="store_true", help="print everything that is known, as JSON")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table of models, or a recommendation."""
    from stonnx._guide.guide import Query, read_guide, recommend
    from stonnx._guide.table import as_json, table

    languages = tuple(arguments.language)
    query = Query(arguments.task, arguments.use, languages, arguments.prefer, arguments.max_dim)
    guide = read_guide()
    answer = recommend(guide, query) if query else None
    print((as_json if arguments.json else table)(guide, answer))
