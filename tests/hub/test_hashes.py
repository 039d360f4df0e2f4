"""Files are hashed once, and again after any change to them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_conditions import FILES, _write, _write_and_set_the_time_back

from stonnx import BundleIntegrityError, SentenceTransformer
from stonnx._bundle.manifest import read_manifest, write_manifest

# --- hashes ---


def test_files_are_hashed_once(bundle: Path, hashed: list[str], fine_clock: None) -> None:
    SentenceTransformer(bundle)
    assert sorted(hashed) == FILES
    SentenceTransformer(bundle)
    assert len(hashed) == len(FILES)


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
