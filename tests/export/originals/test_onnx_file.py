"""ONNX files by hand: what is read, what is changed on the way to a bundle, and what is refused with which reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from stonnx._bundle.manifest import read_manifest
from stonnx._errors import ExportError, ModelNotFoundError, UnsupportedError
from stonnx_export import export
from stonnx_export.graph.builder import OPSET
from stonnx_export.originals import onnx_file
from stonnx_export.originals.onnx_file import OnnxFile

Run = Callable[..., list[np.ndarray]]
Edit = Callable[[onnx.ModelProto], object]

VOCABULARY, HIDDEN = 320, 32
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
TYPES = np.random.default_rng(1).normal(size=(2, HIDDEN)).astype(np.float32)
SIZES = ["batch_size", "sequence_length"]


def network(
    *extra: onnx.NodeProto,
    outputs: tuple[str, ...] = ("last_hidden_state",),
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    opset: int = 14,
) -> onnx.ModelProto:
    """A file with a network that only looks tokens and their types up; ``extra`` nodes are behind it."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["words", "kinds"], ["last_hidden_state"]),
        *extra,
    ]
    if "token_type_ids" not in inputs:
        nodes[1:3] = [helper.make_node("Identity", ["words"], ["last_hidden_state"])]
    weights = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(TYPES, "types")]
    given = [helper.make_tensor_value_info(name, TensorProto.INT64, SIZES) for name in inputs]
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "network", given, taken, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def save(model: onnx.ModelProto, directory: Path, name: str = "onnx/model.onnx") -> Path:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / name)
    return directory / name


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint without PyTorch's weights."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    (directory / "model.safetensors").unlink()
    return directory


def lookup(ids: np.ndarray, types: int = 0) -> np.ndarray:
    """What the network of these files gives."""
    return TABLE[ids] + TYPES[types]


