"""The command ``stonnx``: one file for each of its commands, with its arguments and its work."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from stonnx._errors import StonnxError
from stonnx._version import __version__
from stonnx.cli import build, doctor, encode, export, info, models, rank, search, serve, triton
from stonnx.cli._commands import Commands, Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: failed with a message. 2: wrong usage. 130: Ctrl-C. 141: the reader of the output, as `head`, ended.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file need not be UTF-8, and printing it must not end the work. sys.stderr does so by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command_name is None:
        parser.print_help(sys.stderr)
        return 2
    command: Callable[[argparse.Namespace], int | None] = arguments.command
    try:
        status = command(arguments) or 0
        print(end="", flush=True)  # here a broken pipe does not become a traceback
        return status
    except BrokenPipeError:
        # Python flushes once more at its end: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (StonnxError, OSError) as error:
        print(f"stonnx {arguments.command_name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stonnx {arguments.command_name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="stonnx", description="sentence-transformers inference without PyTorch")
    parser.add_argument("--version", action="version", version=f"stonnx {__version__}")
    commands: Commands = parser.add_subparsers(dest="command_name", metavar="COMMAND")
    export.add_parser(commands)
    export.add_verify_parser(commands)
    encode.add_parser(commands)
    search.add_parser(commands)
    rank.add_parser(commands)
    info.add_parser(commands)
    doctor.add_parser(commands)
    build.add_parser(commands)
    models.add_parser(commands)
    serve.add_parser(commands)
    triton.add_parser(commands)
    return parser
