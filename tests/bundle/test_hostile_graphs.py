"""Graphs that would run for ever or take all memory are refused before onnxruntime sees them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_bundles import dense_bundle, dense_graph, toy_table

from stonnx import BundleFormatError, SentenceTransformer
from stonnx._bundle.integrity import hash_files

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return dense_bundle(tmp_path / "bundle")


def replace_graph(bundle: Path, edit: Edit) -> None:
    graph = dense_graph(toy_table(8, 5))
    edit(graph)
    (bundle / "default.onnx").write_bytes(graph.SerializeToString())
    data = json.loads((bundle / "stonnx.json").read_text())
    files = hash_files(bundle, ["default.onnx", "tokenizer.json"])
    data["files"] = {name: dataclasses.asdict(entry) for name, entry in files.items()}
    (bundle / "stonnx.json").write_text(json.dumps(data))


def add(*nodes: onnx.NodeProto, **constants: Any) -> Edit:
    """Operators that come first, and what they need."""

    def edit(model: onnx.ModelProto) -> None:
        others = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *others])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )

    return edit


def body(output: str = "out") -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1])
    constant = helper.make_node(
        "Constant", [], [output], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    )
    return helper.make_graph([constant], "body", [], [value])


def claims(kind: int, dims: Sequence[int], **fields: Any) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.TensorProto(name="huge", data_type=kind, dims=dims, **fields))

    return edit


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=[1 << 31]))


def functions(calls: dict[str, list[str]]) -> Edit:
    """Functions of one operator and of calls of others; the first is called."""

    def edit(model: onnx.ModelProto) -> None:
        for name, called in calls.items():
            nodes = [helper.make_node("Identity", ["x"], ["y0"])]
            nodes += [helper.make_node(call, ["y0"], [f"y{i + 1}"], domain="own") for i, call in enumerate(called)]
            opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
            last = f"y{len(called)}"
            model.functions.append(helper.make_function("own", name, ["x"], [last], nodes, opsets))
        model.opset_import.append(helper.make_opsetid("own", 1))
        add(helper.make_node(next(iter(calls)), ["table"], ["unused"], domain="own"))(model)

    return edit


def in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("If", ["x"], ["y"], then_branch=body(), else_branch=body())
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))


HUGE = np.array([1 << 31], dtype=np.int64)
ONE, YES = np.ones(1, dtype=np.float32), np.array(True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            add(
                helper.make_node("If", ["yes"], ["unused"], then_branch=body(), else_branch=body()), yes=np.array(True)
            ),
            "control flow",
            id="If",
        ),
        pytest.param(
            add(
                helper.make_node("Loop", ["many", "yes"], ["unused"], body=body()),
                many=np.int64(2**62),
                yes=np.array(True),
            ),
            "control flow",
            id="Loop",
        ),
        pytest.param(add(helper.make_node("Other", ["table"], ["unused"], body=body())), "control flow", id="any body"),
        pytest.param(in_a_function, "control flow", id="If in a function"),
        pytest.param(claims(TensorProto.FLOAT, [1 << 31]), r"claims to have 2,147,483,648 elements", id="no data"),
        pytest.param(claims(TensorProto.FLOAT, [1 << 16, 1 << 16], raw_data=b"1234"), "claims to have", id="less data"),
        pytest.param(claims(TensorProto.INT4, [1 << 40], raw_data=b"1234"), "claims to have", id="four bits"),
        pytest.param(claims(TensorProto.FLOAT, [-1]), "claims to have", id="a negative size"),
        pytest.param(sparse, "sparse constant", id="sparse"),
        pytest.param(
            add(helper.make_node("ConstantOfShape", ["size"], ["unused"]), size=HUGE),
            "ConstantOfShape is to make a tensor of 2,147,483,648 elements",
            id="ConstantOfShape",
        ),
        pytest.param(
            add(helper.make_node("Expand", ["one", "size"], ["unused"]), one=ONE, size=np.array([1 << 15, 1 << 15])),
            "Expand is to make a tensor of 1,073,741,824 elements",
            id="Expand",
        ),
        pytest.param(
            add(helper.make_node("Tile", ["one", "size"], ["unused"]), one=ONE, size=HUGE), "Tile is to", id="Tile"
        ),
        pytest.param(
            add(
                helper.make_node("Range", ["zero", "size", "step"], ["unused"]),
                zero=np.int64(0),
                size=np.int64(2**40),
                step=np.int64(1),
            ),
            "Range is to make a tensor of 1,099,511,627,776 elements",
            id="Range",
        ),
        pytest.param(
            add(
                helper.make_node("Mul", ["half", "half"], ["size"]),
                helper.make_node("Cast", ["size"], ["same"], to=TensorProto.INT64),
                helper.make_node("Concat", ["same", "three"], ["both"], axis=0),
                helper.make_node("ConstantOfShape", ["both"], ["unused"]),
                half=np.array([1 << 14]),
                three=np.array([3]),
            ),
            "ConstantOfShape is to make a tensor of 805,306,368 elements",
            id="a size that is computed",
        ),
        pytest.param(
            add(
                helper.make_node("Shape", ["input_ids"], ["shape"]),
                helper.make_node("Concat", ["shape", "size"], ["both"], axis=0),
                helper.make_node("Expand", ["one", "both"], ["unused"]),
                one=ONE,
                size=HUGE,
            ),
            "Expand is to make a tensor of 2,147,483,648 elements",
            id="a size of which a part is known",
        ),
        pytest.param(
            add(
                helper.make_node("Constant", [], ["size"], value=numpy_helper.from_array(HUGE)),
                helper.make_node("ConstantOfShape", ["size"], ["unused"]),
            ),
            "ConstantOfShape is to",
            id="a size in an operator",
        ),
        pytest.param(functions({"F": ["F"]}), "call each other in a circle", id="a function that calls itself"),
        pytest.param(functions({"F": ["G"], "G": ["H"], "H": ["F"]}), "call each other in a circle", id="a circle"),
        pytest.param(
            functions({f"F{i}": [f"F{i + 1}"] * 10 if i < 9 else [] for i in range(10)}),
            r"it has 2,\d{3},\d{3},\d{3} operators",
            id="functions that double",
        ),
    ],
)
def test_refused(bundle: Path, edit: Edit, message: str) -> None:
    replace_graph(bundle, edit)
    with pytest.raises(BundleFormatError, match=message):
        SentenceTransformer(bundle)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(
            add(helper.make_node("ConstantOfShape", ["size"], ["unused"]), size=np.array([1000])), id="ConstantOfShape"
        ),
        pytest.param(
            add(helper.make_node("Expand", ["one", "size"], ["unused"]), one=ONE, size=np.array([-1, 12, 512])),
            id="Expand",
        ),
        pytest.param(functions({"F": ["G"] * 10, "G": ["H"] * 10, "H": []}), id="functions"),
    ],
)
def test_allowed(bundle: Path, edit: Edit) -> None:
    replace_graph(bundle, edit)
    try:
        SentenceTransformer(bundle)
    except BundleFormatError as error:  # an operator whose result nobody uses, or a negative size
        if "onnxruntime" not in str(error):
            raise


def test_every_graph_is_looked_at_again_by_a_newer_check(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older version found to be good was not checked for this."""
    import stonnx._bundle.held_file
    import stonnx._bundle.integrity

    replace_graph(bundle, claims(TensorProto.FLOAT, [1 << 31]))
    monkeypatch.setattr(stonnx._bundle.held_file, "_COARSEST_CLOCK", 0)
    with monkeypatch.context() as patch:
        patch.setattr(stonnx._bundle.integrity, "_CHECKS", 1)
        patch.setattr(stonnx._bundle.integrity, "check_graph_file", lambda *_: None)
        from stonnx._bundle.bundle import open_bundle

        open_bundle(bundle)
    with pytest.raises(BundleFormatError, match="claims to have"):
        open_bundle(bundle)
