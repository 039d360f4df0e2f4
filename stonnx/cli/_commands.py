"""The parser of the command line: whole options, and for a wrong word the usage of its command and the nearest word."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias


class Parser(argparse.ArgumentParser):
    """The parser of ``stonnx``, and of each of its commands.

    An option has to be written in full: a mistyped one that happens to begin another would do that instead.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse here what the parser does not know: the one of all commands could only show its own usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            nearest = _nearest(wrong.partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _nearest(value, map(str, action.choices or ()))
            raise


# The type of the object that a command adds its arguments to; argparse keeps it private.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _nearest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1)
    return f". Did you mean {found[0]}?" if found else ""
