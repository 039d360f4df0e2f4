"""A pool of stand-ins, one of the real model, and a bundle with other hashes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import start

from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest, write_manifest
from stonnx._model import pool as pool_module
from stonnx._model.pool import stop_pool


@pytest.fixture(scope="module")
def fake_pool() -> Iterator[pool_module.Pool]:
    pool = start()
    yield pool
    stop_pool(pool)


@pytest.fixture(scope="module")
def pool(minilm: Any) -> Iterator[pool_module.Pool]:
    pool = minilm.start_multi_process_pool(["cpu", "cpu"])
    yield pool
    minilm.stop_multi_process_pool(pool)


@pytest.fixture(scope="module")
def other_bundle(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its tokenizer written differently: as far as the hashes tell, another one."""
    directory = tmp_path_factory.mktemp("other")
    for path in minilm_bundle.iterdir():
        os.link(path, directory / path.name)
    (directory / MANIFEST_NAME).unlink()
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").write_bytes((minilm_bundle / "tokenizer.json").read_bytes() + b"\n")
    manifest = read_manifest(minilm_bundle)
    object.__setattr__(manifest, "files", hash_files(directory, manifest.files))
    write_manifest(directory, manifest)
    return directory
