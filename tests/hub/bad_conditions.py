"""Files that change, caches that cannot be written, and processes without a network."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from onnx import TensorProto
from toy_bundles import dense_graph, toy_table

from stonnx._bundle.integrity import hash_files

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

FILES = ["default.onnx", "tokenizer.json"]


def _write(path: Path) -> None:
    """Another byte in place: the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _write_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    _write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


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


def python(code: str, *arguments: str, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, **options)
