"""The parser of the command line: whole options, and for a wrong word the usage of its command and the nearest word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeAlias

from stonnx._arguments import did_you_mean


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
            nearest = did_you_mean(wrong.partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest and f'.{nearest}'}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = did_you_mean(value, map(str, action.choices or ()))
            error.message += nearest and f".{nearest}"
            raise


# The type of the object that a command adds its arguments to; argparse keeps it private.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
