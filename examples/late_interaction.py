"""Search with late interaction: a vector for each token, in Qdrant, which ranks by MaxSim.

    pip install qdrant-client
    stonnx export answerdotai/answerai-colbert-small-v1 -o colbert
    python -m examples.late_interaction colbert "How do I bake sourdough?"

Qdrant runs in this process; with --url it is a server. Vectors of a passage that are alike can share one: --pool 2
stores half as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

import stonnx
from examples.semantic_search import demo_passages
from stonnx.multi_vector_encoder.modules import HierarchicalTokenPooling

COLLECTION = "passages"
# Passages that are encoded and sent at a time.
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="bundle of a model of late interaction")
    parser.add_argument("question", nargs="?", default="How do I bake sourdough?")
    parser.add_argument("--passages", type=Path, help="one in each line (default: the examples' own)")
    parser.add_argument("--url", help="a Qdrant server (default: in this process)")
    parser.add_argument("--pool", type=float, default=1, help="keep one of so many vectors of a passage")
    parser.add_argument("--top", type=int, default=3, help="show so many passages")
    arguments = parser.parse_args()
    passages = demo_passages()
    if arguments.passages is not None:
        passages = arguments.passages.read_text(encoding="utf-8").splitlines()
    model = stonnx.MultiVectorEncoder(arguments.model)
    client = QdrantClient(url=arguments.url) if arguments.url else QdrantClient(":memory:")
    store(client, model, passages, arguments.pool)
    for number, point in enumerate(search(client, model, arguments.question, arguments.top), start=1):
        print(f"{number}. {point.score:.2f}  {point.payload['text']}")


def store(client: QdrantClient, model: stonnx.MultiVectorEncoder, passages: list[str], factor: float = 1) -> None:
    """Make a collection of passages, with one vector of ``factor`` that are alike."""
    config = models.VectorParams(
        size=model.get_embedding_dimension(),
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        # MaxSim compares with every passage, so an index of single vectors would not be used.
        hnsw_config=models.HnswConfigDiff(m=0),
    )
    client.create_collection(COLLECTION, vectors_config=config)
    client.upload_points(COLLECTION, _points(model, passages, factor), batch_size=BATCH, wait=True)


def _points(model: stonnx.MultiVectorEncoder, passages: list[str], factor: float) -> Iterator[models.PointStruct]:
    pooling = HierarchicalTokenPooling(factor) if factor > 1 else None
    number = 0
    for vectors in model.encode_stream(passages, task="document", token_pooling=pooling):
        for rows in vectors:
            yield models.PointStruct(id=number, vector=rows.tolist(), payload={"text": passages[number]})
            number += 1


def search(client: QdrantClient, model: stonnx.MultiVectorEncoder, question: str, top: int) -> list[Any]:
    """The best passages for a question, best first."""
    vectors = model.encode_query(question)
    return client.query_points(COLLECTION, query=vectors.tolist(), limit=top).points


if __name__ == "__main__":
    main()
