"""Mutated bundles: a typed error or a model, never another exception, a crash, a hang, or a write outside the cache.

The hashes in the manifest are those of the mutated files: what is tested is what comes after the check of hashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz_worker
import numpy as np
import pytest
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, Probe, read_manifest, write_manifest
from stonnx._engine import probe
from stonnx._engine.engine import Engine

CASES = 1000
# Each of them takes the same mix of files and mutations.
QUICK = 150


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of each task, with a probe, in a directory named after the task."""
    directory = tmp_path_factory.mktemp("bundles")
    table, second = toy_table(8, 5), np.linspace(0.0, 1.0, 8, dtype=np.float32)
    write_bundle(directory / "embedding", {"default": dense_graph(table)}, task="embedding", embedding_dimension=8)
    write_bundle(directory / "sparse", {"default": sparse_graph(table)}, task="sparse", embedding_dimension=8)
    logits = {"default": pair_graph(table, second, "Sigmoid")}
    write_bundle(directory / "rerank", logits, task="rerank", num_labels=8, activation="sigmoid")
    for bundle in directory.iterdir():
        manifest, engine = read_manifest(bundle), Engine(open_bundle(bundle))
        probe.write(bundle, manifest, engine.named_routes)
        object.__setattr__(manifest, "files", {**manifest.files, **hash_files(bundle, [probe.FILE])})
        object.__setattr__(manifest, "probe", Probe(probe.FILE, 0.999))
        write_manifest(bundle, manifest)
    return directory


def outcomes(bundles: Path, directory: Path, first: int, last: int) -> dict[int, str]:
    """What came of each case."""
    results: dict[int, str] = {}
    (directory / "work").mkdir(parents=True)
    environment = os.environ | {"STONNX_HOME": str(directory / "home"), "HOME": str(directory), "OMP_NUM_THREADS": "1"}
    while first < last:
        scratch = directory / f"from-{first}"
        scratch.mkdir()
        arguments = [bundles, scratch, directory / "home", first, last]
        command = [sys.executable, fuzz_worker.__file__, *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory / "work")
        lines = dict(line.split(" ", 1) for line in process.stdout.splitlines() if line[:1].isdigit())
        results |= {int(case): outcome for case, outcome in lines.items()}
        first += len(lines)
        if process.returncode:
            # By a signal: 14 is the alarm. Else the worker itself failed, which is a mistake in this test.
            results[first] = f"escaped: the process ended with {process.returncode}: {process.stderr[-2000:]}"
            first += 1
    return results


def check(results: dict[int, str], cases: int) -> None:
    assert len(results) == cases
    escaped = {case: outcome for case, outcome in results.items() if outcome.startswith("escaped")}
    assert not escaped, "\n".join(f"{case}: {outcome}" for case, outcome in escaped.items())
    kinds = Counter(results.values())
    # Mutations that nothing refuses, or that nothing lets through, test nothing.
    assert kinds["loads"] > cases / 20
    assert kinds["refused BundleFormatError"] > cases / 4
    assert kinds["refused BundleIntegrityError"] < cases / 4


def test_mutated_bundles(bundles: Path, tmp_path: Path) -> None:
    check(outcomes(bundles, tmp_path, 0, QUICK), QUICK)


@pytest.mark.slow
def test_many_mutated_bundles(bundles: Path, tmp_path: Path) -> None:
    check(outcomes(bundles, tmp_path, QUICK, CASES), CASES - QUICK)


def test_the_original_bundles_load(bundles: Path, tmp_path: Path) -> None:
    for bundle in bundles.iterdir():
        copy = Path(shutil.copytree(bundle, tmp_path / bundle.name))
        assert (copy / MANIFEST_NAME).is_file()
        fuzz_worker.CLASSES[bundle.name](copy)
