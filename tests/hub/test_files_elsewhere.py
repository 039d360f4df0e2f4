"""Links and weights that lead out of the bundle."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bad_conditions import _write, move_weights, rehash
from onnx import TensorProto, helper

from stonnx import BundleFormatError, BundleIntegrityError, SentenceTransformer
from stonnx._bundle.external_data import external_files
from stonnx._bundle.manifest import FileEntry, read_manifest, write_manifest


def test_links_lead_anywhere_as_long_as_the_hash_is_right(bundle: Path, tmp_path: Path) -> None:
    linked = Path(shutil.copytree(bundle, tmp_path / "linked", copy_function=os.symlink))
    SentenceTransformer(linked)
    (tmp_path / "secret").write_text("root:x:0:0")
    (linked / "tokenizer.json").unlink()
    (linked / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(BundleIntegrityError) as error:
        SentenceTransformer(linked)
    assert "root:x" not in str(error.value)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_links_to_what_never_ends(bundle: Path, tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    manifest = read_manifest(bundle)
    (bundle / "endless").symlink_to(tmp_path / target)
    write_manifest(bundle, dataclasses.replace(manifest, files={**manifest.files, "endless": FileEntry(0, "0" * 64)}))
    with pytest.raises(BundleIntegrityError, match="endless cannot be read: it is not a plain file"):
        SentenceTransformer(bundle)


def test_an_empty_graph(bundle: Path) -> None:
    (bundle / "default.onnx").write_bytes(b"")
    rehash(bundle)
    with pytest.raises(BundleFormatError, match=r"lists 'default\.onnx' as a file of 0 bytes"):
        SentenceTransformer(bundle)


def test_weights_in_a_file_of_the_bundle(bundle: Path, fine_clock: None) -> None:
    expected = SentenceTransformer(bundle).encode("the sun")
    move_weights(bundle, "weights")
    rehash(bundle, "weights")
    np.testing.assert_array_equal(SentenceTransformer(bundle).encode("the sun"), expected)
    _write(bundle / "weights")
    with pytest.raises(BundleIntegrityError, match="weights has changed"):
        SentenceTransformer(bundle)


PLACES = ["weights", "../secret", "sub/../../secret", "./weights", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "missing", ""]


@pytest.mark.parametrize("place", PLACES)
def test_weights_anywhere_else(bundle: Path, place: str) -> None:
    move_weights(bundle, place)
    with pytest.raises(BundleFormatError, match=r"takes weights from '.*', which is not a file of the bundle"):
        SentenceTransformer(bundle)


def test_weights_behind_a_link_out_of_the_bundle(bundle: Path) -> None:
    # The hash is right, and yet onnxruntime, which reads this file, refuses it.
    move_weights(bundle, "linked")
    (bundle / "linked").symlink_to("../secret")
    rehash(bundle, "linked")
    with pytest.raises(BundleFormatError, match=r"is a link to .*reads weights from the directory of their graph only"):
        SentenceTransformer(bundle)


def _tensor(place: str) -> TensorProto:
    tensor = TensorProto(name=place, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    # A field that comes twice has its last value, and the order of key and value is free.
    entry = tensor.external_data.add()
    entry.ParseFromString(b"\x12\x01x" + b"\x0a\x01y" + b"\x0a\x08location")
    entry.value = place
    return tensor


def test_all_places_where_a_graph_can_have_weights(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=_tensor("d"))], "inner", [], [])
    inner.initializer.append(_tensor("a"))
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    graph = helper.make_graph([branch, helper.make_node("Constant", [], ["c"], value=_tensor("b"))], "g", [], [])
    sparse = onnx.SparseTensorProto(values=_tensor("e"), indices=_tensor("f"), dims=[1])
    graph.sparse_initializer.append(sparse)
    many = helper.make_attribute("many", [_tensor("g"), _tensor("h")])
    graph.node.append(onnx.NodeProto(op_type="Other", attribute=[many, helper.make_attribute("sparse", sparse)]))
    graph.node[-1].attribute.append(
        helper.make_attribute("graphs", [helper.make_graph([], "i", [], [], [_tensor("i")])])
    )
    function = helper.make_function(
        "own", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=_tensor("j"))], []
    )
    function.attribute_proto.append(helper.make_attribute("default", _tensor("k")))
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "model.onnx") == set("abdefghijk")


def test_a_deeply_nested_graph(tmp_path: Path) -> None:
    content = b""
    for _ in range(20_000):
        graph = b"\x0a" + _varint(len(content)) + content
        content = b"\x2a" + _varint(len(graph)) + graph if len(content) % 2 else b"\x32" + _varint(len(graph)) + graph
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _varint(len(content)) + content)
    assert external_files(tmp_path / "model.onnx") == set()


def _varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def test_a_file_that_becomes_a_graph_is_looked_at(bundle: Path, fine_clock: None) -> None:
    # It was listed, and so hashed, but nobody read what weights it takes.
    content = (bundle / "default.onnx").read_bytes()
    move_weights(bundle, "../secret")
    (bundle / "default.onnx").rename(bundle / "other.onnx")
    (bundle / "default.onnx").write_bytes(content)
    rehash(bundle, "other.onnx")
    SentenceTransformer(bundle)
    manifest = read_manifest(bundle)
    route = dataclasses.replace(manifest.routes["default"], graph="other.onnx")
    write_manifest(bundle, dataclasses.replace(manifest, routes={"default": route}))
    with pytest.raises(BundleFormatError, match=r"other\.onnx takes weights from '\.\./secret'"):
        SentenceTransformer(bundle)
