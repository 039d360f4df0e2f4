"""A corpus of any size to a FAISS index: texts are read, encoded and added in pieces, so that only the index grows.

    pip install faiss-cpu
    python -m examples.stream_to_faiss passages.txt passages.faiss --query "Why does the sea rise and fall?"

The corpus has a text in each line; without one, the examples' own passages are taken. The embedded all-MiniLM-L6-v2 is
the model unless ``--model`` names another bundle.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import faiss

import stonnx
from examples.semantic_search import demo_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="?", default=Path(__file__).parent / "passages.txt")
    parser.add_argument("index", type=Path, nargs="?", default=Path("bundles/passages.faiss"))
    parser.add_argument("--model", type=Path, help="bundle of an embedding model (default: all-MiniLM-L6-v2)")
    parser.add_argument("--query", default="Why does the sea rise and fall?")
    parser.add_argument("--top", type=int, default=3)
    arguments = parser.parse_args()
    model = stonnx.SentenceTransformer(arguments.model or demo_bundle())
    index = build(model, arguments.corpus)
    write(index, arguments.index)
    print(f"{arguments.index} has {index.ntotal} vectors of {index.d} dimensions.\n")
    scores, rows = index.search(model.encode_query([arguments.query], normalize_embeddings=True), arguments.top)
    texts = lines_of(arguments.corpus, set(rows[0].tolist()))
    for score, row in zip(scores[0], rows[0], strict=True):
        if row >= 0:  # FAISS fills up with -1 if there are fewer vectors
            print(f"{score:.3f}  {texts[int(row)]}")


def build(model: stonnx.SentenceTransformer, corpus: Path) -> faiss.Index:
    """The index of a corpus, line by line. Its inner product of normalized vectors is the cosine.

    ``IndexFlatIP`` compares with every vector. ``faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)`` takes
    vectors in the same way, and searches millions in milliseconds.
    """
    width = model.encode("").shape[0]
    index = faiss.IndexFlatIP(width)
    for vectors in model.encode_stream(read_lines(corpus), task="document", normalize_embeddings=True):
        index.add(vectors)
    return index


def read_lines(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n")


def write(index: faiss.Index, path: Path) -> None:
    """Write the index. A reader sees the old file or the new one, and never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    faiss.write_index(index, str(part))
    os.replace(part, path)


def lines_of(corpus: Path, numbers: set[int]) -> dict[int, str]:
    """Some lines of the corpus: the vectors have its line numbers."""
    return {number: line for number, line in enumerate(read_lines(corpus)) if number in numbers}


if __name__ == "__main__":
    main()
