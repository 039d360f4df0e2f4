"""Runs a part of a graph on its own, to see what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from stonnx._device.wheels import import_onnxruntime


@dataclass(frozen=True)
class Part:
    """The part of a graph that computes one value from the inputs of the model.

    Attributes:
        graph: The part.
        session: onnxruntime's session for it.
    """

    graph: ir.Graph
    session: Any

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The value for texts of token ids [B, S] with a mask of padding. Any error means that it cannot be had."""
        feeds = {"input_ids": ids, "attention_mask": mask}
        (values,) = self.session.run(None, {value.name: feeds[value.name] for value in self.session.get_inputs()})
        result: npt.NDArray[Any] = values
        return result


def part_of(model: ir.Model, value: ir.Value) -> Part | None:
    """The part that computes a value; None if it does not run on its own."""
    try:
        graph = ir.convenience.extract(model.graph, list(model.graph.inputs), [value])
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        data = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
        return Part(graph, onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    except Exception:  # onnx-ir and onnxruntime have many errors for a part that is not whole
        return None
