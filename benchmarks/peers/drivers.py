"""Calls each library: one function for each, which runs in the environment that has the library.

A driver loads a model and returns ``encode(inputs, **batching)``, which turns texts, or pairs for a reranker, into
vectors [n, d], scores [n], or sparse vectors. Libraries that batch by themselves get a batch size. Bare runtimes get
the code that an expert would write around them: batches of similar length under a token budget, pooling in numpy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers.systems import CORES, MAX_TOKENS, Inputs, Task

Encode = Callable[..., Any]
Feeds = Mapping[str, npt.NDArray[np.int64]]
Run = Callable[[Feeds], npt.NDArray[Any]]


def stonnx(model: Path, task: Task) -> Encode:
    import stonnx as library

    return _facade(library, task, model)


def sentence_transformers(model: Path, task: Task, onnx_file: str = "") -> Encode:
    import sentence_transformers as library
    import torch

    torch.set_num_threads(CORES)
    options: dict[str, Any] = {"device": "cpu"}
    if onnx_file:
        options |= {"backend": "onnx", "model_kwargs": {"file_name": onnx_file, "provider": "CPUExecutionProvider"}}
    # The path is absolute: the library would take a relative path that does not exist for a name on the Hub.
    path = str(model.resolve())
    return _facade(library, task, path, **options)


def _facade(library: Any, task: Task, model: Path | str, **options: Any) -> Encode:
    """The class for a task, which has the same name and method in both libraries."""
    encode: Encode
    if task == "rerank":
        encode = library.CrossEncoder(model, **options).predict
    elif task == "sparse":
        encode = library.SparseEncoder(model, **options).encode
    else:
        encode = library.SentenceTransformer(model, **options).encode
    return encode


def onnxruntime(model: Path, task: Task) -> Encode:
    import onnxruntime as ort

    def compile_for(streams: int) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, CORES // streams)
        session = ort.InferenceSession(str(model / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)[0]

    return _own_batches(model, task, compile_for, _HEADS[task])


def openvino(model: Path, task: Task, inference_precision: str = "") -> Encode:
    import openvino as ov

    core = ov.Core()
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": CORES}
    if inference_precision:
        settings["INFERENCE_PRECISION_HINT"] = inference_precision

    def compile_for(streams: int) -> Run:
        hint = {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": str(streams)}
        compiled = core.compile_model(model / "model.xml", "CPU", settings | hint)
        requests = threading.local()

        def run(feeds: Feeds) -> npt.NDArray[Any]:
            if not hasattr(requests, "request"):
                requests.request = compiled.create_infer_request()
            # The result lies in memory of the request. Heads make new arrays from it.
            result: npt.NDArray[Any] = requests.request.infer(feeds, share_inputs=True, share_outputs=True)[0]
            return result

        return run

    return _own_batches(model, task, compile_for, _HEADS[task])


def ctranslate2(model: Path, task: Task) -> Encode:
    import ctranslate2 as ct2

    classifier = np.load(model / "classifier.npz") if task == "rerank" else None

    def compile_for(streams: int) -> Run:
        encoder = ct2.Encoder(str(model), device="cpu", inter_threads=streams, intra_threads=max(1, CORES // streams))

        def run(feeds: Feeds) -> npt.NDArray[Any]:
            ids, lengths = (
                ct2.StorageView.from_array(array.astype(np.int32))
                for array in (feeds["input_ids"], feeds["attention_mask"].sum(1))
            )
            # Token types are left out if they are all 0. The library takes them only as lists.
            types = feeds["token_type_ids"].tolist() if task == "rerank" else None
            output = encoder.forward_batch(ids, lengths, types)
            if classifier is None:
                return np.array(output.last_hidden_state)
            scores: npt.NDArray[Any] = np.array(output.pooler_output) @ classifier["weight"].T + classifier["bias"]
            return scores

        return run

    return _own_batches(model, task, compile_for, _HEADS[task])


def fastembed(model: Path, task: Task) -> Encode:
    from fastembed.common.model_description import ModelSource, PoolingType

    # The library does not use the source: specific_model_path comes first.
    source = ModelSource(hf="benchmark/MiniLM")
    options: dict[str, Any] = {"specific_model_path": str(model), "threads": CORES}
    if task == "rerank":
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        TextCrossEncoder.add_custom_model("benchmark/MiniLM", sources=source, model_file="model.onnx")
        reranker = TextCrossEncoder("benchmark/MiniLM", **options)
        return _sorted(lambda pairs, batch_size: list(reranker.rerank_pairs(pairs, batch_size=batch_size)))
    from fastembed import TextEmbedding

    TextEmbedding.add_custom_model(
        "benchmark/MiniLM",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=source,
        dim=384,
        model_file="model.onnx",
    )
    embedder = TextEmbedding("benchmark/MiniLM", **options)
    return _sorted(lambda texts, batch_size: list(embedder.embed(texts, batch_size=batch_size)))


def light_embed(model: Path, task: Task) -> Encode:
    from light_embed import TextEmbedding

    config = {"onnx_file": "model.onnx", "pooling_mode": "mean", "normalize": True}
    encode: Encode = TextEmbedding(str(model), device="cpu", model_config=config).encode
    return encode


def ggmbed(model: Path, task: Task) -> Encode:
    from ggmbed import Embedder

    # The pooling is that of all-MiniLM-L6-v2, which it would recognise by its name.
    embedder = Embedder(str(model), num_threads=CORES, pooling_mode="mean")

    def encode(texts: Inputs, batch_size: int = 0) -> Any:
        del batch_size  # it has batches of its own
        return embedder.encode(list(texts), max_length=MAX_TOKENS[task])

    return encode


def candding(model: Path, task: Task) -> Encode:
    # It has no argument for weights on this disk: the model is a cache of the Hub that has them.
    os.environ["HF_HOME"] = str(model.resolve())
    from candding import TextEmbedding

    name = "sentence-transformers/all-MiniLM-L6-v2"
    embedder = TextEmbedding(name, device="cpu", max_length=MAX_TOKENS[task])
    return _sorted(lambda texts, batch_size: list(embedder.embed(texts, batch_size=batch_size)))


def load_tokenizer(model: Path, task: Task) -> Callable[[Inputs], list[Any]]:
    """The tokenizer of a model directory. It turns inputs into encodings, cut to the task's limit, not padded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS[task])
    return lambda inputs: tokenizer.encode_batch_fast(list(inputs))


