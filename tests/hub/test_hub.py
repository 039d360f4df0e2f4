"""Names to directories, with a small Hub of our own: organizations, downloads, offline, export on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_hub import COMMIT, Hub, run, serve
from toy_bundles import dense_bundle


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
        ("nobody/nothing", "{}", "nobody/nothing is not a directory here"),
        ("nobody/nothing", "{'local_files_only': True}", "in the local cache"),
        ("a/b/c", "{}", "not a directory here"),
        ("./missing", "{}", "not a directory here"),
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


def test_a_revision_is_another_model(hub: Hub, toys: tuple[Path, Path], tmp_path: Path) -> None:
    hub.repositories |= {"somebody/toy": toys[0], "somebody/toy@v2/new": toys[1]}
    hub.revisions["v2/new"] = "f" * 40
    found = {}
    for revision in (None, "main", COMMIT, "v2/new", "f" * 40):
        result = run(hub, tmp_path, "somebody/toy", str({"revision": revision}))
        assert result.returncode == 0, result.stderr
        found[revision] = result.stdout.split()[-1]
    assert found == {None: "(8,)", "main": "(8,)", COMMIT: "(8,)", "v2/new": "(16,)", "f" * 40: "(16,)"}
    absent = run(hub, tmp_path, "somebody/toy", str({"revision": "v3"}))
    assert "ModelNotFoundError" in absent.stderr


@pytest.mark.parametrize("argument", ["token", "use_auth_token", "HF_TOKEN"])
def test_a_token_opens_a_private_repository(hub: Hub, toys: tuple[Path, Path], tmp_path: Path, argument: str) -> None:
    hub.repositories["somebody/toy"], hub.token = toys[0], "hf_secret"
    closed = run(hub, tmp_path, "somebody/toy")
    assert "ModelNotFoundError" in closed.stderr
    variables = {"HF_TOKEN": "hf_secret"} if argument == "HF_TOKEN" else {}
    options = {} if variables else {argument: "hf_secret"}
    opened = run(hub, tmp_path, "somebody/toy", str(options), **variables)
    assert opened.returncode == 0, opened.stderr
    assert hub.tokens == {"hf_secret"}
    assert "hf_secret" not in opened.stdout + opened.stderr


def test_a_token_that_is_not_to_be_shown(hub: Hub, toys: tuple[Path, Path], tmp_path: Path) -> None:
    hub.repositories["somebody/toy"] = toys[0]
    result = run(hub, tmp_path, "somebody/toy", "{'token': False}", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert not hub.tokens


@pytest.mark.parametrize("argument", ["cache_folder", "SENTENCE_TRANSFORMERS_HOME", "both"])
def test_downloads_go_where_they_are_told_to(hub: Hub, toys: tuple[Path, Path], tmp_path: Path, argument: str) -> None:
    """The argument counts more than the variable, and that more than the Hub's own cache."""
    hub.repositories["somebody/toy"] = toys[0]
    options = {} if argument == "SENTENCE_TRANSFORMERS_HOME" else {"cache_folder": str(tmp_path / "asked")}
    variables = {} if argument == "cache_folder" else {"SENTENCE_TRANSFORMERS_HOME": str(tmp_path / "variable")}
    place = tmp_path / ("variable" if not options else "asked")
    for more in ({}, {"local_files_only": True}):
        result = run(hub, tmp_path, "somebody/toy", str(options | more), **variables)
        assert result.returncode == 0, result.stderr
    assert list(place.glob("models--somebody--toy/snapshots/*/stonnx.json"))
    assert len(list(tmp_path.rglob("stonnx.json"))) == 1


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles that are told apart by the width of their vectors."""
    directory = tmp_path_factory.mktemp("toys")
    return dense_bundle(directory / "8", width=8), dense_bundle(directory / "16", width=16)


@pytest.fixture(scope="module")
def tiny_model(pytorch: None, shared_directory: Path) -> Path:
    """A small checkpoint: the quickest of the table to export."""
    from zoo import build_checkpoint, row

    return build_checkpoint(row("all-MiniLM-L6-v2"), shared_directory / "zoo")
