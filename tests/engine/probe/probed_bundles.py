"""Toy bundles with a probe, and ways to change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import Probe, read_manifest, write_manifest
from stonnx._engine import probe as probe_module
from stonnx._engine.engine import Engine

Arrays = dict[str, np.ndarray]
WIDTH = 8


def with_probe(directory: Path, cosine_min: float = 0.999) -> Path:
    """Give a bundle a probe, as the exporter does."""
    engine = Engine(open_bundle(directory), threads=1)
    probe_module.write(directory, engine.manifest, engine.named_routes)
    list_probe(directory, Probe(probe_module.FILE, cosine_min))
    return directory


def list_probe(directory: Path, probe: Probe) -> None:
    """State a probe and its hash in the manifest."""
    manifest = read_manifest(directory)
    files = {**manifest.files, **hash_files(directory, [probe.file])}
    write_manifest(directory, dataclasses.replace(manifest, files=files, probe=probe))


def edit(directory: Path, change: Callable[[Arrays], Any]) -> None:
    """Change the arrays of a probe, and have the manifest agree."""
    with np.load(directory / probe_module.FILE) as arrays:
        data = dict(arrays)
    change(data)
    np.savez_compressed(directory / probe_module.FILE, **data)
    probe = read_manifest(directory).probe
    assert probe is not None
    list_probe(directory, probe)


def load(directory: Path) -> Engine:
    return Engine(open_bundle(directory), threads=1)


def graphs(task: str) -> Mapping[str, onnx.ModelProto]:
    table = toy_table(WIDTH, 5)
    match task:
        case "embedding":
            return {"default": dense_graph(table)}
        case "sparse":
            return {"document": sparse_graph(table), "query": sparse_graph(toy_table(WIDTH, 6))}
        case _:
            return {"default": pair_graph(toy_table(3, 5), np.array([1, -1, 0.5], dtype=np.float32), "Sigmoid")}
