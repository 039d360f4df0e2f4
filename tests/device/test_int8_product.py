"""8-bit products: does the CPU saturate them, and does a session then run the form of the graph that cannot."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stonnx import BundleFormatError
from stonnx._bundle.manifest import Scalar
from stonnx._device import opening, saturation
from stonnx._device.opening import open_session
from stonnx._device.session import Session
from stonnx._engine import probe

SAFE = {"scale": Scalar("float32", 1 / 63), "zero_point": Scalar("uint8", 64)}


def test_the_graph_is_what_its_comment_says() -> None:
    weights = numpy_helper.from_array(np.array([127], dtype=np.int8))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weights"], value=weights),
        helper.make_node(
            "MatMulIntegerToFloat", ["rows", "weights", "scales", "scale"], ["products"], domain="com.microsoft"
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "int8",
        [
            helper.make_tensor_value_info("rows", TensorProto.UINT8, ["rows", 64]),
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, ["rows", 1]),
        ],
        [helper.make_tensor_value_info("products", TensorProto.FLOAT, ["rows", 32])],
        [
            numpy_helper.from_array(np.array([64, 32], dtype=np.int64), "shape"),
            numpy_helper.from_array(np.array(1, dtype=np.float32), "scale"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    assert onnx.load_from_string(saturation.GRAPH) == helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_seven_bits_never_saturate() -> None:
    # Whatever CPU runs the tests.
    assert not saturation.saturates(onnxruntime, activation=127)


@pytest.mark.parametrize("short", [1, 8])
def test_a_product_that_is_too_small(short: int) -> None:
    """A CPU whose kernel for one row, or for many, saturates."""

    def run(outputs: None, feeds: dict[str, Any]) -> list[np.ndarray]:
        rows, weights = feeds["rows"].astype(np.int64), np.full((64, 32), 127)
        if len(rows) == short:
            pairs = [np.clip(rows[:, i : i + 2] @ weights[i : i + 2], -(2**15), 2**15 - 1) for i in range(0, 64, 2)]
            return [np.sum(pairs, axis=0)]
        return [rows @ weights]

    runtime = types.SimpleNamespace(
        SessionOptions=types.SimpleNamespace, InferenceSession=lambda *_, **__: types.SimpleNamespace(run=run)
    )
    assert saturation.saturates(runtime)
    assert not saturation.saturates(runtime, activation=127)


@pytest.fixture(scope="module")
def quantized_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that rounds its input to 8 bits: to steps of 1/127 around 128, until its scalars are replaced."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero_point"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array(1 / 127, dtype=np.float32), "scale"),
            numpy_helper.from_array(np.array(128, dtype=np.uint8), "zero_point"),
        ],
    )
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def rounded(session: Session) -> np.ndarray:
    values = np.linspace(-1, 1, 1001, dtype=np.float32)
    (result,) = session.run(["y"], {"x": values})
    return np.abs(result - values)


@pytest.mark.parametrize(("saturates", "form", "steps"), [(False, "full-range", 127), (True, "saturation-safe", 63)])
def test_the_form_is_chosen_for_the_cpu(
    saturates: bool, form: str, steps: int, quantized_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "products_saturate", lambda: saturates)
    session = open_session(quantized_graph, saturation_safe=SAFE)
    assert session.form == form
    assert 0.49 / steps < rounded(session).max() < 0.51 / steps


def test_graphs_of_one_form(quantized_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The product is not even computed for them.
    monkeypatch.setattr(opening, "products_saturate", lambda: pytest.fail("asked"))
    session = open_session(quantized_graph)
    assert session.form == ""
    assert rounded(session).max() < 0.51 / 127


@pytest.mark.parametrize(
    "scalars",
    [
        {"scale": Scalar("no type", 1)},
        {"zero_point": Scalar("uint8", 256)},
    ],
    ids=str,
)
def test_scalars_that_do_not_fit_the_graph(
    scalars: dict[str, Scalar], quantized_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "products_saturate", lambda: True)
    with pytest.raises(BundleFormatError, match="cannot load"):
        open_session(quantized_graph, saturation_safe=scalars)


@pytest.mark.slow
class TestOnAnEmulatedCpu:
    """A CPU from before VNNI, whose kernels add two products in 16 bits."""

    @pytest.fixture(autouse=True)
    def _qemu(self) -> None:
        if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
            pytest.skip("needs an x86 machine with qemu-x86_64: apt-get install qemu-user")

    def test_products_saturate(self) -> None:
        program = (
            "import onnxruntime; from stonnx._device.saturation import saturates;"
            "print(saturates(onnxruntime), saturates(onnxruntime, activation=127))"
        )
        command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.stdout.split() == ["True", "False"], result.stderr

    def test_the_form_that_is_chosen_there(
        self, minilm_int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emulated_cpu = pytest.importorskip("benchmarks.questions.emulated_cpu", reason="benchmarks are not installed")
        if saturation.saturates(onnxruntime):
            pytest.skip("this machine's own CPU saturates, so it has no right vectors to compare with")
        monkeypatch.setenv("STONNX_HOME", str(tmp_path))
        # It replaces what would refuse the saturated vectors; that must be back for other tests.
        monkeypatch.setattr(probe, "run_probe", probe.run_probe)
        monkeypatch.setattr(opening, "products_saturate", opening.products_saturate)
        found = emulated_cpu.compare("Haswell", minilm_int8_bundle)
        chosen, forced = found["chosen"], found["full-range"]
        assert chosen.saturates
        assert (chosen.form, forced.form) == ("saturation-safe", "full-range")
        # Measured: 0.9976 and 0.9959 in the safe form, 0.9907 and 0.9835 where products saturate.
        assert chosen.cosines.mean() >= 0.996
        assert chosen.cosines.min() >= 0.99
        assert forced.cosines.mean() < chosen.cosines.mean() - 0.003
