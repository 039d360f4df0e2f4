"""Damage in a cache is repaired from the Hub or by a new export, or named."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_conditions import FILES, NETWORK_DOWN, Exporter, _halve, _write_and_set_the_time_back, python
from small_hub import COMMIT, ENCODE, Hub, environment, run

import stonnx._bundle.held_file
from stonnx import BundleFormatError, BundleIntegrityError, ExportError, SentenceTransformer
from stonnx._hub.find import find_bundle


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
    an_hour = 3600 * 10**9
    monkeypatch.setattr(stonnx._bundle.held_file, "_COARSEST_CLOCK", an_hour if just_written else 0)
    if not just_written:
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
        ("", "{'local_files_only': True}", {}, "(local_files_only or HF_HUB_OFFLINE is set)"),
        ("", "{}", {"HF_HUB_OFFLINE": "1"}, "(local_files_only or HF_HUB_OFFLINE is set)"),
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
