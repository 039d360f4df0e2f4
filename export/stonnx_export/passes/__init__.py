"""Rewrites of the graph, one in a file. Each has ``run(model) -> PassResult`` and says why it declined."""

from stonnx_export.graph.pass_result import PassResult

__all__ = ["PassResult"]
