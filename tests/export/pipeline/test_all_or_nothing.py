"""An export that fails at any step leaves the target as it was, whatever was there."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from whole_exports import FIDELITY, FILES, contents, stopping_at

from stonnx._bundle.manifest import Fidelity, read_manifest
from stonnx._disk import create, try_lock
from stonnx._errors import ExportError, ModelNotFoundError
from stonnx_export import export, pipeline

STEPS = [
    "read_checkpoint",
    "_load_original",
    "graph",
    "_build",
    "_write_graph",
    "_write_tokenizer",
    "_manifest",
    "first write_manifest",
    "verify_fidelity",
    "render",
    "second write_manifest",
    "fsync",
    "rename",
]


# The old bundle has been moved aside by then, and nobody moves it back.
@pytest.mark.usefixtures("quick")
class TestAllOrNothing:
    ERRORS = (RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"))

    @staticmethod
    def expected(error: BaseException) -> AbstractContextManager[Any]:
        if isinstance(error, OSError):
            return pytest.raises(ExportError, match="No space left on device")
        return pytest.raises(type(error))

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("step", STEPS)
    def test_a_failure_leaves_nothing(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        target = tmp_path / "bundle"
        stopping_at(step, error, target, monkeypatch)
        with self.expected(error):
            export(tiny_checkpoint, target)
        assert not contents(tmp_path)

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("step", STEPS)
    def test_a_failure_leaves_the_old_bundle(
        self,
        tiny_checkpoint: Path,
        old_bundle: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        error: BaseException,
    ) -> None:
        before = contents(old_bundle.parent)
        with monkeypatch.context() as context:
            stopping_at(step, error, old_bundle, context)
            with self.expected(error):
                export(tiny_checkpoint, old_bundle, overwrite=True)
        assert contents(old_bundle.parent) == before

    @pytest.mark.parametrize("step", STEPS)
    def test_the_next_export_succeeds(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        target = tmp_path / "bundle"
        with monkeypatch.context() as context:
            stopping_at(step, RuntimeError("boom"), target, context)
            with pytest.raises(RuntimeError, match="boom"):
                export(tiny_checkpoint, target)
        assert export(tiny_checkpoint, target) == target
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    def test_nothing_is_at_the_target_before_the_end(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "bundle"
        seen = []
        monkeypatch.setattr(pipeline, "verify_fidelity", lambda *_, **__: seen.append(target.exists()) or FIDELITY)
        monkeypatch.setattr(pipeline.os, "fsync", lambda _: seen.append(target.exists()))
        export(tiny_checkpoint, target)
        # After the files, their directory, and then the one that the bundle has been renamed in.
        assert seen == [False] * (1 + len(FILES) + 1) + [True]

    def test_a_failure_leaves_no_parent_directories(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            export("./missing", tmp_path / "new" / "deep" / "bundle")
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
class TestTarget:
    def test_existing_bundle(self, tiny_checkpoint: Path, old_bundle: Path) -> None:
        before = contents(old_bundle.parent)
        with pytest.raises(ExportError, match=r"exists already\..* -o.* --overwrite"):
            export(tiny_checkpoint, old_bundle)
        assert contents(old_bundle.parent) == before

    def test_overwrite(self, tiny_checkpoint: Path, old_bundle: Path) -> None:
        assert export(tiny_checkpoint, old_bundle, overwrite=True, name="new") == old_bundle
        assert sorted(contents(old_bundle.parent)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(old_bundle).source.name == "new"

    def test_overwrite_without_anything_to_overwrite(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=True)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    @pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_what_is_no_bundle_is_never_replaced(
        self, tiny_checkpoint: Path, tmp_path: Path, kind: str, overwrite: bool
    ) -> None:
        target = tmp_path / "precious"
        if kind == "file":
            target.write_text("data")
        else:
            target.mkdir()
            (target / "data.txt").write_text("data")
        before = contents(tmp_path)
        with pytest.raises(ExportError, match="is not a bundle" if overwrite else "exists already"):
            export(tiny_checkpoint, target, overwrite=overwrite)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
    def test_an_empty_directory_is_filled(self, tiny_checkpoint: Path, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "bundle").mkdir()
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=overwrite)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    def test_parents_are_made(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        target = tmp_path / "new" / "deep" / "bundle"
        assert export(tiny_checkpoint, target) == target
        assert sorted(contents(target)) == FILES

    def test_a_parent_that_is_a_file(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("data")
        with pytest.raises(ExportError, match=r"Cannot write to .*file: .* -o"):
            export(tiny_checkpoint, tmp_path / "file" / "bundle")
        assert contents(tmp_path) == {"file": b"data"}

    def test_a_parent_that_cannot_be_written(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Root may write anywhere, so the refusal is made up."""

        def refuse(self: Path, *_: Any, **__: Any) -> None:
            if self != tmp_path:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ExportError, match=r"Cannot write to .*: Permission denied\. .* -o"):
            export(tiny_checkpoint, tmp_path / "bundle")
        assert not contents(tmp_path)

    def test_a_second_export_in_the_same_process(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One starts and ends while the other verifies: the later one fails, and harms nothing."""
        target = tmp_path / "bundle"
        started = []

        def verify(*_: Any, **__: Any) -> Fidelity:
            started.append(True)
            if len(started) == 1:
                export(tiny_checkpoint, target, name="second")
            return FIDELITY

        monkeypatch.setattr(pipeline, "verify_fidelity", verify)
        with pytest.raises(ExportError, match="exists already"):
            export(tiny_checkpoint, target, name="first")
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(target).source.name == "second"

    def test_another_export_was_faster(
        self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "bundle"
        monkeypatch.setattr(
            pipeline, "verify_fidelity", lambda *_, **__: shutil.copytree(tiny_bundle, target) and FIDELITY
        )
        with pytest.raises(ExportError, match="exists already"):
            export(tiny_checkpoint, target)
        assert contents(target) == contents(tiny_bundle)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    @pytest.mark.parametrize(
        "name",
        [
            "bundle",
            "bundle[1]",
        ],
    )
    def test_leftovers(self, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
        """Only directories of dead processes go, and only those of this target."""
        others = [tmp_path / f".{name}.partial-1a2b3c4d", tmp_path / ".other.partial-999999999"]
        dead = tmp_path / f".{name}.partial-999999999"
        for directory in (*others, dead):
            directory.mkdir()
        lock = create(tmp_path / f".{name}.partial-1a2b3c4d.lock")
        assert try_lock(lock)
        export(tiny_checkpoint, tmp_path / name)
        os.close(lock)
        assert all(directory.is_dir() for directory in others)
        assert not dead.exists()
