"""What type checkers say of calls: an array is an array, not Any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[2]

SNIPPET = """
import numpy as np
from stonnx import CrossEncoder, SentenceTransformer, SparseEncoder

model = SentenceTransformer("bundle")
reveal_type(model.encode(["a"]))  # array
reveal_type(model.encode("a", normalize_embeddings=True, device="cpu"))  # array
reveal_type(model.encode_query(["a"], prompt="query: ", truncate_dim=64))  # array
reveal_type(model.encode_document(["a"], None, "passage: ", 8, precision="int8"))  # array
reveal_type(model.encode(["a"], convert_to_tensor=True))  # Any
reveal_type(model.encode(["a"], output_value="token_embeddings"))  # Any
reveal_type(model.encode(["a"], convert_to_numpy=False))  # Any

sparse = SparseEncoder("bundle")
reveal_type(sparse.encode(["a"], convert_to_sparse_tensor=False))  # array
reveal_type(sparse.encode(["a"]))  # Any: scipy has no types

reranker = CrossEncoder("bundle")
reveal_type(reranker.predict([("a", "b")]))  # array
reveal_type(reranker.predict([["a", "b"]], apply_softmax=True))  # array
reveal_type(reranker.predict(("a", "b")))  # Any: a single score is a scalar

norms = np.linalg.norm(model.encode(["a"]), axis=1)
model.encode(["a"]).no_such_attribute  # error
"""


def test_results_have_types(tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r".*snippet\.py:(\d+): (note: Revealed type is \"(.*)\"|error: (.*))", line)
        if match:
            found[int(match[1])] = match[3] or f"error {match[4]}"
    expected = {}
    for number, text in enumerate(SNIPPET.splitlines(), start=1):
        if text.startswith("reveal_type") or text.endswith("# error"):
            expected[number] = text.rpartition("# ")[2].partition(":")[0]
    assert found.keys() == expected.keys(), done.stdout
    for number, kind in expected.items():
        said = found[number]
        if kind == "array":
            assert "ndarray" in said, f"line {number}: {said}"
        elif kind == "Any":
            assert said == "Any", f"line {number}: {said}"
        else:
            assert "no_such_attribute" in said
