"""The speed of 8-bit products, and an onnxruntime that leaves AMX unused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from stonnx import cli
from stonnx._device import int8_speed
from stonnx._device.int8_speed import WITH_AMX, Int8Speed, measure_int8_speed
from stonnx.cli import doctor

DEPTH, WIDTH = 384, 1536
WITHOUT, WITH, NO_AMX = Int8Speed(625, 160, True), Int8Speed(1306, 160, True), Int8Speed(790, 246, False)


def graph(node: NodeProto, weight: np.generic, inputs: dict[str, tuple[int, int]], *scales: str) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.array([weight]))
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("ConstantOfShape", ["shape"], ["weights"], value=weights), node],
            "speed",
            [helper.make_tensor_value_info(name, kind, ["rows", width]) for name, (kind, width) in inputs.items()],
            [helper.make_tensor_value_info("products", TensorProto.FLOAT, ["rows", WIDTH])],
            [
                numpy_helper.from_array(np.array([DEPTH, WIDTH]), "shape"),
                *(numpy_helper.from_array(np.array(1, dtype=np.float32), name) for name in scales),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def test_the_graphs_are_what_their_comment_says() -> None:
    integer = helper.make_node(
        "MatMulIntegerToFloat", ["rows", "weights", "scales", "scale"], ["products"], domain="com.microsoft"
    )
    inputs = {"rows": (TensorProto.UINT8, DEPTH), "scales": (TensorProto.FLOAT, 1)}
    assert onnx.load_from_string(int8_speed.INTEGER_GRAPH) == graph(integer, np.int8(3), inputs, "scale")
    product = helper.make_node("MatMul", ["rows", "weights"], ["products"])
    inputs = {"rows": (TensorProto.FLOAT, DEPTH)}
    assert onnx.load_from_string(int8_speed.FLOAT_GRAPH) == graph(product, np.float32(3), inputs)


def test_it_is_measured_here() -> None:
    speed = measure_int8_speed(onnxruntime)
    assert speed.int8 > 0
    assert speed.float32 > 0


@pytest.mark.parametrize(("speed", "uses"), [(WITHOUT, False), (WITH, True), (NO_AMX, False)])
def test_amx_is_told_by_the_ratio_to_float32(speed: Int8Speed, uses: bool) -> None:
    assert speed.uses_amx == uses


def test_a_cpu_without_amx_never_uses_it() -> None:
    assert not Int8Speed(1306, 160, False).uses_amx


@pytest.mark.parametrize("speed", [WITHOUT, WITH, NO_AMX])
def test_doctor_says_what_is_lost(
    speed: Int8Speed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "measure_int8_speed", lambda onnxruntime: speed)
    assert cli.main(["doctor"]) == 0, "it is advice, because bundles work"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "8-bit speed" in line]
    assert f"{speed.int8:,.0f} GOP/s in one thread" in line
    lost = f"this CPU has AMX, and onnxruntime {onnxruntime.__version__} does not use it"
    assert (lost in line) == (WITH_AMX in line) == (speed is WITHOUT)
    assert ("with AMX" in line) == (speed is WITH)


def test_the_extra_leaves_out_the_same_version() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["cpu"]
    assert f'pip install "{requirement}"' == WITH_AMX