class TestNetwork:
    IDS = np.array([[5, 7, 9], [6, 6, 0]])

    def test_names_sizes_and_opset(self, tmp_path: Path, run: Run) -> None:
        model = OnnxFile(save(network(), tmp_path), "tokens").network(token_types=True)
        assert model.graph.opset_imports[""] == OPSET
        assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
        shapes = [[str(size) for size in value.shape] for value in (*model.graph.inputs, *model.graph.outputs)]
        assert shapes == [["batch", "sequence"]] * 3 + [["batch", "sequence", str(HIDDEN)]]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        feeds = {"input_ids": self.IDS, "attention_mask": np.ones_like(self.IDS)}
        (tokens,) = run(model, **feeds, token_type_ids=np.ones_like(self.IDS))
        np.testing.assert_allclose(tokens, lookup(self.IDS, 1))

    def test_token_types_that_the_tokenizer_does_not_have_are_zero(self, tmp_path: Path, run: Run) -> None:
        model = OnnxFile(save(network(), tmp_path), "tokens").network(token_types=False)
        assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask"]
        (tokens,) = run(model, input_ids=self.IDS, attention_mask=np.ones_like(self.IDS))
        np.testing.assert_allclose(tokens, lookup(self.IDS))

    def test_other_outputs_and_what_computes_them_go(self, tmp_path: Path) -> None:
        """A head of its own is not used: the checkpoint's modules are."""
        head = helper.make_node("ReduceMean", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
        path = save(network(head, outputs=("sentence_embedding", "last_hidden_state")), tmp_path)
        file = OnnxFile(path, "tokens")
        assert (file.output, file.has_head) == ("last_hidden_state", True)
        model = file.network(token_types=True)
        assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]
        assert "ReduceMean" not in {node.op_type for node in model.graph}

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [("last_hidden_state", "tokens"), ("token_embeddings", "tokens"), ("logits", "vocabulary"), ("out", "tokens")],
    )
    def test_the_output_has_one_of_several_names(self, name: str, wanted: Any, tmp_path: Path) -> None:
        node = helper.make_node("Identity", ["last_hidden_state"], [name])
        model = network(outputs=(name,)) if name == "last_hidden_state" else network(node, outputs=(name,))
        assert OnnxFile(save(model, tmp_path), wanted).output == name

    @pytest.mark.parametrize("axis", [-1, 1, 2])
    @pytest.mark.parametrize("opset", [11, 13])
    def test_softmax_of_every_opset(self, axis: int, opset: int, tmp_path: Path, run: Run) -> None:
        """Before opset 13 a Softmax flattened what is behind its axis; the converter says so with nodes of its own."""
        node = helper.make_node("Softmax", ["last_hidden_state"], ["token_embeddings"], axis=axis)
        path = save(network(node, outputs=("token_embeddings",), opset=opset), tmp_path)
        file = OnnxFile(path, "tokens")
        ids = self.IDS[:1]
        model = file.network(token_types=False)
        (tokens,) = run(model, input_ids=ids, attention_mask=np.ones_like(ids))
        np.testing.assert_allclose(tokens, file.run(ids)["token_embeddings"], rtol=1e-6)
        flattened = "Flatten" in {node.op_type for node in model.graph}
        assert flattened == (axis == 1 and opset == 11)

    def test_weights_among_the_inputs(self, tmp_path: Path) -> None:
        """Files of IR version 3 name every weight as an input."""
        model = network()
        for weight in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, weight.dims))
        file = OnnxFile(save(model, tmp_path), "tokens")
        assert len(file.network(token_types=True).graph.inputs) == 3

    def test_weights_beside_the_file(self, checkpoint: Path, tmp_path: Path) -> None:
        path = save(network(), checkpoint)
        onnx.save_model(network(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
        assert path.stat().st_size < TABLE.nbytes < (path.parent / "model.onnx_data").stat().st_size
        bundle = export(checkpoint, tmp_path / "bundle")
        assert sorted(file.name for file in bundle.iterdir()) == sorted([*read_manifest(bundle).files, *OWN_FILES])
        (path.parent / "model.onnx_data").unlink()
        with pytest.raises(ExportError, match=r"cannot run .*model\.onnx_data.*download it again"):
            export(checkpoint, tmp_path / "other")

    def test_a_node_that_cannot_be_converted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The converter only logs it: what it left behind must not pass for the new opset."""

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no adapter for Upsample")

        monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
        file = OnnxFile(save(network(), tmp_path), "tokens")
        with pytest.raises(ExportError, match=f"has opset 14 and cannot be converted to {OPSET}: .*no adapter for Ups"):
            file.network(token_types=True)


OWN_FILES = ("README.md", "stonnx.json")


class TestPlaces:
    def test_the_folder_of_the_hub_comes_first(self, tmp_path: Path) -> None:
        assert onnx_file.find(tmp_path) is None
        root = save(network(), tmp_path, "model.onnx")
        assert onnx_file.find(tmp_path) == root
        folder = save(network(), tmp_path)
        assert onnx_file.find(tmp_path) == folder

    def test_no_other_precision_is_picked(self, checkpoint: Path, tmp_path: Path) -> None:
        save(network(), checkpoint, "onnx/model_quantized.onnx")
        with pytest.raises(ModelNotFoundError, match=r"It has onnx/model_quantized\.onnx, but a precision is never"):
            export(checkpoint, tmp_path / "bundle", source="onnx")


def pooled(model: onnx.ModelProto) -> None:
    node = helper.make_node("ReduceMean", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
    model.CopyFrom(network(node, outputs=("sentence_embedding",)))


def float16(model: onnx.ModelProto) -> None:
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    model.graph.node[-1].output[0] = "half"
    model.graph.node.append(helper.make_node("Cast", ["half"], ["last_hidden_state"], to=TensorProto.FLOAT))


def quantized(model: onnx.ModelProto) -> None:
    table = model.graph.initializer[0]
    table.CopyFrom(numpy_helper.from_array((TABLE * 20).astype(np.int8), "quantized"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), "scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["quantized", "scale"], ["table"]))


def position_ids(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, SIZES))


def without_mask(model: onnx.ModelProto) -> None:
    del model.graph.input[1]


def fixed_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", 128]))


def int32(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = OPSET + 1


def logits(model: onnx.ModelProto) -> None:
    model.CopyFrom(network(helper.make_node("Identity", ["last_hidden_state"], ["logits"]), outputs=("logits",)))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Nonsense", ["last_hidden_state"], ["more"]))


def branch(model: onnx.ModelProto) -> None:
    """The other of two branches that give the same."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Identity", ["before"], ["tokens"])], "body", [], [tokens])
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("If", ["yes"], ["last_hidden_state"], then_branch=body, else_branch=body)
    model.graph.node.append(node)


def loop(model: onnx.ModelProto) -> None:
    """One that runs twice and hands its value on."""
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "next")]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    go, going = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "going"))
    nodes = [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Identity", ["state"], ["next"])]
    body = helper.make_graph(nodes, "body", [count, go, state[0]], [going, state[1]])
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "twice"))
    node = helper.make_node("Loop", ["twice", "yes", "before"], ["last_hidden_state"], body=body)
    model.graph.node.append(node)


