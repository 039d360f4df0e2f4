"""``stonnx serve``: models over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import Field
from pathlib import Path
from typing import Any

from stonnx._errors import MissingDependencyError
from stonnx.cli._commands import Commands
from stonnx.serve.settings import Settings, option_fields, read_settings, variable_of

_DESCRIPTION = """\
Serve models over HTTP, in the dialects of OpenAI, text-embeddings-inference, Cohere, Jina and KServe. Name a bundle, or
several: dense models, sparse models and rerankers share one port, and requests say which they mean in `model`.

  stonnx serve all-MiniLM-L6-v2-int8
  stonnx serve minilm=all-MiniLM-L6-v2-int8 reranker=ms-marco-MiniLM-L6-v2-int8 --port 8000 --api-key KEY

then
  curl localhost:8080/v1/embeddings -H 'content-type: application/json' -d '{"input": "Hello"}'

or open http://localhost:8080 in a browser. It is ready when GET /health/ready says so; SIGTERM ends it after the
requests in progress.
"""
_EPILOG = """\
Each option is also an environment variable, named in brackets, and a key of the --config file, which can give each
model settings of its own:

  port = 8000
  [[model]]
  name = "minilm"
  bundle = "all-MiniLM-L6-v2-int8"
  aliases = ["text-embedding-3-small"]

Options win over variables, and variables over the file. STONNX_MODELS names bundles, separated by commas.
"""


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx serve``: those of its settings."""
    parser = commands.add_parser(
        "serve",
        help="serve models over HTTP, as OpenAI, TEI and Cohere do",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundles", nargs="*", metavar="[NAME=]BUNDLE", help="directory of a bundle, or Hub id, and what clients call it"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with these settings [STONNX_CONFIG]")
    for entry in option_fields():
        _add_option(parser, entry)
    parser.set_defaults(command=run)


def _add_option(parser: argparse.ArgumentParser, entry: Field[Any]) -> None:
    """The option of a setting. It has no default: only a given value wins over other sources."""
    kind, text = str(entry.type), str(entry.metadata["help"])
    name = "--" + entry.name.replace("_", "-")
    shown = entry.default
    if "default:" not in text and isinstance(shown, int | float | str) and not isinstance(shown, bool):
        text += f" (default: {shown})"
    text += f" [{variable_of(entry)}]"
    metavar = entry.metadata.get("metavar")
    if kind.startswith("bool"):
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif kind.startswith("tuple"):
        parser.add_argument(name, action="append", default=None, metavar=metavar, help=text)
    else:
        types = {"int": int, "float": float}
        parser.add_argument(
            name,
            type=next((types[start] for start in types if kind.startswith(start)), str),
            choices=entry.metadata.get("choices"),
            default=None,
            metavar=metavar if metavar or entry.metadata.get("choices") else "N" if "str" not in kind else None,
            help=text,
        )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    options = {
        entry.name: tuple(value) if isinstance(value, list) else value
        for entry in option_fields()
        if (value := getattr(arguments, entry.name)) is not None
    }

    def read() -> Settings:
        return read_settings(options, arguments.bundles, arguments.config)

    settings = read()
    try:
        from stonnx.serve.server import run as serve
    except ImportError as error:
        raise MissingDependencyError(
            f"`stonnx serve` needs {error.name or error}, which is not installed. "
            'Install it with: pip install "stonnx[cpu,serve]"'
        ) from error
    return serve(settings, read)
