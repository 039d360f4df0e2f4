"""What an export writes and reports, and ways to stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stonnx._bundle.manifest import Fidelity
from stonnx_export import RECIPES, pipeline
from stonnx_export.originals import load
from stonnx_export.write import bundle as bundle_writer
from stonnx_export.write import model_card, staging

FILES = ["README.md", "model.onnx", "probe.npz", "stonnx.json", "tokenizer.json"]
STAGES = [
    "reading the checkpoint",
    "reading the network",
    "building the graph",
    "writing the files",
    "verifying against the original",
    "writing the manifest",
    "opening the bundle",
]
FIDELITY = Fidelity("nothing", 1, 1.0, 1.0, 0.0, 0.0, RECIPES["fp32"].tolerance["embedding"])


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, and every empty directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def stopping_at(stage: str, error: BaseException, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one step of the pipeline raise."""
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    def fail_second(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return fail() if calls == 2 else write_manifest(*arguments)

    def fail_for_target(self: Path, destination: Path) -> Path:
        return fail() if Path(destination) == target else rename(self, destination)

    write_manifest, rename = pipeline.write_manifest, Path.rename
    match stage:
        case "graph":
            monkeypatch.setattr(load._load_original(None), "graph", fail)
        case "render":
            monkeypatch.setattr(model_card, "render", fail)
        case "first write_manifest":
            monkeypatch.setattr(pipeline, "write_manifest", fail)
        case "second write_manifest":
            monkeypatch.setattr(pipeline, "write_manifest", fail_second)
        case "fsync":
            monkeypatch.setattr(pipeline.os, "fsync", fail)
        case "rename":
            monkeypatch.setattr(Path, "rename", fail_for_target)
            monkeypatch.setattr(staging, "exchange", fail)
        case "read_checkpoint" | "_load_original":
            monkeypatch.setattr(load, stage, fail)
        case "_write_graph" | "_write_tokenizer":
            monkeypatch.setattr(bundle_writer, stage, fail)
        case _:
            monkeypatch.setattr(pipeline, stage, fail)
