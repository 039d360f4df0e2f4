"""Names to directories, with a small Hub of our own: organizations, downloads, offline, export on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_hub import Hub, run, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


def test_a_bundle_on_the_hub_is_downloaded_once_and_works_offline(
    hub: Hub, minilm_bundle: Path, tmp_path: Path
) -> None:
    hub.repositories["sentence-transformers/mini"] = minilm_bundle
    first = run(hub, tmp_path, "mini")  # a bare name belongs to sentence-transformers
    assert first.returncode == 0, first.stderr
    assert "(384,)" in first.stdout
    downloads = [path for path in hub.requests if path.endswith("model.onnx")]
    assert downloads
    hub.requests.clear()
    again = run(hub, tmp_path, "sentence-transformers/mini", "{'local_files_only': True}")
    assert again.returncode == 0, again.stderr
    assert hub.requests == []
    offline = run(hub, tmp_path, "mini", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nobody/nothing", "{}", "nobody/nothing is no directory here"),
        ("nobody/nothing", "{'local_files_only': True}", "in the local cache"),
        ("a/b/c", "{}", "no directory here"),
        ("./missing", "{}", "no directory here"),
    ],
)
def test_what_is_not_there(hub: Hub, tmp_path: Path, name: str, options: str, message: str) -> None:
    result = run(hub, tmp_path, name, options)
    assert result.returncode == 1
    assert message in result.stderr
    assert "ModelNotFoundError" in result.stderr


def test_a_checkpoint_on_the_hub_is_exported_on_first_use(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/tiny"] = tiny_model
    first = run(hub, tmp_path, "somebody/tiny")
    assert first.returncode == 0, first.stderr
    assert "somebody/tiny" in first.stdout
    (bundle,) = (tmp_path / "stonnx").glob("tiny-fp32-*/stonnx.json")
    written = bundle.stat().st_mtime_ns
    again = run(hub, tmp_path, "somebody/tiny")
    assert again.returncode == 0, again.stderr
    assert bundle.stat().st_mtime_ns == written


def test_processes_that_start_at_once_make_one_export(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: run(hub, tmp_path, str(tiny_model)), range(8)))
    assert [result.returncode for result in results] == [0] * 8, results[0].stderr
    assert len({result.stdout for result in results}) == 1
    assert sum("Exporting" in result.stderr for result in results) == 1
    assert len(list((tmp_path / "stonnx").glob("*/stonnx.json"))) == 1


def test_a_changed_checkpoint_is_exported_again(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert run(hub, tmp_path, str(copy)).returncode == 0
    os.utime(copy / "model.safetensors", (1, 1))
    assert run(hub, tmp_path, str(copy)).returncode == 0
    assert len(list((tmp_path / "stonnx").glob("*/stonnx.json"))) == 2


@pytest.fixture(scope="module")
def tiny_model(shared_directory: Path) -> Path:
    """A small checkpoint: the quickest of the table to export."""
    from zoo import build_checkpoint, row

    return build_checkpoint(row("all-MiniLM-L6-v2"), shared_directory / "zoo")
