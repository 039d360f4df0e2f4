"""Loading under bad conditions: hashes, links, no network, processes that are killed, caches that cannot be written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_hub import COMMIT, ENCODE, Hub, environment, run, serve
from toy_bundles import dense_bundle, dense_graph, toy_table

import stonnx._bundle.held_file
import stonnx._bundle.manifest
from stonnx import BundleError, BundleFormatError, BundleIntegrityError, ExportError, SentenceTransformer, StonnxError
from stonnx._bundle.external_data import external_files
from stonnx._bundle.held_file import HeldFile
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import FileEntry, read_manifest, write_manifest
from stonnx._hub.find import find_bundle

# Ends the process: an exception could be taken for a network that is down, and be lived with.
NO_SOCKETS = """
import os, socket, sys
def refuse(*arguments, **options):
    print("the network was asked", file=sys.stderr)
    os._exit(3)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
# As where there is no network, which must not be tried again and again.
NETWORK_DOWN = """
import socket, time
def fail(*arguments, **options):
    raise OSError(101, "Network is unreachable")
socket.socket.connect = socket.getaddrinfo = fail
def sleep(seconds):
    raise AssertionError("waits for the network")
time.sleep = sleep
"""
LOAD = "import sys, stonnx; print(stonnx.SentenceTransformer(sys.argv[1]).encode('the sun').shape)"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> Path:
    """A toy bundle that this test may change."""
    return dense_bundle(tmp_path / "bundle")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are hashed from now on."""
    names: list[str] = []
    original = HeldFile.check

    def record(file: HeldFile) -> None:
        names.append(file.path.name)
        original(file)

    monkeypatch.setattr(HeldFile, "check", record)
    return names


@pytest.fixture
def fine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the bundle had been written long ago."""
    monkeypatch.setattr(stonnx._bundle.held_file, "_COARSEST_CLOCK", 0)


FILES = ["default.onnx", "tokenizer.json"]


# --- hashes ---


def test_files_are_hashed_once(bundle: Path, hashed: list[str], fine_clock: None) -> None:
    SentenceTransformer(bundle)
    assert sorted(hashed) == FILES
    SentenceTransformer(bundle)
    assert len(hashed) == len(FILES)


