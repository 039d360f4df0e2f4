"""The result of a pass: how often it fired, and why it left the other places alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassResult:
    """``fired`` counts rewrites. ``declined`` has a reason for each place that looked right and was left alone.

    ``kept`` names the results of operators that stay in float32 for accuracy.
    """

    name: str
    fired: int
    declined: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
