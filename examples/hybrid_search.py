"""The retrieval half of RAG: dense and sparse search, fused, reranked, and put into the prompt of a language model.

    python -m examples.hybrid_search "How do I bake sourdough?"

runs with models that need no download: the embedded all-MiniLM-L6-v2, and a sparse encoder that this script makes. It
gives each token of a text the token's inverse document frequency in the passages, as inference-free SPLADE models do
with learned weights. Real models take their place with options, and a reranker joins in:

    stonnx export naver/splade-cocondenser-ensembledistil -o splade
    stonnx export cross-encoder/ms-marco-MiniLM-L6-v2 -o reranker
    python -m examples.hybrid_search "How do I bake sourdough?" --sparse splade --reranker reranker
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import stonnx
from examples.semantic_search import demo_bundle, demo_passages, embedded_checkpoint

# Of each search, this many passages go on; of the reranked ones, this many go into the prompt.
CANDIDATES, KEPT = 20, 3
# Reciprocal rank fusion: https://plg.uwaterloo.ca/~gvcormac/cormacksigir09-rrf.pdf
RRF = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question", nargs="?", default="How do I bake sourdough?")
    parser.add_argument("--passages", type=Path, help="one in each line (default: the examples' own)")
    parser.add_argument("--dense", type=Path, help="bundle of an embedding model (default: all-MiniLM-L6-v2)")
    parser.add_argument("--sparse", type=Path, help="bundle of a sparse encoder (default: made here)")
    parser.add_argument("--reranker", type=Path, help="bundle of a reranker (default: the fused order stays)")
    arguments = parser.parse_args()
    passages = demo_passages()
    if arguments.passages is not None:
        passages = arguments.passages.read_text(encoding="utf-8").splitlines()
    dense = stonnx.SentenceTransformer(arguments.dense or demo_bundle())
    sparse = stonnx.SparseEncoder(arguments.sparse or made_sparse_encoder(passages))
    reranker = stonnx.CrossEncoder(arguments.reranker) if arguments.reranker else None
    search = HybridSearch(passages, dense, sparse, reranker)
    found = search(arguments.question)
    for number, (name, order) in enumerate(search.orders.items(), 1):
        print(f"{number}. {name + ':':<10}{', '.join(str(index) for index in order[:5])}, ...")
    print(f"\n{prompt(arguments.question, [passages[index] for index in found])}")


class HybridSearch:
    """Passages and their vectors. A call gives the indices of the best passages for a question."""

    def __init__(
        self,
        passages: list[str],
        dense: stonnx.SentenceTransformer,
        sparse: stonnx.SparseEncoder,
        reranker: stonnx.CrossEncoder | None,
    ) -> None:
        self._passages, self._dense, self._sparse, self._reranker = passages, dense, sparse, reranker
        self._vectors = dense.encode_document(passages)
        self._weights = sparse.encode_document(passages)
        #: The orders of the last question.
        self.orders: dict[str, list[int]] = {}

    def __call__(self, question: str) -> list[int]:
        dense = self._dense.similarity(self._dense.encode_query(question), self._vectors)[0]
        sparse = self._sparse.similarity(self._sparse.encode_query(question), self._weights)[0]
        by_dense, by_sparse = best(dense), [index for index in best(sparse) if sparse[index] > 0]
        self.orders = {"dense": by_dense, "sparse": by_sparse, "fused": fused(by_dense, by_sparse)}
        candidates = self.orders["fused"][:CANDIDATES]
        if self._reranker is not None:
            ranked = self._reranker.rank(question, [self._passages[index] for index in candidates])
            candidates = self.orders["reranked"] = [candidates[int(row["corpus_id"])] for row in ranked]
        return candidates[:KEPT]


def best(scores: np.ndarray) -> list[int]:
    """The positions of the highest scores, the highest first."""
    order: list[int] = np.argsort(-scores, kind="stable")[:CANDIDATES].tolist()
    return order


def fused(*orders: list[int]) -> list[int]:
    """One order from several, without comparing their scores: a sum of 1 / (60 + rank)."""
    scores: Counter[int] = Counter()
    for order in orders:
        for rank, index in enumerate(order, 1):
            scores[index] += 1 / (RRF + rank)  # type: ignore[assignment] # a Counter may count in fractions
    return sorted(scores, key=lambda index: -scores[index])


def prompt(question: str, passages: list[str]) -> str:
    """The text for a language model."""
    numbered = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    return f"Answer from these passages only, and name their numbers.\n\n{numbered}\n\nQuestion: {question}"


def made_sparse_encoder(passages: list[str]) -> Path:
    """The bundle of a sparse encoder that weighs tokens by their inverse document frequency in the passages."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
    from transformers import AutoTokenizer

    from stonnx_export import export

    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    rows = tokenizer(passages, add_special_tokens=False)["input_ids"]
    frequency = Counter(token for row in rows for token in set(row))
    counts = np.array([frequency[token] for token in range(len(tokenizer))], dtype=np.float32)
    weights = np.log(1 + (len(passages) - counts + 0.5) / (counts + 0.5))
    folder = Path(tempfile.mkdtemp(prefix="sparse-"))
    embedding = SparseStaticEmbedding(tokenizer, torch.from_numpy(weights), frozen=True)
    SparseEncoder(modules=[embedding]).save(str(folder / "checkpoint"))
    export(folder / "checkpoint", folder / "bundle", name="inverse document frequencies")
    return folder / "bundle"


if __name__ == "__main__":
    main()