def nothing(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (pooled, UnsupportedError, r"sentence_embedding float32 \[1, 32\]\. This model needs token embeddings.*pooled"),
        (logits, UnsupportedError, r"gives.*logits float32 \[1, 3, 32\]\. .*--task feature-extraction"),
        (float16, UnsupportedError, "has weights in float16. .*float32 model.onnx"),
        (quantized, UnsupportedError, "is quantized .*DequantizeLinear.*--dtype"),
        (position_ids, UnsupportedError, "has the input 'position_ids'. .*takes input_ids and attention_mask"),
        (without_mask, UnsupportedError, "lacks the input 'attention_mask'"),
        (fixed_size, UnsupportedError, r"'input_ids' has the fixed shape \[batch, ?128\].*dynamic axes"),
        (int32, UnsupportedError, "'input_ids' is INT32, and must be INT64"),
        (newer_opset, UnsupportedError, f"has opset {OPSET + 1}; opsets up to {OPSET} are known"),
        (branch, UnsupportedError, "has control flow: the operator If, .*--source torch.*optimum-cli export onnx"),
        (loop, UnsupportedError, "has control flow: the operator Loop, .*--source torch"),
        (unknown_operator, ExportError, "cannot run .*Nonsense"),
        (nothing, ExportError, "has no graph with an output"),
    ],
)
def test_refused_files(edit: Edit, error: type[Exception], message: str, checkpoint: Path, tmp_path: Path) -> None:
    model = network()
    edit(model)
    save(model, checkpoint)
    with pytest.raises(error, match=message):
        export(checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", id="a pointer of Git LFS"),
        pytest.param(network().SerializeToString()[:-20], id="cut"),
        pytest.param(b"", id="empty"),
    ],
)
def test_damaged_files(content: bytes, checkpoint: Path, tmp_path: Path) -> None:
    save(network(), checkpoint).write_bytes(content)
    with pytest.raises(ExportError, match=r"onnx/model\.onnx .*download it again"):
        export(checkpoint, tmp_path / "bundle")


class TestChains:
    def test_a_head_that_is_no_pooling(self, checkpoint: Path, tmp_path: Path) -> None:
        """Without modules.json nothing says what a Dense behind the pooling was."""
        (checkpoint / "modules.json").unlink()
        nodes = (
            helper.make_node("ReduceMean", ["last_hidden_state"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Tanh", ["mean"], ["sentence_embedding"]),
        )
        save(network(*nodes, outputs=("last_hidden_state", "sentence_embedding")), checkpoint)
        with pytest.raises(UnsupportedError, match=r"no modules\.json, and the sentence_embedding.*copy modules\.json"):
            export(checkpoint, tmp_path / "bundle")

    @pytest.mark.parametrize("normalized", [False, True])
    @pytest.mark.parametrize("mode", ["cls", "max", "mean"])
    def test_a_head_that_is_one(self, mode: str, normalized: bool, checkpoint: Path, tmp_path: Path) -> None:
        (checkpoint / "modules.json").unlink()
        name = "pooled" if normalized else "sentence_embedding"
        pool = {
            "cls": helper.make_node("Gather", ["last_hidden_state", "first"], [name], axis=1),
            "max": helper.make_node("ReduceMax", ["last_hidden_state"], [name], axes=[1], keepdims=0),
            "mean": helper.make_node("ReduceMean", ["last_hidden_state"], [name], axes=[1], keepdims=0),
        }[mode]
        norm = (
            helper.make_node("ReduceL2", ["pooled"], ["norm"], axes=[1], keepdims=1),
            helper.make_node("Div", ["pooled", "norm"], ["sentence_embedding"]),
        )
        model = network(pool, *(norm if normalized else ()), outputs=("last_hidden_state", "sentence_embedding"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
        save(model, checkpoint)
        manifest = read_manifest(export(checkpoint, tmp_path / "bundle"))
        assert [module.type for module in manifest.modules][2:] == ["Normalize"] * normalized
        assert manifest.modules[1].settings["modes"] == [mode]

    def test_a_network_without_a_head_gets_the_mean(self, checkpoint: Path, tmp_path: Path) -> None:
        """As sentence-transformers treats a plain transformers checkpoint."""
        (checkpoint / "modules.json").unlink()
        save(network(), checkpoint, "model.onnx")
        manifest = read_manifest(export(checkpoint, tmp_path / "bundle"))
        assert [module.type for module in manifest.modules] == ["Transformer", "Pooling"]

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            ("sentence_transformers.models.CNN", "'sentence_transformers.models.CNN' cannot be exported"),
            ("custom.Pooling", "code of the model repository"),
            ("sentence_transformers.models.WeightedLayerPooling", "hidden states of every layer.*--source torch"),
        ],
    )
    def test_modules_that_cannot_be_exported(self, module: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
        from safetensors.numpy import save_file

        rows = json.loads((checkpoint / "modules.json").read_text())
        rows.insert(1, {"idx": 1, "name": "1", "path": "1_Other", "type": module})
        (checkpoint / "modules.json").write_text(json.dumps(rows))
        (checkpoint / "1_Other").mkdir()
        (checkpoint / "1_Other" / "config.json").write_text(json.dumps({"layer_start": 0}))
        save_file({"layer_weights": np.ones(3, np.float32)}, checkpoint / "1_Other" / "model.safetensors")
        save(network(), checkpoint)
        with pytest.raises(UnsupportedError, match=message):
            export(checkpoint, tmp_path / "bundle")
