"""PyTorch's weights or an ONNX file: which one is taken of a checkpoint, and which one is fetched from the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import stonnx
from stonnx._hub import download, find
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load


class TestChoice:
    """What ``source`` means where PyTorch's weights, an ONNX file, or neither are there."""

    @pytest.fixture
    def source(self, tiny_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
        """Files as the test's parameter says."""
        directory = tmp_path / "source"
        shutil.copytree(tiny_checkpoint, directory)
        if "torch" not in request.param:
            (directory / "model.safetensors").unlink()
            # A small module's are not network.
            (directory / "1_Pooling" / "model.safetensors").write_bytes(b"")
        if "onnx" in request.param:
            (directory / "onnx").mkdir()
            (directory / "onnx" / "model.onnx").write_bytes(b"")
        return read_checkpoint(directory)

    @pytest.mark.parametrize(
        ("source", "asked", "missing", "chosen"),
        [
            ("torch", "auto", None, "torch"),
            ("torch onnx", "auto", None, "torch"),
            ("torch onnx", "auto", "torch", "onnx"),
            ("torch onnx", "onnx", None, "onnx"),
            ("torch onnx", "torch", None, "torch"),
            ("onnx", "auto", None, "onnx"),
            ("onnx", "auto", "sentence_transformers", "onnx"),
            ("torch", "auto", "torch", "torch is not installed"),
            ("torch onnx", "torch", "torch", "torch is not installed"),
            ("", "auto", None, "no weights that can be exported"),
        ],
        indirect=["source"],
    )
    def test_choice(
        self, source: Any, asked: Any, missing: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, "missing_for_pytorch", lambda: missing)
        if chosen in ("torch", "onnx"):
            assert load._choose_source(source, asked) == chosen
        else:
            with pytest.raises(stonnx.StonnxError, match=chosen):
                load._choose_source(source, asked)

    def test_unknown_source(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(stonnx.StonnxError, match=r"'tensorflow' is not known\. Allowed: auto, torch, onnx"):
            export(tiny_checkpoint, tmp_path / "bundle", source="tensorflow")  # type: ignore[arg-type]


class TestDownload:
    """What of a repository is fetched from the Hub."""

    FILES = (
        *("config.json", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "model.safetensors"),
        *("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_O3.onnx", "onnx/model_qint8_avx512.onnx"),
        *("pytorch_model.bin", "2_Dense/pytorch_model.bin", "3_Dense/pytorch_model.bin", "tf_model.h5"),
        *("openvino/openvino_model.bin", "openvino/openvino_model.xml", "openvino/config.json"),
    )
    ONNX = ("onnx/model.onnx", "onnx/model.onnx_data")
    BIN = ("pytorch_model.bin", "2_Dense/pytorch_model.bin")
    NEVER = tuple(name for name in FILES if name.startswith(("openvino/", "onnx/model_", "tf_model")))

    @pytest.mark.parametrize(
        ("lacks", "onnx", "missing", "left_out"),
        [
            ("", False, None, (*ONNX, *BIN)),
            # A small module's weights in both formats are small.
            ("", True, None, ("model.safetensors", "pytorch_model.bin")),
            ("", None, None, (*ONNX, *BIN)),
            ("", None, "torch", ("model.safetensors", "pytorch_model.bin")),
            ("onnx/", True, None, ("pytorch_model.bin",)),
            (".safetensors", False, None, ONNX),
            ("2_Dense/model.safetensors", False, None, (*ONNX, "pytorch_model.bin")),
            (".safetensors .bin", False, None, ()),
        ],
    )
    def test_download(
        self,
        lacks: str,
        onnx: bool | None,
        missing: str | None,
        left_out: tuple[str, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        available = {name for name in self.FILES if not any(part in name for part in lacks.split())}

        def no_bundle(**_: Any) -> str:
            raise LocalEntryNotFoundError("no stonnx.json")

        def snapshot(*, allow_patterns: list[str] | None = None, ignore_patterns: Any = None, **_: Any) -> str:
            if allow_patterns is None:
                raise LocalEntryNotFoundError("nothing in the cache")
            for name in filter_repo_objects(available, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_bundle)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(download, "missing_for_pytorch", lambda: missing)
        directory = download.download("acme/model", None, None, str(tmp_path / "cache"), True, onnx=onnx)
        found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        assert found == available - {*left_out, *self.NEVER}

    def test_without_the_exporter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing can be made of the weights: the settings alone say which commit it is, and what is missing."""
        asked: list[Any] = []

        def no_bundle(**_: Any) -> str:
            raise LocalEntryNotFoundError("no stonnx.json")

        def snapshot(*, allow_patterns: list[str] | None = None, **_: Any) -> str:
            if allow_patterns is None:
                raise LocalEntryNotFoundError("nothing in the cache")
            asked.append(allow_patterns)
            (tmp_path / "config.json").touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_bundle)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(download, "_is_missing", lambda package: True)
        monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
        with pytest.raises(
            stonnx.MissingDependencyError, match=r"acme/model is a checkpoint, .*stonnx export acme/model"
        ):
            find.find_bundle("acme/model", task="embedding", local_files_only=True)
        assert asked == [["modules.json", "config.json", "adapter_config.json"]]
