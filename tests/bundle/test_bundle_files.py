"""Files of a bundle that are damaged, missing or unusable: a BundleError that names the file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_manifests import FILES, change

from stonnx import BundleFormatError, BundleIntegrityError, InvalidArgumentError, SentenceTransformer
from stonnx._bundle.integrity import check_files, hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest, write_manifest

# --- files ---


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _break_the_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove, "is missing, but listed in stonnx.json"),
        (_truncate, "it is truncated or changed"),
        (_lengthen, "it is truncated or changed"),
        (_flip_a_bit, "has changed since it was exported (SHA-256 differs)"),
        (_break_the_link, "is missing, but listed in stonnx.json"),
        (_link_to_itself, "cannot be read: "),
    ],
)
def test_damaged_files(own: Path, damage: Callable[[Path], None], message: str, name: str) -> None:
    manifest = read_manifest(own)
    damage(own / name)
    with pytest.raises(BundleIntegrityError) as error:
        check_files(own, manifest)
    assert str(error.value).startswith(str(own / name))
    assert message in str(error.value)
    assert "Copy the bundle again" in str(error.value)
    assert isinstance(error.value, OSError)


def test_a_directory_in_place_of_a_file(own: Path) -> None:
    (own / "model.onnx").unlink()
    (own / "model.onnx").mkdir()
    data = json.loads((own / MANIFEST_NAME).read_text(encoding="utf-8"))
    data["files"]["model.onnx"]["size"] = (own / "model.onnx").stat().st_size
    change(own, "files", data["files"])
    with pytest.raises(BundleIntegrityError, match="cannot be read: "):
        check_files(own, read_manifest(own))


def test_links_as_in_the_hub_cache_are_fine(bundle: Path, tmp_path: Path) -> None:
    linked = shutil.copytree(bundle, tmp_path / "linked", copy_function=os.symlink)
    check_files(linked, read_manifest(linked))


def test_loading_checks_the_files(own: Path) -> None:
    _flip_a_bit(own / "model.onnx")
    with pytest.raises(BundleIntegrityError, match="SHA-256 differs"):
        SentenceTransformer(own)


# --- intact bundles that cannot be used ---


def test_a_tokenizer_that_is_none(own: Path) -> None:
    with pytest.raises(
        BundleFormatError, match=r"tokenizer\.json is not a tokenizer that the tokenizers package can read"
    ):
        SentenceTransformer(own)


def test_a_graph_that_is_none(own: Path, minilm_bundle: Path) -> None:
    shutil.copy(minilm_bundle / "tokenizer.json", own)
    write_manifest(own, dataclasses.replace(read_manifest(own), files=hash_files(own, FILES)))
    with pytest.raises(BundleFormatError, match=r"onnxruntime \S+ cannot load .*pip install -U onnxruntime"):
        SentenceTransformer(own)


@pytest.mark.parametrize(("task", "name"), [("sparse", "SparseEncoder"), ("rerank", "CrossEncoder")])
def test_a_bundle_for_another_task(minilm_bundle: Path, tmp_path: Path, task: Any, name: str) -> None:
    other = Path(shutil.copytree(minilm_bundle, tmp_path / task, copy_function=os.symlink))
    (other / MANIFEST_NAME).unlink()
    write_manifest(other, dataclasses.replace(read_manifest(minilm_bundle), task=task))
    with pytest.raises(
        InvalidArgumentError, match=rf"for the task '{task}'. Load it with stonnx\.{name}, not with SentenceTransformer"
    ):
        SentenceTransformer(other)


def test_another_precision_than_asked_for(own: Path) -> None:
    with pytest.raises(
        NotImplementedError, match=r"exported as 'fp32', not as 'int8'.* stonnx export MODEL --dtype int8"
    ):
        SentenceTransformer(own, dtype="int8")
