"""The mask of rows, as a graph, against the module of sentence-transformers that it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fixture_types import Run

from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.graph.read import QUERY_ROWS
from stonnx_export.heads.rows import RowMask, row_mask

pytestmark = pytest.mark.needs("sentence-transformers", "6.2", "MultiVectorMask")

IDS = np.array([[1, 7, 9, 2, 4, 4], [1, 9, 7, 7, 9, 2], [1, 2, 4, 4, 4, 0]])
# Of the first text and the last one, 4 is the token that fills up queries.
OWN = np.array([4, 6, 2])
QUERY_LENGTH = 5
SKIPPED, KEPT = (7, 4), (9, 4)


def expected(
    task: str | None, tasks: list[str], kept: tuple[int, ...], attention: np.ndarray, expands: bool
) -> np.ndarray:
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    module = MultiVectorMask(skiplist_tasks=tasks, keep_only_token_ids=list(kept))
    module._skiplist_ids = torch.tensor(SKIPPED)
    features: dict[str, Any] = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(attention)}
    if expands and task == "query":
        positions = np.arange(IDS.shape[1])
        features["query_expansion_positions"] = torch.tensor((positions >= OWN[:, None]) & (positions < QUERY_LENGTH))
    return np.asarray(module(features, task=task)["attention_mask"])


@pytest.mark.parametrize("tasks", [["document"], ["query"], ["query", "document"], ["passage"], []], ids=str)
@pytest.mark.parametrize("kept", [(), KEPT], ids=str)
@pytest.mark.parametrize("expands", [True, False], ids=["expansion", "plain"])
def test_rows_are_those_of_the_original(tasks: list[str], kept: tuple[int, ...], expands: bool, run: Run) -> None:
    attention = (np.arange(IDS.shape[1]) < OWN[:, None]).astype(np.int64)
    inputs = [
        ir.Value(name=name, shape=ir.Shape(("batch", "sequence")), type=ir.TensorType(ir.DataType.INT64))
        for name in ("input_ids", "attention_mask")
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET}, name="mask")
    op = GraphBuilder(graph)
    if expands:
        op.optional_input(QUERY_ROWS, np.array(-1, dtype=np.int64), ())
    graph.outputs.append(row_mask(op, RowMask(SKIPPED, tuple(tasks), kept), "row_mask"))
    model = ir.Model(graph, ir_version=11)
    for task in ("query", "document", None):
        feeds = {"input_ids": IDS, "attention_mask": attention}
        if task == "query":
            feeds |= {QUERY_ROWS: np.array(QUERY_LENGTH), "is_query": np.array(1)}
        (found,) = run(model, **feeds)
        wanted = expected(task, tasks, kept, attention, expands)
        np.testing.assert_array_equal(found.astype(bool), wanted, err_msg=str(task))
