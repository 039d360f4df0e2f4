"""The workloads and the systems that the benchmark measures, as tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.texts import mixed_texts, texts

Task = Literal["embedding", "rerank", "sparse"]
# Texts, or (query, passage) pairs for rerankers.
Inputs = Sequence[Any]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TASKS: tuple[Task, ...] = ("embedding", "rerank", "sparse")
# The longest input in tokens, the same for every system.
MAX_TOKENS: dict[Task, int] = {"embedding": 256, "rerank": 512, "sparse": 256}


@dataclass(frozen=True)
class Workload:
    """``inputs`` are encoded together, or one at a time if ``alone``."""

    name: str
    title: str
    task: Task
    inputs: Callable[[], Inputs]
    alone: bool = False


# Two of the tokens are [CLS] and [SEP]; a pair has three.
WORKLOADS = (
    Workload("short", "short, 14 tokens", "embedding", lambda: texts(256, 12)),
    Workload("passages", "passages, 75 tokens", "embedding", lambda: texts(64, 73)),
    Workload("long", "long, 256 tokens", "embedding", lambda: texts(16, 254)),
    Workload("mix", "log-normal mix", "embedding", lambda: mixed_texts(96)),
    Workload("single", "one short text at a time", "embedding", lambda: texts(100, 12, seed=1), alone=True),
    Workload("rerank", "1 query x 100 passages", "rerank", lambda: [(texts(1, 8)[0], text) for text in texts(100, 60)]),
    Workload("splade", "SPLADE passages", "sparse", lambda: texts(32, 73)),
)

Batching = Mapping[str, int]
# The choices of calibration: texts a batch, or padded tokens a batch with a stream for each core.
BATCH_SIZES: tuple[Batching, ...] = tuple({"batch_size": size} for size in (8, 16, 32, 64, 128))
TOKEN_BUDGETS: tuple[Batching, ...] = tuple({"tokens": tokens, "streams": CORES} for tokens in (256, 512, 1024, 2048))


@dataclass(frozen=True)
class System:
    """A library at one precision.

    Attributes:
        driver: The function of drivers.py that loads it. ``options`` are its arguments.
        environment: The row of environments.py for the environment that it runs in.
        models: Its model for each task that it can do: rows of models.py.
        cannot: Why it is missing from the other tasks.
        batching: The choices of calibration. A single entry is not calibrated.
    """

    name: str
    driver: str
    environment: str
    models: Mapping[Task, str]
    batching: tuple[Batching, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    cannot: str = ""


def _for_all(model: str) -> dict[Task, str]:
    return {task: f"{model}-{task}" for task in TASKS}


REFERENCE = "sentence-transformers 6.2, PyTorch"
SYSTEMS = (
    System(REFERENCE, "sentence_transformers", "sentence-transformers-6", _for_all("checkpoint"), BATCH_SIZES),
    # The default of stonnx: it chooses the batching itself.
    System("stonnx fp32", "stonnx", "stonnx", _for_all("stonnx-fp32"), ({},)),
    System("stonnx int8", "stonnx", "stonnx", _for_all("stonnx-int8"), ({},)),
    # The same file. The only difference is that stonnx-kernels is installed.
    System("stonnx int8, kernels", "stonnx", "stonnx-kernels", _for_all("stonnx-int8"), ({},)),
    System("stonnx bf16, kernels", "stonnx", "stonnx-kernels", _for_all("stonnx-bf16"), ({},)),
    System(
        "sentence-transformers 5.7, ONNX fp32",
        "sentence_transformers",
        "sentence-transformers-5",
        _for_all("optimum-fp32"),
        BATCH_SIZES,
        {"onnx_file": "model.onnx"},
    ),
    System(
        "sentence-transformers 5.7, ONNX int8",
        "sentence_transformers",
        "sentence-transformers-5",
        _for_all("optimum-int8"),
        BATCH_SIZES,
        {"onnx_file": "model_qint8_avx512_vnni.onnx"},
    ),
    System("onnxruntime fp32", "onnxruntime", "onnxruntime", _for_all("onnx-fp32"), TOKEN_BUDGETS),
    System("onnxruntime int8, quantize_dynamic", "onnxruntime", "onnxruntime", _for_all("onnx-int8"), TOKEN_BUDGETS),
    System(
        "OpenVINO fp32",
        "openvino",
        "openvino",
        _for_all("openvino-fp32"),
        TOKEN_BUDGETS,
        {"inference_precision": "f32"},
    ),
    System(
        "OpenVINO bf16",
        "openvino",
        "openvino",
        _for_all("openvino-fp32"),
        TOKEN_BUDGETS,
        {"inference_precision": "bf16"},
    ),
    System("OpenVINO int8, NNCF", "openvino", "openvino", _for_all("openvino-int8"), TOKEN_BUDGETS),
    *(
        System(
            f"CTranslate2 {precision}",
            "ctranslate2",
            "ctranslate2",
            {"embedding": f"ctranslate2-{precision}-embedding", "rerank": f"ctranslate2-{precision}-rerank"},
            TOKEN_BUDGETS,
            cannot="its BERT encoder has no vocabulary head",
        )
        for precision in ("fp32", "int8")
    ),
    System(
        "fastembed",
        "fastembed",
        "fastembed",
        {"embedding": "onnx-fp32-embedding", "rerank": "onnx-fp32-rerank"},
        BATCH_SIZES,
        cannot="sparse models of one's own cannot be added",
    ),
    System(
        "light-embed",
        "light_embed",
        "light-embed",
        {"embedding": "onnx-fp32-embedding"},
        BATCH_SIZES,
        cannot="it has embedding models only",
    ),
    # It runs the texts of a call one after the other.
    System(
        "ggmbed Q8_0", "ggmbed", "ggmbed", {"embedding": "gguf-embedding"}, ({},), cannot="it has embedding models only"
    ),
    System(
        "candding",
        "candding",
        "candding",
        {"embedding": "candding-embedding"},
        BATCH_SIZES,
        cannot="it loads the models of its own catalogue only",
    ),
)
