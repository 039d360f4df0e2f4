"""The last touches to a graph, and the count of what passes did to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

from stonnx._version import __version__
from stonnx_export.graph.pass_result import PassResult

logger = logging.getLogger("stonnx")


def finish(graph: ir.Model) -> None:
    """Remove what nothing needs any more, and say who made the graph."""
    RemoveUnusedNodesPass()(graph)
    # The tracer notes the stack of each node, with the paths of this machine.
    ClearMetadataAndDocStringPass()(graph)
    graph.graph.sort()
    graph.producer_name, graph.producer_version = "stonnx", __version__


def count(results: Iterable[PassResult]) -> dict[str, int]:
    """How often each pass fired, in the order of the passes. It logs at DEBUG why a pass declined."""
    counts: dict[str, int] = {}
    for result in results:
        counts[result.name] = counts.get(result.name, 0) + result.fired
        for reason in result.declined:
            logger.debug("%s declined: %s", result.name, reason)
    return counts
