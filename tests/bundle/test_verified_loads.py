"""What was verified is what runs: the files of a bundle change while a model is loaded, and before later loads."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import Sessions
from toy_bundles import dense_bundle, dense_graph, toy_table, write_bundle

import stonnx._bundle.bundle
import stonnx._bundle.held_file
from stonnx import BundleFormatError, BundleIntegrityError, SentenceTransformer
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.held_file import CAN_HOLD, HeldFile
from stonnx._bundle.integrity import hash_files

TEXTS = ["the sun", "rain on the window", "a cat"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy bundle, and beside it another one of the same form."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys_path()))
    table = toy_table(8, 6)
    write_bundle(tmp_path / "other", {"default": dense_graph(table)}, task="embedding", embedding_dimension=8)
    return dense_bundle(tmp_path / "bundle")


def sys_path() -> list[str]:
    """Where processes of a pool find what this one found."""
    import sys

    return [path for path in sys.path if path]


def _exchange(directory: Path) -> None:
    """As an export that overwrites the bundle."""
    directory.rename(directory.with_name("old"))
    directory.with_name("other").rename(directory)
    shutil.rmtree(directory.with_name("old"))


def _exchange_and_keep(directory: Path) -> None:
    """As a deployment that keeps the last version."""
    directory.rename(directory.with_name("old"))
    directory.with_name("other").rename(directory)


def _rename(directory: Path) -> None:
    """As rsync, which renames each file into its place."""
    for name in ("default.onnx", "tokenizer.json"):
        shutil.copy(directory.with_name("other") / "default.onnx", directory / "new")
        os.replace(directory / "new", directory / name)


def _delete(directory: Path) -> None:
    shutil.rmtree(directory)


def _write(directory: Path) -> None:
    """As rsync --inplace: the same files, and a byte is another."""
    for name in ("default.onnx", "tokenizer.json"):
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)


REPLACEMENTS = [_exchange, _exchange_and_keep, _rename, _delete]


def _second_session(model: SentenceTransformer) -> SentenceTransformer:
    model.warmup()
    assert len(model._engine.route()._runner.sessions()) == 2
    return model


def _tokenizer(model: SentenceTransformer) -> SentenceTransformer:
    assert model.max_seq_length is not None
    model.max_seq_length -= 1
    return model


def _trimmed(model: SentenceTransformer) -> SentenceTransformer:
    model.warmup()
    model.trim()
    model.warmup()
    return model


LATER = [_second_session, _tokenizer, _trimmed]


def vectors(model: SentenceTransformer) -> np.ndarray:
    """From both sessions, where there are two."""
    return np.concatenate([model.encode(TEXTS), *(model.encode([text]) for text in TEXTS)])


@pytest.mark.skipif(not CAN_HOLD, reason="this system opens files by their names only")
@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_later_loads_are_of_the_same_files(
    directory: Path,
    replace: Callable[[Path], None],
    later: Callable[[SentenceTransformer], SentenceTransformer],
) -> None:
    model = SentenceTransformer(directory, threads=2)
    expected = vectors(model)
    replace(directory)
    np.testing.assert_allclose(vectors(later(model)), expected, atol=1e-6)


@pytest.mark.parametrize("later", LATER)
def test_files_that_were_written_to_are_not_loaded(
    directory: Path, later: Callable[[SentenceTransformer], SentenceTransformer]
) -> None:
    model = SentenceTransformer(directory, threads=2)
    if later is _trimmed:
        model.warmup()
    _write(directory)
    with pytest.raises(BundleIntegrityError, match="has changed since it was exported"):
        later(model)


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("replace", [*REPLACEMENTS, _write])
def test_where_files_cannot_be_held_open(
    directory: Path,
    replace: Callable[[Path], None],
    later: Callable[[SentenceTransformer], SentenceTransformer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stonnx._bundle.held_file, "CAN_HOLD", False)
    monkeypatch.setattr(stonnx._bundle.bundle, "CAN_HOLD", False)
    model = SentenceTransformer(directory, threads=2)
    later(model)
    model.trim()
    replace(directory)
    with pytest.raises(BundleIntegrityError, match=r"has been replaced or removed|has changed since"):
        later(model)


def test_a_touched_file_is_still_the_same(directory: Path) -> None:
    model = SentenceTransformer(directory, threads=2)
    for file in directory.iterdir():
        os.utime(file, (0, 0))
    _second_session(model)


@pytest.mark.skipif(not hasattr(os, "fork") or not CAN_HOLD, reason="this system does not fork, or cannot hold files")
@pytest.mark.parametrize("replace", [*REPLACEMENTS, _write])
def test_a_forked_child(directory: Path, replace: Callable[[Path], None]) -> None:
    model = SentenceTransformer(directory, threads=1)
    expected = model.encode("the sun")
    replace(directory)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer: Any = model.encode("the sun")
        except Exception as error:
            answer = error
        os.write(writer, pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = pickle.loads(file.read())
    os.waitpid(child, 0)
    if replace is _write:
        assert isinstance(answer, BundleIntegrityError)
    else:
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("replace", [_exchange, _rename, _write])
def test_a_copy_and_a_pool(directory: Path, replace: Callable[[Path], None]) -> None:
    model = SentenceTransformer(directory, threads=1)
    copy = pickle.dumps(model)
    replace(directory)
    with pytest.raises(BundleIntegrityError):
        pickle.loads(copy)
    with pytest.raises(BundleIntegrityError):
        model.start_multi_process_pool(["cpu"])


def test_another_manifest_is_another_bundle(directory: Path) -> None:
    model = SentenceTransformer(directory)
    copy = pickle.dumps(model)
    data = json.loads((directory / "stonnx.json").read_text())
    (directory / "stonnx.json").write_text(json.dumps(data | {"normalized": True}))
    with pytest.raises(BundleIntegrityError, match="another bundle than when the model was pickled"):
        pickle.loads(copy)


@pytest.mark.parametrize("replace", [*REPLACEMENTS, _write])
def test_a_replacement_between_hashing_and_loading(
    directory: Path, replace: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SentenceTransformer(directory).encode(TEXTS)
    check = HeldFile.check
    left = ["tokenizer.json"]

    def check_and_replace(file: HeldFile) -> None:
        check(file)
        if file.path.name in left:  # the last one
            left.clear()
            replace(directory)

    monkeypatch.setattr(HeldFile, "check", check_and_replace)
    try:
        found = SentenceTransformer(directory).encode(TEXTS)
    except BundleIntegrityError:
        assert replace is _write or not CAN_HOLD
    else:
        assert not left
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("load", [0, 1])
def test_a_write_while_it_is_loaded(directory: Path, load: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter(range(10))
    Sessions(monkeypatch, when_opened=lambda: _write(directory) if next(loads) == load else None)
    with pytest.raises(BundleIntegrityError, match="was written to while it was being loaded"):
        SentenceTransformer(directory, threads=2).warmup()


def _with_weights_beside(directory: Path) -> Path:
    """A bundle whose graph takes its weights from another file, as those of over 2 GB do."""
    import onnx

    dense_bundle(directory)
    onnx.save(
        onnx.load(directory / "default.onnx"),
        directory / "default.onnx",
        save_as_external_data=True,
        location="default.onnx.data",
        size_threshold=100,
    )
    data = json.loads((directory / "stonnx.json").read_text())
    files = hash_files(directory, ["default.onnx", "default.onnx.data", "tokenizer.json"])
    data["files"] = {name: vars(entry) for name, entry in files.items()}
    (directory / "stonnx.json").write_text(json.dumps(data))
    return directory


@pytest.mark.parametrize("name", ["default.onnx", "default.onnx.data"])
@pytest.mark.parametrize("change", ["replaced", "written to", "removed"])
def test_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str) -> None:
    """onnxruntime finds them by their names, so that these must still lead to what was verified."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    expected = SentenceTransformer(dense_bundle(tmp_path / "plain")).encode(TEXTS)
    directory = _with_weights_beside(tmp_path / "bundle")
    model = SentenceTransformer(directory, threads=2)
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    if change == "removed":
        (directory / name).unlink()
    elif change == "replaced":
        shutil.copy(directory / name, directory / "new")
        os.replace(directory / "new", directory / name)
    else:
        content = bytearray((directory / name).read_bytes())
        content[-1] ^= 1
        (directory / name).write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="has changed" if change == "written to" else "replaced or removed"):
        model.warmup()