def _write(path: Path) -> None:
    """Another byte in place: the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _write_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    _write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    """Another file of the same size and time."""
    before, other = path.stat(), path.with_name("other")
    shutil.copy(path, other)
    _write(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [_write, _write_and_set_the_time_back, _replace, _lengthen, Path.unlink])
def test_a_change_after_the_first_load_is_found(
    bundle: Path, fine_clock: None, change: Callable[[Path], None], name: str
) -> None:
    SentenceTransformer(bundle)
    change(bundle / name)
    with pytest.raises(BundleIntegrityError, match=name):
        SentenceTransformer(bundle)


def test_another_hash_in_the_manifest_is_found(bundle: Path, fine_clock: None) -> None:
    SentenceTransformer(bundle)
    manifest = read_manifest(bundle)
    entry = dataclasses.replace(manifest.files["default.onnx"], sha256="0" * 64)
    write_manifest(bundle, dataclasses.replace(manifest, files={**manifest.files, "default.onnx": entry}))
    with pytest.raises(BundleIntegrityError, match="SHA-256 differs"):
        SentenceTransformer(bundle)


def test_nothing_is_remembered_of_files_that_were_just_written(bundle: Path, hashed: list[str]) -> None:
    # A change in the same tick of the file system's clock would have the same time.
    future = time.time() + 3600
    os.utime(bundle / "tokenizer.json", (future, future))
    for _ in range(2):
        hashed.clear()
        SentenceTransformer(bundle)
        assert {*hashed} == {*FILES}


def test_info_and_build_hash_every_time(bundle: Path, hashed: list[str], fine_clock: None) -> None:
    from stonnx.cli import main

    SentenceTransformer(bundle)
    hashed.clear()
    main(["info", str(bundle)])
    assert sorted(hashed) == FILES


# --- what is not part of the bundle ---


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


def rehash(directory: Path, *more: str) -> None:
    """Have the manifest say what the files are now."""
    data = json.loads((directory / "stonnx.json").read_text(encoding="utf-8"))
    files = hash_files(directory, [*data["files"], *more])
    data["files"] = {name: dataclasses.asdict(entry) for name, entry in files.items()}
    (directory / "stonnx.json").write_text(json.dumps(data), encoding="utf-8")


def move_weights(directory: Path, place: str) -> None:
    """Have the graph take its table from another file."""
    graph = dense_graph(toy_table(8, 5))
    (table,) = (tensor for tensor in graph.graph.initializer if tensor.name == "table")
    raw = table.raw_data
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in [("location", place), ("offset", "0"), ("length", str(len(raw)))]:
        entry = table.external_data.add()
        entry.key, entry.value = key, value
    (directory / "default.onnx").write_bytes(graph.SerializeToString())
    (directory / "weights").write_bytes(raw)
    (directory.parent / "secret").write_bytes(raw)
    rehash(directory)


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
    with pytest.raises(BundleFormatError, match="escapes model directory"):
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


# --- damage in a cache ---


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Exporter:
    """Exports the same bundle each time, and says how often it did."""

    def __init__(self, bundle: Path) -> None:
        self.bundle, self.exports = bundle, 0

    def export(self, source: str, target: Path, *, overwrite: bool, **options: Any) -> None:
        assert overwrite or not target.exists()
        assert (target / "stonnx.json").is_file() or not target.exists(), "the exporter replaces bundles only"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.bundle, target)
        self.exports += 1


@pytest.fixture
def exporter(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    fake = Exporter(bundle)
    monkeypatch.setattr("stonnx._hub.download._is_missing", lambda package: False)  # it stands in for what it needs
    monkeypatch.setitem(sys.modules, "stonnx_export", fake)
    return fake


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the exporter takes for a checkpoint."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    return tmp_path / "checkpoint"


@pytest.fixture
def cached(checkpoint: Path, exporter: Exporter) -> Path:
    """The bundle in our cache that was exported on first use."""
    return find_bundle(checkpoint, task="embedding").directory


@pytest.mark.parametrize("name", [*FILES, "stonnx.json"])
@pytest.mark.parametrize("damage", [_halve, Path.unlink])
def test_an_export_in_the_cache_heals(
    checkpoint: Path,
    exporter: Exporter,
    cached: Path,
    damage: Callable[[Path], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    damage(cached / name)
    assert SentenceTransformer(checkpoint).encode("the sun").shape == (8,)
    assert exporter.exports == 2
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Exporting {checkpoint} to a fp32 bundle ")
    assert "Copy the bundle again" not in record.getMessage()
    SentenceTransformer(checkpoint)
    assert exporter.exports == 2


def test_a_changed_byte_heals_after_it_was_remembered(
    checkpoint: Path, exporter: Exporter, cached: Path, fine_clock: None
) -> None:
    SentenceTransformer(checkpoint)
    _write_and_set_the_time_back(cached / "default.onnx")
    SentenceTransformer(checkpoint)
    assert exporter.exports == 2


def test_an_intact_export_needs_no_exporter(checkpoint: Path, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stonnx._hub.download._is_missing", lambda package: True)
    SentenceTransformer(checkpoint)


def test_a_damaged_export_without_the_exporter(
    checkpoint: Path, exporter: Exporter, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stonnx._hub.download._is_missing", lambda package: True)
    _halve(cached / "default.onnx")
    with pytest.raises(BundleIntegrityError) as error:
        SentenceTransformer(checkpoint)
    assert f"The bundle of {checkpoint} in the cache is damaged: {cached / 'default.onnx'} has " in str(error.value)
    assert "(the exporter is not installed)" in str(error.value)
    assert f"Delete {cached}, and load" in str(error.value)
    assert "Copy the bundle again" not in str(error.value)
    assert exporter.exports == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_cache_in_which_nothing_can_be_exported(
    there: bool, checkpoint: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def refuse(path: Path) -> Iterator[None]:
        raise OSError(30, "Read-only file system", str(path))
        yield

    monkeypatch.setattr("huggingface_hub.utils.WeakFileLock", refuse)
    if there:
        _halve(cached / "default.onnx")
        with pytest.raises(BundleIntegrityError, match=rf"Read-only file system\)\. Delete {cached}"):
            find_bundle(checkpoint, task="embedding")
    else:
        shutil.rmtree(cached)
        with pytest.raises(ExportError, match=r"Read-only file system\. Set STONNX_HOME to a directory that can be"):
            find_bundle(checkpoint, task="embedding")


def test_a_bundle_of_a_newer_stonnx_in_the_cache_stays(checkpoint: Path, exporter: Exporter, cached: Path) -> None:
    data = json.loads((cached / "stonnx.json").read_text(encoding="utf-8"))
    (cached / "stonnx.json").write_text(json.dumps(data | {"schema_version": 99}), encoding="utf-8")
    with pytest.raises(BundleFormatError, match="pip install -U stonnx"):
        find_bundle(checkpoint, task="embedding")
    assert exporter.exports == 1


@pytest.mark.parametrize("just_written", [False, True])
def test_an_export_in_the_cache_is_hashed_once(
    checkpoint: Path, cached: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, just_written: bool
) -> None:
    # Nothing is remembered of files that were just written, nor if the cache is read-only.
    if not just_written:
        monkeypatch.setattr(stonnx._bundle.held_file, "_COARSEST_CLOCK", 0)
        monkeypatch.setattr("stonnx._bundle.integrity.is_remembered", lambda *_: False)
    # A change after the hash would not show in the time of a file that was just written: it is hashed again.
    each = 2 if just_written else 1
    SentenceTransformer(checkpoint)
    assert sorted(hashed) == sorted(each * FILES)
    SentenceTransformer(checkpoint)
    assert len(hashed) == 2 * each * len(FILES)


def _snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub" / "models--somebody--toy" / "snapshots" / COMMIT


@pytest.mark.parametrize("name", [*FILES, "stonnx.json"])
def test_a_download_heals(hub: Hub, bundle: Path, tmp_path: Path, name: str) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    _halve((_snapshot(tmp_path) / name).resolve())
    hub.downloads.clear()
    healed = run(hub, tmp_path, "somebody/toy")
    assert healed.returncode == 0, healed.stderr
    assert healed.stderr.count("Downloading somebody/toy again: ") == 1
    assert sorted(hub.downloads) == sorted({name, "stonnx.json"})
    hub.downloads.clear()
    assert run(hub, tmp_path, "somebody/toy").stderr == ""
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("code", "options", "variables", "reason"),
    [
        ("", "{'local_files_only': True}", {}, "(the Hub is not to be asked)"),
        ("", "{}", {"HF_HUB_OFFLINE": "1"}, "(the Hub is not to be asked)"),
        (NETWORK_DOWN, "{}", {}, "It cannot be made again here ("),
    ],
    ids=["local_files_only", "HF_HUB_OFFLINE", "network down"],
)
@pytest.mark.parametrize("name", ["default.onnx", "stonnx.json"])
def test_a_damaged_download_without_the_hub(
    hub: Hub, bundle: Path, tmp_path: Path, name: str, code: str, options: str, variables: dict[str, str], reason: str
) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    _halve((_snapshot(tmp_path) / name).resolve())
    result = python(code + ENCODE, "somebody/toy", options, env=environment(hub, tmp_path) | variables)
    assert result.returncode == 1
    assert "BundleIntegrityError: The bundle of somebody/toy in the cache is damaged: " in result.stderr
    assert reason in result.stderr
    assert f"Delete {tmp_path / 'hf' / 'hub' / 'models--somebody--toy'}, and load" in result.stderr


# --- no network ---


def python(code: str, *arguments: str, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, **options)


def test_a_directory_needs_no_network(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    result = python(NO_SOCKETS + LOAD, str(bundle), env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("code", "options", "variables"),
    [
        (NO_SOCKETS, "{'local_files_only': True}", {}),
        (NO_SOCKETS, "{}", {"HF_HUB_OFFLINE": "1"}),
        (NETWORK_DOWN, "{}", {}),
    ],
    ids=["local_files_only", "HF_HUB_OFFLINE", "network down"],
)
def test_a_cached_bundle_needs_no_network(
    hub: Hub, bundle: Path, tmp_path: Path, code: str, options: str, variables: dict[str, str]
) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    result = python(code + ENCODE, "somebody/toy", options, env=environment(hub, tmp_path) | variables)
    assert result.returncode == 0, result.stderr


FIND = """
import sys
from stonnx._hub.download import download
print(download(sys.argv[1], None, None, None, False))
"""


def test_a_checkpoint_that_another_library_cached_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--somebody--plain"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "modules.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    result = python(NETWORK_DOWN + FIND, "somebody/plain", env=environment(hub, tmp_path))
    assert result.stdout.strip() == str(snapshot), result.stderr


def test_a_cached_checkpoint_that_became_a_bundle(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_text("{}")
    hub.repositories["somebody/toy"] = checkpoint
    found = python(FIND, "somebody/toy", env=environment(hub, tmp_path))
    assert found.stdout.strip().endswith(COMMIT), found.stderr
    hub.repositories["somebody/toy"], hub.commit = bundle, "f" * 40
    result = run(hub, tmp_path, "somebody/toy")
    assert result.returncode == 0, result.stderr


# --- killed, and many at once ---


@pytest.mark.parametrize("file", ["stonnx.json", "default.onnx", "tokenizer.json"])
def test_killed_in_the_middle_of_a_download(hub: Hub, bundle: Path, tmp_path: Path, file: str) -> None:
    hub.repositories["somebody/toy"] = bundle
    hub.stalls = file
    command = [sys.executable, "-c", ENCODE, "somebody/toy", "{}"]
    with subprocess.Popen(command, env=environment(hub, tmp_path), stderr=subprocess.DEVNULL) as process:
        assert hub.stalled.wait(120)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    hub.stalls = None
    hub.go_on.set()
    # What is there by half is not taken for whole where the rest cannot be had.
    offline = run(hub, tmp_path, "somebody/toy", HF_HUB_OFFLINE="1")
    assert "ModelNotFoundError" in offline.stderr
    again = run(hub, tmp_path, "somebody/toy")
    assert again.returncode == 0, again.stderr


def test_processes_that_start_at_once_make_one_download(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/toy"] = bundle
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: run(hub, tmp_path, "somebody/toy"), range(8)))
    assert [result.returncode for result in results] == [0] * 8, results[0].stderr
    assert sorted(hub.downloads) == sorted(["stonnx.json", *FILES])


# Exports a bundle that is there already, and waits in the middle of writing it.
EXPORT = """
import sys, time
from pathlib import Path
from stonnx_export.write.staging import staging_directory

