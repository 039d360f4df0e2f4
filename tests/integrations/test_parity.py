"""Every way to run a bundle gives the same vectors, sparse vectors and scores, to 1e-6.

Native kernels promise equal bits for tokens only: the mean of a text's tokens depends on the padding in its last bits.

A way gets the bundles and gives its results by task. A way whose host is not installed skips; `make test-integrations`
makes environments with all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engines import Daft, Dask, Spark
from served import post, serve
from triton_server import packages, triton

import stonnx
from stonnx.cli import main

QUERY = "what rises?"
WORDS = ("bread", "rises", "river", "flows", "sun", "shines", "city")
# Of many lengths, the longest beyond the limit of the model, some of them equal.
TEXTS = [
    " ".join(f"{WORDS[(index + step) % 7]} {index}" for step in range(1 + index * index % 23)) for index in range(40)
]
TEXTS += ["", "the sun", "the sun", "Ünïcode ✓ 中文"]

Results = dict[str, Any]
WAYS: dict[str, tuple[Callable[[dict[str, Path], Path], Results], tuple[str, ...]]] = {}


def way(*hosts: str) -> Any:
    """Registers a function as a way to run bundles that needs these packages."""

    def register(function: Callable[[dict[str, Path], Path], Results]) -> Any:
        WAYS[function.__name__] = (function, hosts)
        return function

    return register


def matrix(indices: Any, values: Any, width: int = 40) -> Any:
    """Rows of indices and values as a dense array."""
    rows = np.zeros((len(indices), width), np.float32)
    for row, columns, numbers in zip(rows, indices, values, strict=True):
        row[np.asarray(columns, dtype=int)] = numbers
    return rows


@pytest.fixture(scope="module", params=["toys", "minilm-int8"])
def case(request: pytest.FixtureRequest, toys: dict[str, Path]) -> tuple[dict[str, Path], Results]:
    """Bundles, and what the classes give in this process, each text alone.

    The toys have prompts that matter. The real model is in int8: a batch, threads or padding could change its vectors.
    """
    bundles = dict(toys)
    if request.param != "toys":
        bundles["dense"] = request.getfixturevalue("minilm_int8_bundle")
    dense, sparse = stonnx.SentenceTransformer(bundles["dense"]), stonnx.SparseEncoder(bundles["sparse"])
    reranker = stonnx.CrossEncoder(bundles["rerank"])
    return bundles, {
        "dense": np.stack([dense.encode_document(text) for text in TEXTS]),
        "sparse": np.stack([sparse.encode_document([text]).toarray()[0] for text in TEXTS]),
        "rerank": np.stack([reranker.predict((QUERY, text)) for text in TEXTS]),
    }


def without_kernels(bundle: Path, directory: Path) -> Any:
    """The vectors of the stock form: the environment of Triton does not have native kernels."""
    code = (
        "import json, sys, numpy, stonnx\n"
        "texts = json.loads(sys.argv[2])\n"
        "model = stonnx.SentenceTransformer(sys.argv[1])\n"
        "numpy.save(sys.argv[3], numpy.stack([model.encode_document(text) for text in texts]))\n"
    )
    command = [sys.executable, "-c", code, str(bundle), json.dumps(TEXTS), str(directory / "stock.npy")]
    subprocess.run(command, check=True, env=os.environ | {"STONNX_KERNELS": "0"}, timeout=120)
    return np.load(directory / "stock.npy")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the hosts
@pytest.mark.parametrize(
    "name",
    [
        "one_call",
        "pool",
        "batcher",
        "http",
        "shards",
        "ray",
        "triton_server",
        "spark",
        "dask",
        "daft",
        "langchain",
        "llama_index",
        "haystack",
        "chroma",
        "lancedb",
        "qdrant",
        "mteb",
    ],
)
def test_parity(name: str, case: tuple[dict[str, Path], Results], tmp_path: Path) -> None:
    (function, hosts), (bundles, expected) = WAYS[name], case
    for host in hosts:
        pytest.importorskip(host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray gives its workers a low priority: beside other work they would hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        # The workers of engines find stonnx where this process does.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(str, sys.path))))
        if name == "triton_server":
            packages()
            patch.setenv("STONNX_KERNELS", "0")
            expected = expected | {"dense": without_kernels(bundles["dense"], tmp_path)}
        results = function(bundles, tmp_path)
    assert results
    for task, result in results.items():
        np.testing.assert_allclose(result, expected[task], rtol=0, atol=1e-6, err_msg=task)


def test_every_way_is_tested() -> None:
    (names,) = [mark.args[1] for mark in test_parity.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(WAYS)


@way()
def one_call(bundles: dict[str, Path], directory: Path) -> Results:
    return {
        "dense": stonnx.SentenceTransformer(bundles["dense"], threads=2).encode_document(TEXTS, batch_size=7),
        "sparse": stonnx.SparseEncoder(bundles["sparse"], threads=2).encode_document(TEXTS).toarray(),
        "rerank": stonnx.CrossEncoder(bundles["rerank"], threads=2).predict([(QUERY, text) for text in TEXTS]),
    }


@way()
def pool(bundles: dict[str, Path], directory: Path) -> Results:
    model = stonnx.SentenceTransformer(bundles["dense"], threads=1)
    processes = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        return {"dense": model.encode_document(TEXTS, pool=processes, chunk_size=9)}
    finally:
        model.stop_multi_process_pool(processes)


@way()
def batcher(bundles: dict[str, Path], directory: Path) -> Results:
    async def together(model: Any, call: Callable[[stonnx.Batcher, str], Any]) -> list[Any]:
        with stonnx.Batcher(model) as queue:
            return await asyncio.gather(*(call(queue, text) for text in TEXTS))

    dense, sparse = stonnx.SentenceTransformer(bundles["dense"]), stonnx.SparseEncoder(bundles["sparse"])
    rows = asyncio.run(together(sparse, lambda queue, text: queue.encode_document([text])))
    scores = together(stonnx.CrossEncoder(bundles["rerank"]), lambda queue, text: queue.predict((QUERY, text)))
    return {
        "dense": np.stack(asyncio.run(together(dense, lambda queue, text: queue.encode_document(text)))),
        "sparse": np.concatenate([row.toarray() for row in rows]),
        "rerank": np.stack(asyncio.run(scores)),
    }


@way("starlette", "uvicorn", "msgspec", "orjson", "prometheus_client")
def http(bundles: dict[str, Path], directory: Path) -> Results:
    with serve(*(f"{name}={path}" for name, path in bundles.items())) as address:

        def ask(path: str, **body: Any) -> Any:
            return post(f"{address}{path}", body)

        body = {"model": "dense", "input_type": "document", "input": TEXTS, "encoding_format": "float"}
        rows = ask("/v1/embeddings", **body)["data"]
        sparse = ask("/embed_sparse", model="sparse", inputs=TEXTS)
        ranked = ask("/v1/rerank", model="rerank", query=QUERY, documents=TEXTS)["results"]
    return {
        "dense": [row["embedding"] for row in rows],
        "sparse": matrix(
            [[one["index"] for one in row] for row in sparse], [[one["value"] for one in row] for row in sparse]
        ),
        "rerank": [row["relevance_score"] for row in sorted(ranked, key=lambda row: row["index"])],
    }


@way()
def shards(bundles: dict[str, Path], directory: Path) -> Results:
    """``stonnx encode --shard`` in two processes."""
    for start, name in ((0, "a.jsonl"), (20, "b.jsonl"), (len(TEXTS), "c.jsonl")):
        stop = 20 if start == 0 else len(TEXTS)
        lines = [json.dumps({"text": text, "query": QUERY}) for text in TEXTS[start:stop]]
        (directory / name).write_text("\n".join(lines), encoding="utf-8")
    sources = [str(directory / name) for name in ("a.jsonl", "b.jsonl")]
    results: Results = {}
    for task, options in (
        ("dense", ["--document"]),
        ("sparse", ["--document"]),
        ("rerank", ["--query-field", "query"]),
    ):
        folder = directory / task
        common = ["--field", "text", "--output-format", "jsonl", *options]
        for shard in ("1/2", "2/2"):
            code = "import sys; from stonnx.cli import main; sys.exit(main(sys.argv[1:]))"
            command = ["encode", str(bundles[task]), *sources, "-o", str(folder), "--shard", shard, *common]
            done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
        files = sorted(folder.glob("[ab].jsonl-*.jsonl"))
        assert len(files) == 2
        rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if task == "sparse":
            results[task] = matrix([row["indices"] for row in rows], [row["values"] for row in rows])
        else:
            results[task] = [row["embedding" if task == "dense" else "score"] for row in rows]
    return results


@way("ray", "ray.data", "pyarrow")
def ray(bundles: dict[str, Path], directory: Path) -> Results:
    import ray as engine

    from stonnx.integrations.ray import Embed, Rank, Sparse

    engine.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    try:
        rows = engine.data.from_items(
            [{"id": index, "text": text, "query": QUERY} for index, text in enumerate(TEXTS)]
        ).repartition(3)
        for kind, task, options in (
            (Embed, "dense", {"task": "document"}),
            (Sparse, "sparse", {"task": "document"}),
            (Rank, "rerank", {}),
        ):
            rows = rows.map_batches(
                kind,
                fn_constructor_args=[str(bundles[task])],
                fn_constructor_kwargs=options,
                compute=engine.data.ActorPoolStrategy(size=1),
                num_cpus=1,
                batch_size=8,
                batch_format="pyarrow",
            )
        made = sorted(rows.take_all(), key=lambda row: row["id"])
    finally:
        engine.shutdown()
    return table_results({name: [row[name] for row in made] for name in made[0]})


def table_results(columns: dict[str, Any]) -> Results:
    return {
        "dense": np.stack([np.asarray(value) for value in columns["embedding"]]),
        "sparse": matrix(columns["indices"], columns["values"]),
        "rerank": columns["score"],
    }


def on_engine(kind: Any, bundles: dict[str, Path]) -> Results:
    from stonnx.integrations._steps import Embed, Rank, Sparse

    with contextlib.closing(kind()) as host:
        frame = host.frame(id=list(range(len(TEXTS))), text=TEXTS, query=[QUERY] * len(TEXTS))
        steps = (
            Embed(bundles["dense"], task="document"),
            Sparse(bundles["sparse"], task="document"),
            Rank(bundles["rerank"]),
        )
        return table_results(host.columns(host.add_columns(frame, *steps)))


@way("pyspark", "pyarrow")
def spark(bundles: dict[str, Path], directory: Path) -> Results:
    return on_engine(Spark, bundles)


@way("dask", "distributed", "pyarrow")
def dask(bundles: dict[str, Path], directory: Path) -> Results:
    return on_engine(Dask, bundles)


@way("daft", "pyarrow")
def daft(bundles: dict[str, Path], directory: Path) -> Results:
    return on_engine(Daft, bundles)


@way()
def triton_server(bundles: dict[str, Path], directory: Path) -> Results:
    for name, bundle in bundles.items():
        assert main(["triton", str(bundle), "-o", str(directory / "repository"), "--name", name]) == 0
    with triton(directory / "repository", directory) as server:
        dense = server.infer("dense", {"text": TEXTS}, input_type="document")["embedding"]
        sparse = server.infer("sparse", {"text": TEXTS}, input_type="document")
        scores = server.infer("rerank", {"text": TEXTS, "query": [QUERY] * len(TEXTS)})["scores"]
    kept = [row >= 0 for row in sparse["indices"]]
    return {
        "dense": dense,
        "sparse": matrix(
            [row[keep] for row, keep in zip(sparse["indices"], kept, strict=True)],
            [row[keep] for row, keep in zip(sparse["values"], kept, strict=True)],
        ),
        "rerank": scores[:, 0],
    }


@way("langchain_core")
def langchain(bundles: dict[str, Path], directory: Path) -> Results:
    from stonnx.integrations.langchain import StonnxEmbeddings

    return {"dense": StonnxEmbeddings(bundles["dense"]).embed_documents(TEXTS)}


@way("llama_index.core")
def llama_index(bundles: dict[str, Path], directory: Path) -> Results:
    from stonnx.integrations.llama_index import StonnxEmbedding

    return {"dense": StonnxEmbedding(bundles["dense"]).get_text_embedding_batch(TEXTS)}


@way("haystack")
def haystack(bundles: dict[str, Path], directory: Path) -> Results:
    from haystack import Document

    from stonnx.integrations.haystack import StonnxDocumentEmbedder

    documents = [Document(id=str(index), content=text) for index, text in enumerate(TEXTS)]
    made = StonnxDocumentEmbedder(str(bundles["dense"])).run(documents)["documents"]
    return {"dense": [document.embedding for document in made]}


@way("chromadb")
def chroma(bundles: dict[str, Path], directory: Path) -> Results:
    from stonnx.integrations.chroma import StonnxEmbeddingFunction

    return {"dense": StonnxEmbeddingFunction(bundles["dense"])(TEXTS)}


@way("lancedb", "pyarrow")
def lancedb(bundles: dict[str, Path], directory: Path) -> Results:
    import lancedb as database
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import stonnx.integrations.lancedb  # noqa: F401 : registers the function

    function = get_registry().get("stonnx").create(name=str(bundles["dense"]))

    class Passage(LanceModel):
        number: int
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = database.connect(directory).create_table("passages", schema=Passage)
    table.add([{"number": number, "text": text} for number, text in enumerate(TEXTS)])
    rows = sorted(table.to_arrow().to_pylist(), key=lambda row: row["number"])
    return {"dense": [row["vector"] for row in rows]}


@way("qdrant_client")
def qdrant(bundles: dict[str, Path], directory: Path) -> Results:
    from stonnx.integrations.qdrant import dense_vectors, sparse_vectors

    rows = sparse_vectors(stonnx.SparseEncoder(bundles["sparse"]).encode_document(TEXTS))
    return {
        "dense": dense_vectors(stonnx.SentenceTransformer(bundles["dense"]).encode_document(TEXTS)),
        "sparse": matrix([row.indices for row in rows], [row.values for row in rows]),
    }


@way("mteb")
def mteb(bundles: dict[str, Path], directory: Path) -> Results:
    from mteb.types import PromptType

    from stonnx.integrations.mteb import StonnxEncoder

    task = SimpleNamespace(name="Made", type="Retrieval")
    encoder = StonnxEncoder(bundles["dense"])
    vectors = encoder.encode(
        [{"text": TEXTS[:30]}, {"text": TEXTS[30:]}],
        task_metadata=task,
        hf_split="test",
        hf_subset="default",
        prompt_type=PromptType.document,
    )
    return {"dense": vectors}