def test_links_to_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub cache has all files in another directory. A link of the weights alone is refused by onnxruntime."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    blobs = _with_weights_beside(tmp_path / "blobs")
    expected = SentenceTransformer(blobs).encode(TEXTS)
    cached, linked = tmp_path / "cached", tmp_path / "linked"
    cached.mkdir()
    for file in blobs.iterdir():
        (cached / file.name).symlink_to(file)
    np.testing.assert_array_equal(SentenceTransformer(cached).encode(TEXTS), expected)
    shutil.copytree(blobs, linked)
    weights = linked / "default.onnx.data"
    weights.unlink()
    weights.symlink_to(blobs / weights.name)
    with pytest.raises(BundleFormatError, match=r"default\.onnx\.data is a link to .*blobs.*cp --remove-destination "):
        SentenceTransformer(linked)
    (linked / "inside").mkdir()
    shutil.copy(blobs / weights.name, linked / "inside")
    weights.unlink()
    weights.symlink_to(linked / "inside" / weights.name)
    np.testing.assert_array_equal(SentenceTransformer(linked).encode(TEXTS), expected)


@pytest.mark.skipif(not CAN_HOLD, reason="this system opens files by their names only")
def test_open_files_are_closed(directory: Path) -> None:
    gc.collect()  # those of earlier tests
    before = len(os.listdir("/proc/self/fd"))
    bundle = open_bundle(directory)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del bundle
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not CAN_HOLD, reason="this system opens files by their names only")
def test_a_bundle_that_is_replaced_while_it_is_opened(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is half gone when its files are opened: the new one is loaded instead."""
    original = HeldFile.__init__
    replaced = []

    def replace_and_open(self: HeldFile, path: Path, *arguments: Any) -> None:
        if not replaced:
            replaced.append(path)
            _exchange(directory)
        original(self, path, *arguments)

    other = open_bundle(directory.with_name("other")).identity
    monkeypatch.setattr(HeldFile, "__init__", replace_and_open)
    assert open_bundle(directory).identity == other
