"""Manifests that contradict themselves or their graph: refused when they are loaded, with the field's name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from toy_bundles import dense_bundle, dense_graph, pair_graph, rows_bundle, toy_table, write_bundle

from stonnx import BundleFormatError, CrossEncoder, MultiVectorEncoder, RunError, SentenceTransformer
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import hash_files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return dense_bundle(tmp_path / "bundle")


def change(bundle: Path, place: str, value: Any) -> None:
    """Have a field of the manifest be something else; ``place`` is its path, with dots."""
    data = json.loads((bundle / "stonnx.json").read_text())
    *parents, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    holder = data
    for part in parents:
        holder = holder[part]
    holder[last] = value
    (bundle / "stonnx.json").write_text(json.dumps(data))


TOKENIZER = "routes.default.tokenizer"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("embedding_dimension", 4, "embedding_dimension is 4, allowed is 8"),
        ("embedding_dimension", 16, "embedding_dimension is 16, allowed is 8"),
        ("embedding_dimension", 0, "embedding_dimension is 0"),
        ("embedding_dimension", -8, "embedding_dimension is -8"),
        ("routes.default.outputs.0.shape", ["batch", 4], "embedding_dimension is 8, allowed is 4"),
        ("routes.default.outputs.0.shape", [8], "two sizes, of the batch and of a row"),
        ("routes.default.outputs.0.shape", ["batch", "sequence", 8], "two sizes, of the batch and of a row"),
        ("routes.default.outputs.0.shape", ["batch", -8], "positive sizes"),
        ("routes.default.outputs.1.shape", ["batch", 8], "'token_embeddings' has the shape"),
        ("routes.default.outputs.1.shape", ["batch", "sequence", 4], "'token_embeddings' has the shape"),
        ("routes.default.outputs.1.shape", [], "positive sizes"),
        ("routes.default.outputs.0.name", "other", "has no output 'sentence_embedding'"),
        ("routes.default.outputs.1.name", "other", "has no output 'other', although the manifest says so"),
        (f"{TOKENIZER}.pad_token_id", -1, "pad_token_id is -1"),
        (f"{TOKENIZER}.pad_token_id", 2**31, "pad_token_id is 2147483648"),
        (f"{TOKENIZER}.pad_token_id", 100_000, "pad_token_id is 100000, and tokenizer.json has no such token"),
        (f"{TOKENIZER}.pad_token_type_id", -1, "pad_token_type_id is -1"),
        (f"{TOKENIZER}.special_token_ids", [-1], "special_token_ids is -1"),
        (f"{TOKENIZER}.max_seq_length", 100_000, "max_seq_length is 100000, allowed is up to"),
        (f"{TOKENIZER}.max_positions", 0, "max_positions is 0"),
        (f"{TOKENIZER}.max_positions", 2**31, "max_positions is 2147483648"),
        ("max_active_dims", 0, "max_active_dims is 0"),
        ("default_prompt_name", "absent", "default_prompt_name is 'absent'"),
        ("probe", {"file": "tokenizer.json", "cosine_min": -1}, r"probe\.cosine_min is -1"),
        ("probe", {"file": "tokenizer.json", "cosine_min": 0}, r"probe\.cosine_min is 0"),
        ("probe", {"file": "tokenizer.json", "cosine_min": 1.5}, r"probe\.cosine_min is 1\.5"),
        ("probe", {"file": "tokenizer.json", "cosine_min": float("nan")}, r"probe\.cosine_min is nan"),
    ],
)
def test_contradictions(bundle: Path, place: str, value: Any, message: str) -> None:
    SentenceTransformer(bundle)
    change(bundle, place, value)
    with pytest.raises(BundleFormatError, match=message):
        SentenceTransformer(bundle)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("num_labels", 3, "num_labels is 3, allowed is 2"),
        ("num_labels", 0, "num_labels is 0"),
        ("labels", ["only one"], "the number of labels is 1, allowed is 2"),
    ],
)
def test_contradictions_of_rerankers(tmp_path: Path, place: str, value: Any, message: str) -> None:
    graph = pair_graph(toy_table(2, 5), np.ones(2, np.float32), "Sigmoid")
    bundle = write_bundle(tmp_path / "bundle", {"default": graph}, task="rerank", num_labels=2, activation="sigmoid")
    CrossEncoder(bundle)
    change(bundle, place, value)
    with pytest.raises(BundleFormatError, match=message):
        CrossEncoder(bundle)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_id", -1, "token_id is -1"),
        ("token_id", 100_000, "token_id is 100000, and tokenizer.json has no such token"),
        ("length", 0, "length is 0"),
        ("length", 100_000, "length is 100000, allowed is up to"),
    ],
)
def test_contradictions_of_expansions(tmp_path: Path, field: str, value: int, message: str) -> None:
    bundle = rows_bundle(tmp_path / "bundle")
    assert MultiVectorEncoder(bundle).encode_query("the sun").shape[1] == 8
    change(bundle, f"{TOKENIZER}.expansion.{field}", value)
    with pytest.raises(BundleFormatError, match=rf"expansion\.{message}"):
        MultiVectorEncoder(bundle)


@pytest.mark.parametrize(("size", "left"), [(100, 8), (5, 5), (0, 0), (-3, 5)])
def test_values_that_are_allowed(bundle: Path, size: int, left: int) -> None:
    """Dimensions are cut as in the original, by a slice; prompts that every model has need no entry."""
    change(bundle, "truncate_dim", size)
    change(bundle, "default_prompt_name", "query")
    assert SentenceTransformer(bundle).encode("the sun").shape == (left,)


def test_too_many_files(bundle: Path) -> None:
    data = json.loads((bundle / "stonnx.json").read_text())
    data["files"] |= {f"file{number}": {"size": 1, "sha256": "0"} for number in range(1000)}
    (bundle / "stonnx.json").write_text(json.dumps(data))
    with pytest.raises(BundleFormatError, match="the number of files is 1002"):
        open_bundle(bundle)


def replace_graph(bundle: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Write another graph, and its hash."""
    graph = dense_graph(toy_table(8, 5))
    edit(graph)
    (bundle / "default.onnx").write_bytes(graph.SerializeToString())
    files = hash_files(bundle, ["default.onnx", "tokenizer.json"])
    change(bundle, "files", {name: dataclasses.asdict(entry) for name, entry in files.items()})