def feeds(encodings: Sequence[Any]) -> Feeds:
    """Turn encodings into arrays [batch, longest], padded on the right with zeros."""
    shape = len(encodings), max(len(encoding) for encoding in encodings)
    arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, encoding in enumerate(encodings):
        length = len(encoding)
        arrays["input_ids"][row, :length] = encoding.ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = encoding.type_ids
    return arrays


def _mean(hidden: npt.NDArray[Any], mask: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    sums = np.einsum("bsh,bs->bh", hidden, mask.astype(hidden.dtype))
    unit: npt.NDArray[Any] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return unit


_HEADS: dict[Task, Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], npt.NDArray[Any]]] = {
    "embedding": _mean,
    "rerank": lambda scores, _: scores[:, 0].copy(),
    "sparse": lambda weights, _: weights.copy(),
}


def _own_batches(
    model: Path,
    task: Task,
    compile_for: Callable[[int], Run],
    head: Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], npt.NDArray[Any]],
) -> Encode:
    """The code that an expert writes around a bare runtime: batches of similar length, run by one stream or several."""
    tokenize = load_tokenizer(model, task)
    compile_once = cache(compile_for)
    compile_once(1)
    pool = ThreadPoolExecutor(CORES)

    def encode(inputs: Inputs, tokens: int = 1024, streams: int = 1) -> npt.NDArray[Any]:
        encodings = tokenize(inputs)
        batches = by_length([len(encoding) for encoding in encodings], tokens)
        run = compile_once(streams)

        def rows(batch: Sequence[int]) -> npt.NDArray[Any]:
            arrays = feeds([encodings[index] for index in batch])
            return head(run(arrays), arrays["attention_mask"])

        parts = list(map(rows, batches) if streams == 1 else pool.map(rows, batches))
        result = np.empty((len(encodings), *parts[0].shape[1:]), parts[0].dtype)
        for batch, part in zip(batches, parts, strict=True):
            result[batch] = part
        return result

    return encode


def by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = []
    start = 0
    while start < len(order):
        count = max(1, tokens // lengths[order[start]])
        batches.append(order[start : start + count])
        start += count
    return batches


def _sorted(encode: Callable[[list[Any], int], list[Any]]) -> Encode:
    """Give the longest texts first to a library that takes texts as they come."""

    def encode_sorted(inputs: Inputs, batch_size: int = 32) -> npt.NDArray[Any]:
        lengths = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in inputs]
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        rows = np.array(encode([inputs[index] for index in order], batch_size))
        result = np.empty_like(rows)
        result[order] = rows
        return result

    return encode_sorted


# Otherwise Hub clients would ask for updates of files on this disk.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
DRIVERS: dict[str, Callable[..., Encode]] = {
    driver.__name__: driver
    for driver in (
        *(stonnx, sentence_transformers, onnxruntime, openvino, ctranslate2),
        *(fastembed, light_embed, ggmbed, candding),
    )
}