def export(source, target, **options):
    with staging_directory(Path(target), overwrite=False) as directory:
        for file in sorted(Path(sys.argv[2]).iterdir()):
            (directory / file.name).write_bytes(file.read_bytes())
            if sys.argv[3] == "wait":
                print("in the middle", flush=True)
                time.sleep(300)

import stonnx_export
stonnx_export.export = export
import stonnx
print(stonnx.SentenceTransformer(sys.argv[1]).encode("the sun").shape)
"""


@pytest.mark.usefixtures("pytorch")
def test_killed_in_the_middle_of_an_export(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(bundle)]
    with subprocess.Popen([*command, "wait"], env=environment(hub, tmp_path), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = subprocess.run([*command, "go on"], env=environment(hub, tmp_path), capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "stonnx").iterdir() if path.is_dir())
    assert left in (["checkpoint"], ["checkpoint", "verified"])


# --- what cannot be written ---

# Root may write everywhere, unless it gives that up.
AS_ANYBODY = """
import ctypes, os
if os.geteuid() == 0:
    version_3, this_process, none = 0x20080522, 0, (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version_3, this_process), none) == 0
import stonnx._bundle.held_file
stonnx._bundle.held_file._COARSEST_CLOCK = 0  # there is something to remember, and no place for it
"""


def lock(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_bundle_and_a_cache_that_cannot_be_written(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "stonnx").mkdir()
    lock(tmp_path / "stonnx")
    lock(bundle)
    code = AS_ANYBODY + "\nimport sys\nassert not os.access(sys.argv[1], os.W_OK, effective_ids=True)\n" + LOAD
    try:
        result = python(code, str(bundle), env=environment(hub, tmp_path), cwd=tmp_path)
    finally:
        bundle.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "stonnx").iterdir()) == []


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "online"])
def test_a_hub_cache_that_cannot_be_written(hub: Hub, bundle: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    lock(tmp_path / "hf")
    (tmp_path / "stonnx").touch()  # no directory, and nobody can make one
    code = AS_ANYBODY + ENCODE
    result = python(code, "somebody/toy", "{}", env=environment(hub, tmp_path) | offline, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# --- no code of a model is run ---


class Payload:
    """What runs as soon as it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_nothing_in_a_bundle_is_code(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickled = pickle.dumps(Payload(trace))
    pickle.loads(pickled)
    assert trace.exists()
    trace.unlink()
    for name in ("pytorch_model.bin", "probe.npz"):
        (bundle / name).write_bytes(pickled)
    (bundle / "modeling_x.py").write_text(f"open({str(trace)!r}, 'w')")
    data = json.loads((bundle / "stonnx.json").read_text(encoding="utf-8"))
    data["probe"] = {"file": "probe.npz", "cosine_min": 0.9}
    (bundle / "stonnx.json").write_text(json.dumps(data), encoding="utf-8")
    rehash(bundle, "probe.npz", "pytorch_model.bin", "modeling_x.py")
    with pytest.raises(BundleError, match="not a probe that can be read"):
        SentenceTransformer(bundle, trust_remote_code=True)
    np.savez(bundle / "probe.npz", texts=np.array([Payload(trace)], dtype=object), **{"route.default": np.zeros(1)})
    rehash(bundle)
    with pytest.raises(BundleError, match="allow_pickle=False"):
        SentenceTransformer(bundle, trust_remote_code=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("place", "source", "message"),
    [
        ("weights of a module", "torch", "Weights only load failed"),
        ("weights of a module", "onnx", "Weights only load failed"),
        ("weights", "torch", "Weights only load failed"),
        ("weights", "onnx", None),  # the network's are in the ONNX file
        ("code of a module", "torch", "--trust-remote-code"),
        ("code of a module", "onnx", "--trust-remote-code"),
        ("code", "torch", "the network is code of the model repository"),
        ("code", "onnx", None),  # as with the weights
        ("activation", "torch", r"The activation 'modeling_x\.X' cannot be exported"),
        ("activation", "onnx", r"The activation 'modeling_x\.X' cannot be exported"),
    ],
)
def test_nothing_in_a_checkpoint_is_run(
    tmp_path: Path, minilm_checkpoint: Path, place: str, source: Any, message: str | None
) -> None:
    from safetensors.numpy import save_file

    from stonnx_export import export

    checkpoint = Path(shutil.copytree(minilm_checkpoint, tmp_path / "checkpoint"))
    trace = tmp_path / "trace"
    (checkpoint / "modeling_x.py").write_text(f"open({str(trace)!r}, 'w')\nclass X: pass\n")
    modules = json.loads((checkpoint / "modules.json").read_text(encoding="utf-8"))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    dense = checkpoint / "2_Dense"
    dense.mkdir()
    settings = {"in_features": 384, "out_features": 4, "bias": False, "activation_function": "torch.nn.Identity"}
    pickled = pickle.dumps(Payload(trace), protocol=2)  # what torch.load expects
    if place == "weights of a module":
        (dense / "pytorch_model.bin").write_bytes(pickled)
    else:
        save_file({"linear.weight": np.ones((4, 384), dtype=np.float32)}, dense / "model.safetensors")
    if place == "weights":
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "pytorch_model.bin").write_bytes(pickled)
    elif place == "code of a module":
        modules[1]["type"] = "modeling_x.X"
    elif place == "code":
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer")
        config |= {"model_type": "x", "auto_map": dict.fromkeys(classes, "modeling_x.X")}
    elif place == "activation":
        settings["activation_function"] = "modeling_x.X"
    modules.append({"idx": 3, "name": "3", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    for path, value in [("modules.json", modules), ("config.json", config), ("2_Dense/config.json", settings)]:
        (checkpoint / path).write_text(json.dumps(value), encoding="utf-8")
    _onnx_network(checkpoint / "onnx")
    with pytest.raises(StonnxError, match=message) if message else contextlib.nullcontext():
        export(checkpoint, tmp_path / "bundle", source=source)
    assert not trace.exists()


def _onnx_network(folder: Path) -> None:
    """An ONNX file with token embeddings, so that an export goes on to what is behind it."""
    folder.mkdir()
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "row"], ["last_hidden_state"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 384])
    values = {"last": np.array([2]), "row": np.full((1, 384), 1e-3, dtype=np.float32)}
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "network", inputs, [output], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )


# --- what is remembered ---


@pytest.mark.parametrize("kind", ["link", "second name", "directory", "of another user"])
def test_only_own_markers_are_believed(
    bundle: Path, home: Path, tmp_path: Path, hashed: list[str], fine_clock: None, kind: str
) -> None:
    """Several users share a cache: one of them must not be able to say that another's files were checked."""
    SentenceTransformer(bundle)
    (marker,) = (home / "verified").iterdir()
    assert marker.stat().st_size == 0
    marker.unlink()
    (tmp_path / "precious").write_text("data")
    if kind == "link":
        marker.symlink_to(tmp_path / "precious")
    elif kind == "second name":
        os.link(tmp_path / "precious", marker)
    elif kind == "directory":
        marker.mkdir()
    elif os.geteuid() == 0:
        marker.touch()
        os.chown(marker, 65534, 65534)
    else:
        pytest.skip("only root can give files away")
    hashed.clear()
    SentenceTransformer(bundle)
    assert sorted(hashed) == FILES
    assert (tmp_path / "precious").read_text() == "data"