def test_an_input_that_nobody_has(bundle: Path) -> None:
    def edit(graph: onnx.ModelProto) -> None:
        graph.graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3]))

    replace_graph(bundle, edit)
    with pytest.raises(BundleFormatError, match="requires the input 'pixel_values'"):
        SentenceTransformer(bundle)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda name: helper.make_node("ReduceMax", ["right"], [name], keepdims=0), id="a number"),
        pytest.param(
            lambda name: helper.make_node("ReduceMax", ["right", "axis"], [name], keepdims=0), id="a number for a row"
        ),
        pytest.param(
            lambda name: helper.make_node("ReduceMax", ["right", "axis"], [name], keepdims=1), id="one row for a column"
        ),
        pytest.param(lambda name: helper.make_node("Unsqueeze", ["right", "axis"], [name]), id="a dimension more"),
        pytest.param(lambda name: helper.make_node("Transpose", ["right"], [name]), id="turned"),
        pytest.param(lambda name: helper.make_node("Concat", ["right", "right"], [name], axis=0), id="two rows a text"),
    ],
)
@pytest.mark.parametrize("texts", [1, 3])
def test_an_output_of_another_shape_is_never_made_to_fit(
    bundle: Path, wrong: Callable[[str], onnx.NodeProto], texts: int
) -> None:
    """A graph that declares nothing about its output can give anything."""

    def edit(graph: onnx.ModelProto) -> None:
        for node in graph.graph.node:
            for index, name in enumerate(node.output):
                if name == "sentence_embedding":
                    node.output[index] = "right"
        graph.graph.node.append(wrong("sentence_embedding"))
        graph.graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
        graph.graph.output[0].CopyFrom(helper.make_value_info("sentence_embedding", _anything()))

    replace_graph(bundle, edit)
    try:
        model = SentenceTransformer(bundle)
    except BundleFormatError:
        return
    with pytest.raises(RunError, match="its manifest promises"):
        model.encode(["the sun", "rain", "a cat on a mat"][:texts])


def _anything() -> onnx.TypeProto:
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=TensorProto.FLOAT))
