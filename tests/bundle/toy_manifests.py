"""What the tests of manifests and of a bundle's files change: stand-ins for its files, and one field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import MANIFEST_NAME

# Small stand-ins: reading a manifest and checking hashes needs no network.
# As far as its encoding goes, an ONNX file.
FILES = {"model.onnx": b"\x0a\x05graph" * 100, "tokenizer.json": b"{}"}


def change(directory: Path, path: str, value: Any) -> None:
    """Set a field of the manifest, ``routes.default.graph``; ``...`` removes it."""
    file = directory / MANIFEST_NAME
    data = json.loads(file.read_text(encoding="utf-8"))
    *parents, last = path.split(".")
    target = data
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    if value is ...:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
    file.write_text(json.dumps(data), encoding="utf-8")
