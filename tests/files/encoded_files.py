"""An encoder without a model, and ways to write, run, stop and read files with it."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from stonnx._files import encode_file as encode_file_module
from stonnx._files.encode_file import EncodeFileReport, encode_file

IDENTITY = {"model": "sha256:0", "normalize": True, "prompt": None}
OUTPUTS = ["npy", "jsonl", "safetensors"]
ROOT = Path(encode_file_module.__file__).parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def fake_encode(texts):
    """[n, 8] float32 of a hash: the same text has the same row everywhere, and any other text another one."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=32).digest() for text in texts)
    return (np.frombuffer(digests, "<u4").reshape(len(texts), 8) / 2**31 - 1).astype(np.float32)


def run(source: Path | None, output: Path, **options: Any) -> EncodeFileReport:
    return encode_file(options.pop("encode", fake_encode), source, output, **{"identity": IDENTITY, **options})


def load(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.array(np.load(path, mmap_mode="r"))
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        assert list(tensors) == ["embeddings"]
        return tensors["embeddings"]
    return np.array([row["embedding"] for row in records(path)], np.float32)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_lines(path: Path, count: int) -> list[str]:
    texts = [f"text {i} " + "é" * (i % 7) for i in range(count)]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", newline="")
    return texts


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class StopError(Exception):
    """Ends a run from inside `encode`."""


def stop_after(rows: int, error: BaseException | None = None) -> Callable[[list[str]], np.ndarray]:
    seen = 0

    def encode(texts: list[str]) -> np.ndarray:
        nonlocal seen
        if seen >= rows:
            raise error or StopError
        seen += len(texts)
        return fake_encode(texts)

    return encode


def child(body: str) -> list[str]:
    """The command of a Python process that has fake_encode, and none of pytest's imports or threads."""
    start = "import errno, hashlib, os, signal, subprocess, sys\nfrom pathlib import Path\nimport numpy as np\n"
    start += f"sys.path.insert(0, {str(ROOT)!r})\n"
    start += f"from stonnx._files.encode_file import encode_file\nIDENTITY = {IDENTITY!r}\n"
    return [sys.executable, "-c", start + inspect.getsource(fake_encode) + textwrap.dedent(body)]
