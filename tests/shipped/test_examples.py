"""The examples run as they stand, with the embedded model and with bundles that are made here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, rows_bundle, sparse_graph, toy_table, write_bundle

import stonnx

ROOT = Path(__file__).parents[2]
PASSAGES = (ROOT / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()


def run(module: str, *arguments: object, where: Path) -> str:
    """The output of an example, run in another directory, where it finds its bundles."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"examples.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(minilm_int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the bundle that the examples would export first."""
    place = tmp_path_factory.mktemp("examples")
    (place / "bundles").mkdir()
    (place / "bundles" / "all-MiniLM-L6-v2-int8").symlink_to(minilm_int8_bundle)
    return place


def test_hybrid_search(place: Path) -> None:
    output = run("hybrid_search", "How do I bake sourdough?", where=place)
    assert [line.split()[1] for line in output.splitlines()[:3]] == ["dense:", "sparse:", "fused:"]
    assert "\n[1] Sourdough needs no bought yeast" in output
    assert output.endswith("Question: How do I bake sourdough?\n")


def test_hybrid_search_with_bundles_of_ones_own(tmp_path: Path) -> None:
    """Random weights: the reranker has the last word on the order."""
    dense = dense_bundle(tmp_path / "dense")
    graph = sparse_graph(toy_table(40, 6))
    sparse = write_bundle(tmp_path / "sparse", {"default": graph}, task="sparse", embedding_dimension=40)
    pairs = pair_graph(toy_table(1, 5), np.float32([0.5]), "Sigmoid")
    reranker = write_bundle(tmp_path / "rerank", {"default": pairs}, task="rerank", num_labels=1, activation="sigmoid")
    passages = ["bread rises", "the river flows", "the sun shines", "what is the city"]
    (tmp_path / "passages.txt").write_text("\n".join(passages), encoding="utf-8")
    options = ["--dense", dense, "--sparse", sparse, "--reranker", reranker, "--passages", "passages.txt"]
    output = run("hybrid_search", "what rises", *options, where=tmp_path)
    ranked = [row["corpus_id"] for row in stonnx.CrossEncoder(reranker).rank("what rises", passages)]
    assert f"[1] {passages[ranked[0]]}\n[2] {passages[ranked[1]]}\n[3] {passages[ranked[2]]}\n" in output


def test_fusion_prefers_what_both_find() -> None:
    from examples.hybrid_search import fused

    assert fused([1, 2, 3], [4, 2]) == [2, 1, 4, 3]


def test_stream_to_faiss(place: Path, minilm_int8_bundle: Path) -> None:
    faiss = pytest.importorskip("faiss")
    output = run("stream_to_faiss", where=place)
    assert output.startswith(f"bundles/passages.faiss has {len(PASSAGES)} vectors of 384 dimensions.")
    assert "The tides follow the moon" in output.splitlines()[2]
    index = faiss.read_index(str(place / "bundles" / "passages.faiss"))
    expected = stonnx.SentenceTransformer(minilm_int8_bundle).encode_document(PASSAGES, normalize_embeddings=True)
    np.testing.assert_allclose(index.reconstruct_n(0, len(PASSAGES)), expected, rtol=0, atol=1e-6)
    assert not list(place.glob("bundles/*.part"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Starlette's client
def test_fastapi_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    bundle = dense_bundle(tmp_path / "dense")
    monkeypatch.setenv("MODEL", str(bundle))
    from examples.fastapi_app import app

    model = stonnx.SentenceTransformer(bundle)
    texts = ["bread rises", "the river flows"]
    with TestClient(app) as client:
        answer = client.post("/embed", json={"texts": texts})
        expected = model.encode_document(texts, normalize_embeddings=True)
        np.testing.assert_allclose(answer.json()["vectors"], expected, rtol=0, atol=1e-6)
        assert client.post("/embed", json={"texts": []}).json() == {"vectors": []}
        assert client.get("/load").json() == {"queued_tokens": 0}
        assert client.post("/embed", json={"texts": [3]}).status_code == 422
        for error, status in (
            (stonnx.OverloadedError(100, 50, 2.7), 429),
            (stonnx.TooManyTokensError(100, 50), 413),
            (stonnx.DeadlineError(), 504),
            (stonnx.InvalidInputError("Input 0 is not a text.", 0), 400),
            (stonnx.RunError("out of memory"), 500),
        ):
            monkeypatch.setattr(app.state.batcher, "encode", raises(error))
            refused = client.post("/embed", json={"texts": texts})
            assert (refused.status_code, refused.json()) == (status, {"error": str(error)})
            assert refused.headers.get("Retry-After") == ("3" if status == 429 else None)


def raises(error: Exception) -> Any:
    async def encode(*arguments: Any, **options: Any) -> Any:
        raise error

    return encode


@pytest.mark.parametrize("factor", [1, 2])
def test_late_interaction(factor: int, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    passages = ["bread rises", "the river flows", "the sun shines", "what is the city of bread and sun"]
    (tmp_path / "passages.txt").write_text("\n".join(passages), encoding="utf-8")
    bundle = rows_bundle(tmp_path / "rows")
    options = ["--passages", "passages.txt", "--top", 4, "--pool", factor]
    output = run("late_interaction", bundle, "what river", *options, where=tmp_path)
    if factor == 1:
        model = stonnx.MultiVectorEncoder(bundle)
        scores = model.similarity(model.encode_query(["what river"]), model.encode_document(passages))[0]
        order = np.argsort(-scores, kind="stable")
        shown = "".join(f"{number}. {scores[i]:.2f}  {passages[i]}\n" for number, i in enumerate(order, start=1))
        assert output == shown
    assert len(output.splitlines()) == len(passages)
